"""Step 1: what the model answers, item by item, and the same under an edit.

An answer is an error when the model prefers the foil to the truth (forced choice of the first
answer token, so that models which begin with "The" are comparable); `free_error` is when the most
likely token of all is not the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from lvlm_interp.diagnose.items import Item
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM, Edit
from lvlm_interp.results import ResultTable


@dataclass(frozen=True, eq=False)
class Batch:
    """Items that share a forward, prepared once.

    Attributes:
        inputs: The model's inputs, kept in the host's memory: only the batch that runs is on the
            device.
        index: Place of each row among all items.
        truth, foil: First-token ids of the two answers; shape `batch`.
    """

    inputs: Inputs
    index: list[int]
    truth: torch.Tensor
    foil: torch.Tensor


def batches_of(model: LVLM, items: Sequence[Item], batch_size: int) -> list[Batch]:
    """Items in batches of like length, so that little is padded."""
    ids = {word: model.answer_id(word) for item in items for word in (item.truth, item.foil)}
    order = sorted(range(len(items)), key=lambda i: (len(items[i].example.prompt), i))
    batches = []
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        rows = [items[i] for i in index]
        batches.append(
            Batch(
                model.prepare([row.example for row in rows]).to("cpu"),
                index,
                torch.tensor([ids[row.truth] for row in rows], device=model.device),
                torch.tensor([ids[row.foil] for row in rows], device=model.device),
            )
        )
    return batches


def answer(
    model: LVLM,
    items: Sequence[Item],
    batches: Sequence[Batch],
    edits: Mapping[Any, Edit] | None = None,
    progress: str | None = None,
) -> pd.DataFrame:
    """What the model says to each item.

    Args:
        model: The model.
        items: All items, in order.
        batches: From `batches_of` of these items, or some of them.
        edits: Held open while it answers.
        progress: Text of a progress bar; none by default.

    Returns:
        One row per item that was in a batch: `item, error, free_error, logit_diff`.
    """
    rows = []
    with model.edit(edits) if edits else nullcontext():
        for batch in tqdm(batches, desc=progress, disable=progress is None):
            logits = model.last_logits(batch.inputs.to(model.device)).float()
            at = torch.arange(len(batch.index))
            gap = logits[at, batch.truth] - logits[at, batch.foil]
            free = logits.argmax(-1) != batch.truth
            rows += zip(batch.index, gap.tolist(), free.tolist(), strict=True)
    frame = pd.DataFrame(rows, columns=["item", "logit_diff", "free_error"]).sort_values("item")
    frame["error"] = (frame["logit_diff"] <= 0).astype(float)
    frame["free_error"] = frame["free_error"].astype(float)
    return frame.reset_index(drop=True)


def columns_of(items: Sequence[Item]) -> pd.DataFrame:
    """What a table says of each item."""
    return pd.DataFrame(
        {
            "example": [item.example.id for item in items],
            "pair": [item.pair for item in items],
            "group": [item.group for item in items],
            "level": [item.level for item in items],
            "condition": [item.condition for item in items],
            "source": [item.source for item in items],
            "half": [item.half for item in items],
            "form": [item.form for item in items],
        }
    )


def behaviour(
    model: LVLM, items: Sequence[Item], batches: Sequence[Batch], provenance: Mapping[str, Any]
) -> ResultTable:
    """The table of step 1: `error`, `free_error` (0 or 1) and `logit_diff` of every item."""
    said = answer(model, items, batches, progress="behaviour")
    wide = columns_of(items).assign(
        **{name: said[name] for name in ("error", "free_error", "logit_diff")}
    )
    ids = [name for name in wide.columns if name not in ("error", "free_error", "logit_diff")]
    long = wide.melt(id_vars=ids, var_name="metric", value_name="value")
    long["unit"] = long["metric"].map(
        {"error": "share", "free_error": "share", "logit_diff": "logits"}
    )
    return ResultTable(long, provenance)
