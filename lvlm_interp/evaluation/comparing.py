"""Runs beside each other: answers paired by question, and what the runs differ in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_interp.errors import UsageError
from lvlm_interp.evaluation.answers import Answers
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.stats import difference, rate

__all__ = ["Comparison", "compare"]

_MUST_AGREE = ("bench", "data", "limit", "data_hash", "images_hash", "decoding", "control")
"""Where two runs differ in one of these, a difference of scores is not one of models."""


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """Accuracy of each run per level and task, and its difference to the first run.

    Attributes:
        differs: What else than the model the runs differ in, by run.
    """

    differs: Mapping[str, Mapping[str, Any]]


def compare(
    runs: Mapping[str, Answers] | Sequence[str | os.PathLike[str]],
    *,
    anyway: bool = False,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare runs question by question.

    Args:
        runs: Tables by name, or folders of `evaluate`; the first is what the others are held
            against.
        anyway: Compare runs that differ in their prompt, lengths, decoding, questions or images;
            what they differ in is in the result either way.
        n_resamples: Draws of the bootstrap over images.
        seed: Of the draws.

    Returns:
        A row per run, task and level: `right` is the share of right answers among those that say
        something; `difference` that of the first run subtracted, over questions that both answer.

    Raises:
        UsageError: Fewer than two runs, no question in common, or runs that are not alike.
    """
    tables = dict(runs) if isinstance(runs, Mapping) else {str(p): _read(p) for p in runs}
    if len(tables) < 2:
        raise UsageError(f"expected at least two runs to compare, got {len(tables)}")
    names = list(tables)
    first = tables[names[0]]
    differs = {name: _differences(first, tables[name]) for name in names[1:]}
    unlike = {name: each for name, each in differs.items() if each}
    if unlike and not anyway:
        name, what = next(iter(unlike.items()))
        raise UsageError(
            f"{name} differs from {names[0]} in {', '.join(what)}: such runs do not compare; ask "
            "for it all the same (anyway), and the table says in what they differ."
        )
    rows = []
    for name in names:
        rows += _rows(name, first, tables[name], n_resamples, seed)
    about = {"runs": {name: dict(table.table.provenance) for name, table in tables.items()}}
    return Comparison(ResultTable(rows, about), differs)


def _read(path: str | os.PathLike[str]) -> Answers:
    place = Path(path)
    return Answers.read_parquet(place / "answers.parquet" if place.is_dir() else place)


def _differences(first: Answers, other: Answers) -> dict[str, Any]:
    one, two = first.table.provenance, other.table.provenance
    return {
        name: [one.get(name), two.get(name)]
        for name in _MUST_AGREE
        if one.get(name) != two.get(name)
    }


def _rows(
    name: str, first: Answers, other: Answers, n_resamples: int, seed: int
) -> list[dict[str, Any]]:
    mine = other.table.frame.assign(group=other.groups()).set_index("example")
    theirs = first.table.frame.set_index("example")
    common = mine.index.intersection(theirs.index)
    if not len(common):
        raise UsageError(f"{name} has no question in common with the first run")
    mine, theirs = mine.loc[common], theirs.loc[common]
    rows = []
    keys = mine.assign(level=mine["level"].fillna("all"), task=mine["task"])
    for task, level in sorted(set(zip(keys["task"], keys["level"], strict=True))):
        index = (keys["task"] == task) & (keys["level"] == level)
        a, b = mine.loc[index], theirs.loc[index]
        said = a["value"].notna().to_numpy()
        options: dict[str, Any] = {"n_resamples": n_resamples, "seed": seed}
        values = a["value"].to_numpy(dtype=float)
        found = {"right": rate(values[said], list(a["group"][said]))}
        both = said & b["value"].notna().to_numpy()
        if other is not first and both.any():
            pair = (values[both], b["value"].to_numpy(dtype=float)[both])
            found["difference"] = difference(*pair, list(a["group"][both]), **options)
        for metric, each in found.items():
            rows.append(
                {"run": name, "task": task, "level": level, "metric": metric,
                 "value": each.estimate, "low": each.low, "high": each.high, "n": each.n}
            )  # fmt: skip
    return rows
