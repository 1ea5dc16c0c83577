"""Step 3: what the image tokens say, layer by layer, in one scene where the flaw shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lvlm_interp.diagnose.items import ACT, TRIGGERED, Item
from lvlm_interp.errors import InputError
from lvlm_interp.lens import logit_lens
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.results import ResultTable


def example_of(items: Sequence[Item], errors: np.ndarray, level: str) -> Item | None:
    """A scene to show: the first in the acting half that goes wrong under the trigger.

    Where none does, the first triggered one; without triggers, the first of the level.
    """
    mine = [(item, wrong) for item, wrong in zip(items, errors, strict=True) if item.level == level]
    shown = [(item, wrong) for item, wrong in mine if item.condition == TRIGGERED]
    shown = [(item, wrong) for item, wrong in shown if item.half == ACT] or shown or mine
    wrong = [item for item, is_wrong in shown if is_wrong]
    return (wrong or [item for item, _ in shown] or [None])[0]


def image_words(model: LVLM, item: Item, provenance: Mapping[str, Any]) -> ResultTable:
    """The logit lens of one example's image tokens at every layer of the language model.

    Returns:
        Rows per layer x patch: metric `top_prob` with the `word`, and its `row` and `col`; no row
        where the image's tokens have no grid.
    """
    inputs = model.prepare([item.example])
    lens = logit_lens(model, inputs, sites="text.*.resid_post", positions="image", top_k=1)
    parts = []
    for layer in lens.layers:
        try:
            words, probs = lens.word_grid(layer)
        except InputError:
            continue  # query tokens stand for no place in the image
        row, col = np.indices(words.shape)
        parts.append(
            pd.DataFrame(
                {
                    "example": item.example.id,
                    "tower": "text",
                    "layer": layer,
                    "site": f"text.{layer}.resid_post",
                    "row": row.ravel(),
                    "col": col.ravel(),
                    "word": words.ravel().astype(str),
                    "metric": "top_prob",
                    "value": probs.ravel(),
                    "unit": "probability",
                }
            )
        )
    empty = pd.DataFrame({"metric": [], "value": [], "row": [], "col": [], "word": [], "layer": []})
    return ResultTable(pd.concat(parts) if parts else empty, provenance)


def grids(table: ResultTable) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Words and probabilities by layer, as they lie over the image."""
    words, probs = {}, {}
    frame = table.frame
    for layer in sorted({int(number) for number in frame["layer"]}):
        order = frame[frame["layer"] == layer].sort_values(["row", "col"])
        shape = tuple(int(order[name].to_numpy().max()) + 1 for name in ("row", "col"))
        words[layer] = order["word"].to_numpy(object).reshape(shape)
        probs[layer] = order["value"].to_numpy(float).reshape(shape)
    return words, probs
