"""Inside beside outside: what a probe reads from the activations, by what the model says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lvlm_interp.errors import UsageError
from lvlm_interp.evaluation.answers import Answers
from lvlm_interp.evaluation.tally import Formula, estimates, over
from lvlm_interp.results import Result, ResultTable

__all__ = ["Inside", "inside"]

_CELLS = {
    "knows_and_says": (True, True),
    "knows_not_says": (True, False),
    "says_without_knowing": (False, True),
    "neither": (False, False),
}


@dataclass(frozen=True, repr=False)
class Inside(Result):
    """Shares of the four cells per level, and the alignment of the level's features beside.

    `knows_not_says`: the probe, fitted on other images, is right and the answer is wrong.
    `alignment` is the mean of what was given for the level's examples.
    """


def inside(
    answers: Answers,
    probes: Mapping[str, bool] | pd.DataFrame,
    alignment: Mapping[str, float] | pd.DataFrame | None = None,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Inside:
    """Join answers, probe readings and alignment by the id of the example.

    Args:
        answers: The table; answers that say neither are left out.
        probes: Whether a probe that was fitted on other images reads the truth, by example id; or
            a frame with `example` and `right`.
        alignment: Any representational alignment by example id; or a frame with `example` and
            `value`.
        n_resamples: Draws of the bootstrap over images.
        seed: Of the draws.

    Raises:
        UsageError: No example is in both, or a reading is missing for some answers of a level.
    """
    frame = answers.table.frame
    frame = frame.assign(group=answers.groups())[frame["value"].notna()]
    reading = _by_example(probes, "right")
    beside = {} if alignment is None else _by_example(alignment, "value")
    read = frame[frame["example"].isin(list(reading))]
    if not len(read):
        raise UsageError("no example has both an answer and a probe's reading: ids must agree")
    says = read["value"].to_numpy() == 1
    knows = np.array([bool(reading[name]) for name in read["example"]])
    columns: dict[str, np.ndarray] = {}
    formulas: dict[str, Formula] = {}
    for level in read["level"].dropna().unique():
        mine = (read["level"] == level).to_numpy(dtype=float)
        columns[f"{level}:n"] = mine
        for name, (known, told) in _CELLS.items():
            columns[f"{level}:{name}"] = mine * (knows == known) * (says == told)
            formulas[f"{level}/{name}"] = lambda c, k=level, m=name: over(
                c[f"{k}:{m}"], c[f"{k}:n"]
            )
        values = np.array([float(beside.get(name, np.nan)) for name in read["example"]])
        there = ~np.isnan(values) * mine
        if there.any():
            columns[f"{level}:there"] = there
            columns[f"{level}:sum"] = np.nan_to_num(values) * there
            formulas[f"{level}/alignment"] = lambda c, k=level: over(c[f"{k}:sum"], c[f"{k}:there"])
    found = estimates(columns, list(read["group"]), formulas, n_resamples=n_resamples, seed=seed)
    rows = [
        {"level": key.split("/")[0], "metric": key.split("/")[1], "value": each.estimate,
         "low": each.low, "high": each.high, "n": int(columns[f"{key.split('/')[0]}:n"].sum())}
        for key, each in found.items()
    ]  # fmt: skip
    about = {**answers.table.provenance, "joined": len(read), "answers": len(frame)}
    return Inside(ResultTable(rows, about))


def _by_example(given: Mapping[str, Any] | pd.DataFrame, column: str) -> Mapping[str, Any]:
    if not isinstance(given, pd.DataFrame):
        return given
    for name in ("example", column):
        if name not in given:
            raise UsageError(
                f"expected a column {name!r}, got {', '.join(map(str, given.columns))}"
            )
    if given["example"].duplicated().any():
        raise UsageError("an example has more than one reading: choose a site and average first")
    return dict(zip(given["example"], given[column], strict=True))
