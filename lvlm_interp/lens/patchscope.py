"""Patchscopes: an image token's state put into a text prompt, and what the model then says.

Ghandeharioun et al. 2024, "Patchscopes: A Unifying Framework for Inspecting Hidden Representations
of Language Models": the state at (source layer, position) replaces the state of a placeholder at
(target layer) of another prompt, and the model goes on from there.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.lens.positions import Positions, Selection, choose, lay, token_columns
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.provenance import provenance
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.sites import Site
from lvlm_interp.spans import words_pattern
from lvlm_interp.tokens import TokenMap


@dataclass(frozen=True, repr=False)
class PatchscopeResult(Result):
    """What the model says of each token.

    `table` has a row per source layer x token x word: `mentions` is 1 where the generated `text`
    holds the `word`, as a whole word in any case.

    Attributes:
        texts: Generated texts; shape `layer token`.
        layers: Source layers; -1 is the input of the language model.
        tokens: One map per row of the batch.
        selection: Which rows and positions the tokens are.
    """

    texts: np.ndarray
    layers: tuple[int, ...]
    tokens: tuple[TokenMap, ...]
    selection: Selection

    def grid(self, layer: int, *, row: int = 0, image: int = 0, tile: int = 0) -> np.ndarray:
        """Generated texts over the image; shape `row col`.

        Raises:
            UsageError: A layer that was not read.
        """
        if layer not in self.layers:
            raise UsageError(f"Layer {layer} was not read; read were {list(self.layers)}.")
        mine = self.selection.rows == row
        values = self.texts[self.layers.index(layer)][mine]
        return lay(self.tokens[row], self.selection.at[mine], values, image=image, tile=tile)


def patchscope(
    model: LVLM,
    inputs: Inputs | Mapping[str, Any],
    *,
    prompt: str = "the x is",
    placeholder: str = "x",
    target_image: Any = None,
    layers: Sequence[int] | None = None,
    target_layer: int | None = None,
    positions: Positions = "image",
    words: Sequence[str] = (),
    max_new_tokens: int = 4,
    batch_size: int = 64,
    progress: bool = False,
) -> PatchscopeResult:
    """Put states of tokens into a text prompt and let the model go on.

    Args:
        model: The model.
        inputs: From `model.prepare`.
        prompt: The target prompt.
        placeholder: Word of the prompt whose state is replaced: the last piece of its last
            occurrence.
        target_image: Image of the target prompt; None gives it without one. Some models take no
            prompt without an image (PaliGemma, BLIP-2, InstructBLIP), or skip layers then (Mllama):
            give them a blank one.
        layers: Source layers, read from resid_post; -1 is the input of the language model; all by
            default.
        target_layer: Layer after which the state is put in; the source layer by default.
        positions: Source positions, as in `logit_lens`.
        words: Words to look for in what is said.
        max_new_tokens: Length of what is said.
        batch_size: Tokens at once.
        progress: Show a bar.

    Raises:
        InputError: The placeholder is not in the prompt, or the model needs a target image.
        UsageError: A layer that the model has not.
    """
    ready = model.as_inputs(inputs)
    selection = choose(ready, positions)
    chosen = _layers(model, layers)
    sites = [_site(layer) for layer in chosen]
    target = _Target(model, (target_image, prompt), placeholder, max_new_tokens)
    with model.record(sites, keep=lambda _site, value: selection.gather(value)) as cache:
        model(ready, logits_to_keep=1)
    texts = np.empty((len(chosen), len(selection)), dtype=object)
    bar = tqdm(chosen, desc="patchscope", unit="layer", disable=not progress)
    for index, layer in enumerate(bar):
        into = layer if target_layer is None else _layers(model, [target_layer])[0]
        states = cache[_site(layer)]
        said = [text for part in states.split(batch_size) for text in target.say(part, into)]
        texts[index] = said
    table = _table(model, ready, selection, chosen, texts, words)
    return PatchscopeResult(table, texts, tuple(chosen), ready.tokens, selection)


def self_consistency(
    model: LVLM,
    words: Sequence[str],
    *,
    prompt: str = "the x is",
    placeholder: str = "x",
    target_image: Any = None,
    layers: Sequence[int] | None = None,
    max_new_tokens: int = 4,
) -> ResultTable:
    """Does a patched word say what the word itself says?

    The state of each word, taken from the prompt with the word in the placeholder's place, is put
    back into the prompt with the placeholder; what is said is compared with what the prompt with
    the word says. At the input (-1) both must be the same; where the rate falls, states are no
    longer about the word at that position, or no longer readable so.

    Returns:
        One row per word x layer, metric `same` (1 or 0), with what was said in `text`.

    Raises:
        InputError: The placeholder is not in the prompt, a word has another number of pieces, or
            the model needs a target image.
    """
    chosen = _layers(model, layers)
    target = _Target(model, (target_image, prompt), placeholder, max_new_tokens)
    rows = []
    for word in words:
        spoken = _spoken(prompt, placeholder, word)
        own = model.prepare([(target_image, spoken)])
        if own["input_ids"].shape[1] != target.length:
            raise InputError(f"{word!r} has another number of pieces than {placeholder!r}.")
        expected = str(model.generate(own, max_new_tokens=max_new_tokens)[0]).strip()
        with model.record([_site(layer) for layer in chosen]) as cache:
            model(own, logits_to_keep=1)
        for layer in chosen:
            state = cache[_site(layer)][:, target.position]
            said = target.say(state, layer)[0]
            rows.append(
                {
                    "example": word,
                    "tower": "text",
                    "layer": None if layer < 0 else layer,
                    "site": str(_site(layer)),
                    "metric": "same",
                    "value": float(said == expected),
                    "unit": "fraction",
                    "text": said,
                    "expected": expected,
                }
            )
    return ResultTable(pd.DataFrame(rows), provenance(model=model.name, prompt=prompt))


class _Target:
    """The prompt that states are put into."""

    def __init__(
        self, model: LVLM, example: tuple[Any, str], placeholder: str, max_new_tokens: int
    ) -> None:
        self.model, self.example, self.max_new_tokens = model, example, max_new_tokens
        one = _prepared(model, example)
        self.length = one["input_ids"].shape[1]
        self.position = _placeholder(one, example[1], placeholder)

    def say(self, states: Tensor, layer: int) -> list[str]:
        """What the model says when each state in turn stands at the placeholder."""
        inputs = self.model.prepare([self.example] * len(states))

        def put(value: Tensor) -> Tensor:
            if value.shape[1] != self.length:
                return value  # a step of the generation, in which the placeholder lies behind
            new = value.clone()
            new[:, self.position] = states
            return new

        said = self.model.generate(
            inputs, edits={_site(layer): put}, max_new_tokens=self.max_new_tokens
        )
        return [str(text).strip() for text in said]


def _prepared(model: LVLM, example: tuple[Any, str]) -> Inputs:
    if example[0] is not None:
        return model.prepare([example])
    needs = InputError(
        f"{model.name} ({model.family.name}) does not run all of its layers without an image: pass "
        "target_image, for example a blank one."
    )
    pixels = inspect.signature(model.hf.generate).parameters.get("pixel_values")
    required = pixels is not None and pixels.default is inspect.Parameter.empty
    # Blocks of cross-attention are skipped where there is nothing to attend to.
    if required or not model.family.merged:
        raise needs
    try:
        return model.prepare([example])
    except InputError as error:
        raise needs from error


def _placeholder(inputs: Inputs, prompt: str, placeholder: str) -> int:
    """Where the last placeholder stands in the prompt: its last piece."""
    tokens = inputs.tokens[0]
    try:
        found = tokens.text(placeholder, None)
    except InputError as error:
        raise _no_placeholder(prompt, placeholder) from error
    found = np.intersect1d(found, tokens.question)
    if not len(found):
        raise _no_placeholder(prompt, placeholder)
    return int(found[-1])


def _no_placeholder(prompt: str, placeholder: str) -> InputError:
    return InputError(f"The placeholder {placeholder!r} is no word of the prompt {prompt!r}.")


def _spoken(prompt: str, placeholder: str, word: str) -> str:
    """The prompt with a word in the place of its last placeholder."""
    found = list(words_pattern(placeholder).finditer(prompt))
    if not found:
        raise _no_placeholder(prompt, placeholder)
    return prompt[: found[-1].start()] + word + prompt[found[-1].end() :]


def _layers(model: LVLM, layers: Sequence[int] | None) -> list[int]:
    chosen = list(range(model.n_layers)) if layers is None else list(layers)
    if bad := [layer for layer in chosen if not -1 <= layer < model.n_layers]:
        raise UsageError(f"Layers run from -1 to {model.n_layers - 1}, got {bad[0]}.")
    return chosen


def _site(layer: int) -> Site:
    return Site("text", None, "embed") if layer < 0 else Site("text", layer, "resid_post")


def _table(
    model: LVLM,
    inputs: Inputs,
    selection: Selection,
    layers: Sequence[int],
    texts: np.ndarray,
    words: Sequence[str],
) -> ResultTable:
    columns = token_columns(inputs, selection)
    parts = []
    for index, layer in enumerate(layers):
        for word in words or (None,):
            said, pattern = texts[index], None if word is None else words_pattern(word)
            hits = [np.nan if pattern is None else float(bool(pattern.search(t))) for t in said]
            parts.append(
                pd.DataFrame(
                    {
                        **columns,
                        "tower": "text",
                        "layer": None if layer < 0 else layer,
                        "site": str(_site(layer)),
                        "metric": "mentions",
                        "value": hits,
                        "unit": "fraction",
                        "word": word,
                        "text": said,
                    }
                )
            )
    frame = pd.concat(parts, ignore_index=True)
    return ResultTable(frame, provenance(model=model.name, dtype=str(model.dtype)))
