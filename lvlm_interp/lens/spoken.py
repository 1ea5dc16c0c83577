"""What each generated token looked at: attention to the image over all steps of a generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.errors import UsageError
from lvlm_interp.lens.positions import Selection, choose, example_names, image_of, lay
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.provenance import provenance
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.sites import Site
from lvlm_interp.tokens import TokenMap

__all__ = ["SpokenAttention", "spoken_attention"]


@dataclass(frozen=True, repr=False)
class SpokenAttention(Result):
    """Attention weights from each step of a generation to the image tokens.

    `table` has a row per example x step x layer x head: `value` is the sum of the weights over the
    image's tokens, `word` the token that the step chose.

    Attributes:
        weights: Shape `step layer head token`.
        layers: Layers of the weights.
        words: Tokens that were said, by row; a row may end earlier than others.
        tokens: One map per row of the batch.
        selection: Which rows and positions the image tokens are.
        images: The image of each row where it is known.
    """

    weights: Float[np.ndarray, "step layer head token"]
    layers: tuple[int, ...]
    words: tuple[tuple[str, ...], ...]
    tokens: tuple[TokenMap, ...]
    selection: Selection
    images: tuple[Any, ...] = field(default=())

    def grid(
        self,
        step: int,
        *,
        layer: int | None = None,
        head: int | None = None,
        row: int = 0,
        image: int = 0,
        tile: int = 0,
    ) -> Float[np.ndarray, "row col"]:
        """Weights of one step over the image: of a layer and head, or their mean where left open.

        Raises:
            UsageError: No such step, layer or row.
            InputError: The image's tokens have no grid.
        """
        if not 0 <= row < len(self.words) or not 0 <= step < len(self.words[row]):
            raise UsageError(f"There is no step {step} of row {row}.")
        if layer is not None and layer not in self.layers:
            raise UsageError(f"Layer {layer} was not read; read were {list(self.layers)}.")
        of_step = self.weights[step]
        of_step = of_step if layer is None else of_step[[self.layers.index(layer)]]
        of_step = of_step if head is None else of_step[:, [head]]
        mine = self.selection.rows == row
        values = of_step.mean((0, 1))[mine]
        return lay(self.tokens[row], self.selection.at[mine], values, image=image, tile=tile)


def spoken_attention(
    model: LVLM,
    inputs: Inputs | Mapping[str, Any],
    *,
    max_new_tokens: int = 16,
    layers: str = "*",
) -> SpokenAttention:
    """Let the model answer, and keep what every step of it attends to in the image.

    The weights of a step are those of the position at which its token is predicted: the prompt's
    last one, then each token that was said.

    Args:
        model: The model.
        inputs: From `model.prepare`, padded on the left.
        max_new_tokens: Length of what is said.
        layers: A layer's number, or `*` for all.

    Raises:
        InputError: A row has no image, or is padded on the right.
        SiteError: There is no such layer.
    """
    ready = model.as_inputs(inputs)
    selection = choose(ready, "image")

    def to_image(_site: Site, value: Tensor) -> Tensor:
        return selection.gather(value[:, :, -1].transpose(1, 2)).T.float()

    options = {"return_dict_in_generate": True, "max_new_tokens": max_new_tokens}
    said, caches = model.generate_with_cache(
        ready, f"text.{layers}.pattern", keep=to_image, **options
    )
    steps = [torch.stack([cache[site] for site in cache.sites]) for cache in caches]
    weights = torch.stack(steps).cpu().numpy()
    found = tuple(site.layer or 0 for site in caches[0].sites)
    words = _words(model, said.sequences[:, -len(steps) :])
    return SpokenAttention(
        _table(model, ready, selection, weights, found, words),
        weights=weights,
        layers=found,
        words=words,
        tokens=ready.tokens,
        selection=selection,
        images=tuple(image_of(row) for row in ready.examples),
    )


def _words(model: LVLM, ids: Tensor) -> tuple[tuple[str, ...], ...]:
    """Tokens of each row up to its end."""
    ends = model.hf.generation_config.eos_token_id
    stops = set(ends if isinstance(ends, list) else [ends])
    rows = []
    for row in ids.tolist():
        n = next((i for i, token in enumerate(row) if token in stops), len(row))
        rows.append(tuple(model.tokenizer.decode([token]).strip() for token in row[:n]))
    return tuple(rows)


def _table(
    model: LVLM,
    inputs: Inputs,
    selection: Selection,
    weights: np.ndarray,
    layers: tuple[int, ...],
    words: tuple[tuple[str, ...], ...],
) -> ResultTable:
    parts = []
    for row, name in enumerate(example_names(inputs)):
        n = len(words[row])
        totals = weights[:n, :, :, selection.rows == row].sum(-1)
        step, layer, head = (axis.ravel() for axis in np.indices(totals.shape))
        parts.append(
            pd.DataFrame(
                {
                    "example": name,
                    "step": step,
                    "word": np.array([*words[row], ""], dtype=object)[step],
                    "tower": "text",
                    "layer": np.array(layers)[layer],
                    "head": head,
                    "metric": "attention to the image",
                    "value": totals.ravel().astype(float),
                    "unit": "weight",
                }
            )
        )
    frame = pd.concat(parts, ignore_index=True)
    return ResultTable(frame, provenance(model=model.name, dtype=str(model.dtype)))
