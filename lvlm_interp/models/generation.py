"""Generation: the model's own words, with edits and caches in the prompt's pass and each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lvlm_interp.errors import InputError
from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.hooks import READ
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.reading import reader
from lvlm_interp.sites import Site

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM, Keep


def generate(model: LVLM, inputs: Inputs, options: Mapping[str, Any]) -> Any:
    """What a model says: words of each row, ids without a processor, or transformers' own object.

    Args:
        model: The model.
        inputs: Rows padded on the left.
        options: For `generate` of transformers; with `return_dict_in_generate` its object is given.

    Raises:
        InputError: A row is padded on the right, where the model would go on from padding.
    """
    mask = inputs.tensors.get("attention_mask")
    if mask is not None and not bool(mask[:, -1].all()):
        raise InputError(
            "A row is padded on the right, so generation would go on from its padding: prepare the "
            "rows with padding_side='left'."
        )
    with torch.no_grad(), model._runs.running(), model._run.noting(inputs):
        out = model.hf.generate(**inputs.tensors, **options)
    if not isinstance(out, Tensor):
        return out
    new = out[:, inputs["input_ids"].shape[1] :]
    if model.processor is None:
        return new
    return model.tokenizer.batch_decode(new, skip_special_tokens=True)


@contextmanager
def recorded_steps(
    model: LVLM, sites: str | Site | Iterable[str | Site], keep: Keep | None
) -> Iterator[list[ActivationCache]]:
    """A cache for each forward of this thread while the context is open."""
    caches = [ActivationCache()]
    passed: list[bool] = [False]  # whether the decoder ran since the last cache was begun

    def begin() -> None:
        if passed[0]:
            caches.append(ActivationCache())
        passed[0] = False

    def decode() -> None:
        begin()
        passed[0] = True

    # Copies: a step may write into the tensors of the one before (static caches).
    visitors = {
        site: reader(site, lambda: caches[-1], keep, copy=True) for site in model.sites(sites)
    }
    # Most models are called as a whole in each step; BLIP-2's decoder is called by itself.
    whole = noted_runs(model, model.hf, begin)
    decoder = noted_runs(model, decoder_of(model), decode)
    with whole, decoder, model._connected(visitors, READ):
        yield caches


def decoder_of(model: LVLM) -> nn.Module:
    """The part of a model that runs once in every forward, also in a step of generation."""
    return model.tap("text.embed").module


@contextmanager
def noted_runs(model: LVLM, module: nn.Module, note: Callable[[], None]) -> Iterator[None]:
    """Call a function before every forward of a module in this thread, however it is started.

    Not where the board is silent: such a run passes by all that is open around it.
    """
    me = get_ident()

    def hook(_module: nn.Module, _args: tuple) -> None:
        if get_ident() == me and not model._board.is_silent:
            note()

    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
