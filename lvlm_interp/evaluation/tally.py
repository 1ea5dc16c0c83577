"""Scores as functions of sums, so that one bootstrap over images serves every benchmark.

A score such as F1 or CHAIR is a function of a few sums over answers. Here the answers of an image
are summed first, whole images are then drawn with replacement, and the function is taken of each
draw at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lvlm_interp.errors import UsageError
from lvlm_interp.stats import rate
from lvlm_interp.stats.estimate import Estimate
from lvlm_interp.stats.resampling import bootstrap_totals, prepare

__all__ = ["Counts", "Formula", "Share", "estimates", "over", "rounded"]

Counts = Mapping[str, np.ndarray]
Formula = Callable[[Counts], np.ndarray]
"""Takes arrays of sums by name, one entry per draw, gives one value per draw."""


def over(first: Any, second: Any) -> np.ndarray:
    """The quotient; NaN where the second is zero."""
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(second == 0, math.nan, first / np.where(second == 0, 1, second))


@dataclass(frozen=True)
class Share:
    """A formula that is a share of answers: one column of 0 and 1 over another.

    Its interval is Wilson's on the effective number of answers, so that 0 of 20 still has a width.
    """

    top: str
    bottom: str

    def __call__(self, counts: Counts) -> np.ndarray:
        """The share of each draw."""
        return over(counts[self.top], counts[self.bottom])


def rounded(values: Any, digits: int) -> np.ndarray:
    """Rounded as Python rounds, by the decimal that is printed; numpy multiplies first."""
    return np.vectorize(lambda value: round(float(value), digits), otypes=[float])(values)


def estimates(
    columns: Mapping[str, Sequence[float] | np.ndarray],
    groups: Sequence[Any],
    formulas: Mapping[str, Formula],
    *,
    n: Mapping[str, int] | None = None,
    bounds: Callable[[str], tuple[float, float]] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Each score with a 95% interval from a bootstrap over groups.

    Args:
        columns: What is summed, one value per answer.
        groups: Image of each answer.
        formulas: Score by name.
        n: Answers that a score rests on, where it is not all of them.
        bounds: The least and the largest value that a score can have, by its name.
        n_resamples: Draws; 0 gives no interval.
        seed: Of the draws.

    Raises:
        UsageError: Columns of different lengths.
    """
    names = list(columns)
    rows = np.array([np.asarray(columns[name], dtype=float) for name in names])
    if rows.ndim != 2 or rows.shape[1] != len(groups):
        raise UsageError(f"expected {len(groups)} values in each of the columns {names}")
    if not len(groups):
        return {name: Estimate(math.nan, math.nan, math.nan, 0) for name in formulas}
    _, index = prepare(np.zeros(len(groups)), list(groups))
    totals = np.stack([np.bincount(index, weights=row) for row in rows], axis=-1)
    found = {}
    for name, formula in formulas.items():
        size = len(groups) if n is None else n.get(name, len(groups))
        if isinstance(formula, Share) and n_resamples:
            found[name] = _share(formula, columns, groups)
            continue
        each = _estimate(totals, names, formula, size, n_resamples, seed)
        found[name] = each if bounds is None else _within(each, bounds(name))
    return found


def _share(
    formula: Share, columns: Mapping[str, Sequence[float] | np.ndarray], groups: Sequence[Any]
) -> Estimate:
    there = np.asarray(columns[formula.bottom], dtype=float) > 0
    values = np.asarray(columns[formula.top], dtype=float)[there]
    return rate(values, [group for group, keep in zip(groups, there, strict=True) if keep])


def _within(each: Estimate, bounds: tuple[float, float]) -> Estimate:
    low, high = (float(np.clip(value, *bounds)) for value in (each.low, each.high))
    return Estimate(each.estimate, low, high, each.n)


def _estimate(
    totals: np.ndarray, names: list[str], formula: Formula, n: int, n_resamples: int, seed: int
) -> Estimate:
    def function(sums: np.ndarray) -> Any:
        draws = np.atleast_2d(sums)  # formulas see arrays, also of the sums of all
        values = formula({name: draws[:, at] for at, name in enumerate(names)})
        return values if sums.ndim == 2 else values[0]

    if not n_resamples:
        return Estimate(float(function(totals.sum(axis=0))), math.nan, math.nan, n)
    return bootstrap_totals(totals, function, n, n_resamples, seed, 0.95, "percentile")
