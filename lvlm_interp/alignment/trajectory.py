"""`stages` and `compare`: representation beside behaviour, through training and across models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lvlm_interp.alignment.measured import ALL, Setting, measured
from lvlm_interp.data.examples import Example
from lvlm_interp.data.sources import data_hash
from lvlm_interp.errors import UsageError
from lvlm_interp.models.identity import weight_hash
from lvlm_interp.models.loading import load_model
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.results import Result, ResultTable, provenance
from lvlm_interp.stats import benjamini_hochberg

__all__ = ["SHIPPED", "Trajectory", "compare", "stages"]

SHIPPED = (
    "scenes/stages/language",
    "scenes/stages/vision",
    "scenes/stages/adapter",
    "scenes/stages/end-to-end",
    "scenes/stages/spatial",
    "scenes",
    "scenes-balanced",
)
"""The shipped checkpoints in the order of training; the last two both follow `spatial`."""


@dataclass(frozen=True, repr=False)
class Trajectory(Result):
    """Representation and behaviour of several models.

    Attributes:
        table: Rows of `metric` by `model`, `order`, `condition`, `level`, `site`, `layer`, `head`:
            calibrated similarities (with `low, high, p, score, threshold, null` and, inside the
            classes of a label, `p_within, ...`), cosines, `accuracy`, `text_accuracy` (the
            description in place of the image), `cost` and `parameters`.
        models: Their names, in order.
    """

    models: tuple[str, ...]

    def overview(self, condition: str = ALL) -> pd.DataFrame:
        """One row per model: similarities where the image enters and where it leaves, behaviour.

        `_in` is the first site, `_out` the last one.
        """
        frame = self.table.frame
        frame = frame[frame["level"].isna() & frame["head"].isna()]
        frame = frame[frame["condition"].isna() | (frame["condition"] == condition)]
        sites = list(frame["site"].dropna().unique())
        rows = []
        for model in self.models:
            part, row = frame[frame["model"] == model], {"model": model}
            for metric in part["metric"].unique():
                own = part[part["metric"] == metric].set_index("site", drop=False)["value"]
                if own.index.notna().any():
                    row |= {f"{metric}_in": own[sites[0]], f"{metric}_out": own[sites[-1]]}
                else:
                    row[str(metric)] = own.iloc[0]
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def sentence(self) -> str:
        """Where image and description first agree, and how answers are there and at their best."""
        agree, right = self._first_similar("cka"), self._of("accuracy").set_index("model")
        if agree is None:
            return "In none of these models does CKA of image and description pass its null."
        text = f"CKA of image and description first passes its null at {agree}"
        if agree not in right.index:
            return f"{text}."
        there, top = (
            right.loc[[agree]].iloc[0],
            right.iloc[int(np.argmax(right["value"].to_numpy()))],
        )
        return (
            f"{text}, where {_share(there)} of the answers are right; the most are right at "
            f"{top.name}: {_share(top)}."
        )

    def _of(self, metric: str) -> pd.DataFrame:
        frame = self.table.frame
        part = frame[(frame["metric"] == metric) & (frame["condition"] == ALL)]
        return part[part["level"].isna()].sort_values("order")

    def _first_similar(self, metric: str) -> str | None:
        for order, part in self._of(metric).groupby("order"):
            if (benjamini_hochberg(part["p"].to_numpy()) <= 0.05).any():
                return self.models[int(order)]  # pyright: ignore[reportArgumentType]
        return None


def _share(row: pd.Series) -> str:
    return f"{row['value']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"


def stages(
    checkpoints: Sequence[str | Path],
    examples: Sequence[Example],
    *,
    names: Sequence[str] | None = None,
    **setting: Any,
) -> Trajectory:
    """How alignment comes about: the checkpoints of one training run, in order.

    Args:
        checkpoints: Folders or shipped names, such as `SHIPPED`; any run's checkpoints work.
        examples: With their descriptions (label `caption`), and right answers for behaviour.
        names: What the checkpoints are called; the last part of their paths by default.
        setting: Fields of `Setting`: `condition="trigger"` tells conditions apart, `heads=True`
            with `sites="text.*.z"` measures each head.

    Raises:
        ModelError: A checkpoint cannot be loaded.
        InputError: An example has no description.
        UsageError: No checkpoints, or names that are not as many.
    """
    found = [Path(str(each)).name for each in checkpoints] if names is None else list(names)
    return _run(list(checkpoints), found, examples, Setting(**setting))


def compare(
    models: Sequence[LVLM | str | Path],
    examples: Sequence[Example],
    *,
    names: Sequence[str] | None = None,
    **setting: Any,
) -> Trajectory:
    """Architectures side by side, each on the tokens that it has for the image.

    Args:
        models: Models, folders, or names.
        examples: As for `stages`.
        names: What they are called.
        setting: As for `stages`. Models without image tokens in the sequence (cross-attention) have
            no `image_mean` there: name other positions with `between`.

    Raises:
        ModelError: A model cannot be loaded.
        UsageError: As `stages`.
    """
    found = (
        [each.name if isinstance(each, LVLM) else Path(str(each)).name for each in models]
        if names is None
        else list(names)
    )
    return _run(list(models), found, examples, Setting(**setting))


def _run(
    models: Sequence[Any], names: list[str], examples: Sequence[Example], setting: Setting
) -> Trajectory:
    if not models or len(names) != len(models) or len(set(names)) != len(names):
        raise UsageError(
            f"expected at least one model and a name for each, all different, got {len(models)} "
            f"models and the names {', '.join(names) or '(none)'}"
        )
    rows, hashes = [], []
    for order, (each, name) in enumerate(zip(models, names, strict=True)):
        model = each if isinstance(each, LVLM) else load_model(each)
        hashes.append(weight_hash(model))
        rows += [
            row | {"model": name, "order": order} for row in measured(model, examples, setting)
        ]
    frame = pd.DataFrame(rows)
    for column in ("condition", "level", "p_within"):
        if column not in frame:
            frame[column] = None
    origin = provenance(
        data_hash=data_hash(examples),
        seed=setting.seed,
        models=dict(zip(names, hashes, strict=True)),
    )
    return Trajectory(ResultTable(frame, origin), tuple(names))
