"""What a run with its picture must do: places, batches, generation, and no run without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.proofs.streams import off
from lvlm_interp.models.zoo.pictures import inverted, noise
from lvlm_interp.tokens import TokenMap

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM

Maker = Callable[[Sequence[Image.Image], Sequence[int]], Inputs]
"""Makes a batch of one picture and some words per row."""


@torch.no_grad()
def token_map(
    model: LVLM, make: Maker, sizes: Sequence[tuple[int, int]]
) -> tuple[int | None, int | None]:
    """Boxes of pixels tried, and those whose change moves exactly the tokens that the map gives.

    In the tower it moves patches of these tokens alone, where the map says which are behind them.
    No attention of the vision tower moves anything between patches meanwhile. (None, None) where
    the tokens stand for no place and the map says so.
    """
    tokens = make([noise(sizes[0])], [6]).tokens[0]
    if np.isnan(tokens.box[tokens.image]).all():
        return None, None
    tried = right = 0
    for seed, (width, height) in enumerate(sizes):
        picture = noise((width, height), seed)
        tokens = make([picture], [6]).tokens[0]
        before = _still(model, make, picture)
        for box in _boxes(width, height):
            after = _still(model, make, inverted(picture, box))
            prompt, patches = (_moved(one, other) for one, other in zip(before, after, strict=True))
            expected = tokens.within(box)
            tried += 1
            same = len(expected) > 0 and np.array_equal(prompt, expected)
            right += int(same and _is_behind(tokens, expected, patches))
    return tried, right


def _is_behind(tokens: TokenMap, expected: np.ndarray, patches: np.ndarray) -> bool:
    """Whether the patches that moved are of these tokens alone, and some of each of them."""
    if "vision" not in tokens.towers:
        return True
    behind = tokens.towers["vision"][expected]
    return bool(np.isin(behind, patches).any(-1).all()) and set(patches) <= set(behind.ravel())


def _boxes(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Two corners, one across the middle, and one inside a single cell."""
    sx, sy = width // 4, height // 4
    left, top = (width - sx) // 2, (height - sy) // 2
    return [
        (0, 0, sx, sy),
        (width - sx, height - sy, width, height),
        (left, top, left + sx, top + sy),
        (sx + 1, 2 * sy + 1, sx + 3, 2 * sy + 3),
    ]


def _still(model: LVLM, make: Maker, picture: Image.Image) -> list[Tensor]:
    """Prompt and first stream of the tower, when attention moves nothing between patches."""
    sites = ["text.embed", "vision.0.resid_pre"]
    with model.edit({"vision.*.attn_out": torch.zeros_like}):
        _, cache = model.run_with_cache(make([picture], [6]), sites)
    return [cache[site][0] for site in sites]


def _moved(one: Tensor, other: Tensor) -> np.ndarray:
    return np.flatnonzero((one - other).abs().amax(-1).cpu().numpy() > 0)


@torch.no_grad()
def batches(model: LVLM, make: Maker, pictures: Sequence[Image.Image]) -> float:
    """Largest relative difference of a row in a batch of unlike rows from its single run.

    Compared are the logits, what the projector gives and the last streams of the vision tower.
    """
    words = [6, 9, 4][: len(pictures)]
    together = make(pictures, words)
    last = model.sites("vision.*.resid_post")[-1]
    sites = [site for site in (last, *model.sites("projector.out")) if model.family.merged]
    logits, cache = model.run_with_cache(together, sites)
    worst = 0.0
    for index, (picture, n) in enumerate(zip(pictures, words, strict=True)):
        alone = make([picture], [n])
        single, own = model.run_with_cache(alone, sites)
        real = together.tokens[index].real
        worst = max(worst, off(logits[index, real], single[0, alone.tokens[0].real]))
        for site in sites:
            worst = max(worst, off(cache[site][index, : own[site].shape[1]], own[site][0]))
    return worst


@torch.no_grad()
def generation(model: LVLM, inputs: Inputs, n: int = 5) -> tuple[int, int]:
    """New tokens equal to those of transformers' own `generate`, and how many there are."""
    options = {"max_new_tokens": n, "do_sample": False, "eos_token_id": None}
    with _quiet(model.hf):
        theirs = model.hf.generate(**inputs.tensors, **options)
        processor, model.processor = model.processor, None  # ids, not words
        try:
            ours: Any = model.generate(inputs, **options)
        finally:
            model.processor = processor
    theirs = theirs[:, -ours.shape[1] :]
    return int((ours == theirs).sum()), theirs.numel()


@contextmanager
def _quiet(hf: Any) -> Iterator[None]:
    """Generate without a special token that could end it early."""
    before = hf.generation_config
    hf.generation_config = type(before)(pad_token_id=0)
    try:
        yield
    finally:
        hf.generation_config = before


def without_image(model: LVLM, inputs: Inputs) -> tuple[int, int]:
    """Ways to run without (all of) the image that are refused before a forward, and how many."""
    image = getattr(model.config, model.family.image_token)
    bare, fewer = inputs["input_ids"].clone(), inputs["input_ids"].clone()
    bare[bare == image] = 20
    fewer[0, int((fewer[0] == image).nonzero()[0])] = 20
    trials: list[dict[str, Any]] = [
        {name: value for name, value in inputs.items() if name != need}
        for need in model.family.needs
    ]
    trials += [{**inputs, "input_ids": bare}, {**inputs, "input_ids": fewer}]
    return sum(_refuses(model, trial) for trial in trials), len(trials)


def _refuses(model: LVLM, trial: dict[str, Any]) -> bool:
    ran: list[bool] = []
    handle = model.hf.register_forward_pre_hook(lambda *_: ran.append(True))
    try:
        model(trial)
    except InputError:
        return not ran
    finally:
        handle.remove()
    return False
