"""Calibrated similarity: is it more than rows that do not belong together give?

The test of the Aristotelian view (arXiv 2602.14486, algorithms 1 and 2): rows of y are permuted K
times; tau is the ceil((1 - alpha)(K + 1))-th smallest of the observed and the K permuted values;
score = max(0, (s - tau) / (max - tau)); p = (1 + #{null >= s}) / (K + 1), ties counted. Where the
maximum over pairs of layers is taken, one permutation moves all layers, and the maximum of each
draw makes the null. Classes (the number of objects, a trigger) can carry all of a global agreement,
so rows are permuted inside classes too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from lvlm_interp.alignment.arrays import Rows, paired
from lvlm_interp.alignment.measures import Measure, Metric, measure_of
from lvlm_interp.errors import UsageError

__all__ = ["ALPHA", "Calibrated", "calibrated", "class_nulls", "judge", "permutations"]

ALPHA = 0.05
Classes = Sequence[Any] | np.ndarray | pd.Series
Layers = Sequence[Rows]

_MOST_CLASSES = 12
_LEAST_MEMBERS = 5
_MOVABLE = 0.9


@dataclass(frozen=True)
class Calibrated:
    """A similarity beside its permutation null.

    Attributes:
        score: 0 where the value does not pass the threshold, 1 at the metric's maximum.
        raw: The metric itself; the maximum over layers where there are several.
        threshold: Of the null, in the metric's unit.
        p: Of the permutation test, one-sided.
        n: Pairs.
        null: The permuted values, `permutation`.
        best: Which layers of x and y have the maximum; None for single matrices.
        within: The same judged by permutations inside the classes of each label.
    """

    score: float
    raw: float
    threshold: float
    p: float
    n: int
    null: Float[np.ndarray, " permutation"] = field(repr=False)
    best: tuple[int, int] | None = None
    within: Mapping[str, Calibrated] = field(default_factory=dict, repr=False)


def permutations(
    n: int, n_permutations: int = 200, seed: int = 0, classes: Classes | None = None
) -> Int[np.ndarray, "permutation n"]:
    """Random orders of n rows, uniform; inside classes where these are given.

    Raises:
        UsageError: No permutations, or not one class per row, or classes that fix every row.
    """
    if n_permutations < 1:
        raise UsageError(f"expected at least one permutation, got {n_permutations}")
    rng = np.random.default_rng(seed)
    if classes is None:
        return rng.permuted(np.tile(np.arange(n), (n_permutations, 1)), axis=1)
    codes = pd.factorize(pd.Series(np.asarray(classes, dtype=object)), use_na_sentinel=False)[0]
    if len(codes) != n:
        raise UsageError(f"expected one class per row, got {len(codes)} for {n} rows")
    if np.bincount(codes).max() < 2:
        raise UsageError("every class has one member, so no permutation inside classes exists")
    found = np.tile(np.arange(n), (n_permutations, 1))
    for code in np.unique(codes):
        members = np.flatnonzero(codes == code)
        found[:, members] = rng.permuted(found[:, members], axis=1)
    return found


def judge(
    raw: float,
    null: Float[np.ndarray, " permutation"],
    *,
    best: float = 1.0,
    sign: int = 1,
    alpha: float = ALPHA,
) -> tuple[float, float, float]:
    """Score, threshold and p of a value beside its null.

    Args:
        raw: Observed.
        null: Permuted.
        best: The metric's largest value.
        sign: -1 where small values mean agreement.
        alpha: Of the threshold.
    """
    observed, drawn, top = sign * raw, sign * np.asarray(null, dtype=float), sign * best
    if math.isnan(observed) or np.isnan(drawn).any():
        return math.nan, math.nan, math.nan
    both = np.sort(np.append(drawn, observed))
    # Rounded first: 0.95 * 201 may come out a hair above a whole number.
    rank = math.ceil(round((1 - alpha) * len(both), 9))
    tau = float(both[min(max(rank, 1), len(both)) - 1])
    score = max(0.0, (observed - tau) / (top - tau)) if top > tau else 0.0
    p = (1 + int((drawn >= observed).sum())) / len(both)
    return min(score, 1.0), sign * tau, p


def calibrated(
    metric: Metric,
    x: Rows | Layers,
    y: Rows | Layers,
    classes: Classes | Mapping[str, Classes] | None = None,
    n_permutations: int = 200,
    seed: int = 0,
    *,
    alpha: float = ALPHA,
    orders: Int[np.ndarray, "permutation n"] | None = None,
    **options: Any,
) -> Calibrated:
    """A similarity with its score, threshold and p-value.

    Args:
        metric: A name such as `"mutual_knn"` or `"cka"`, its function, or any function of two
            matrices that is larger where they agree (its maximum taken as 1).
        x: Features `n d`, or a list of them, one per layer: then the maximum over pairs of layers
            is taken, of the observed and of every permuted value.
        y: Features of the same rows, or a list of them.
        classes: Labels of the rows, to permute inside classes only; or a mapping from names to such
            labels: then the free null is given, and one inside the classes of each in `within`.
        n_permutations: K.
        seed: Of the permutations.
        alpha: Of the threshold.
        orders: Permutations to use instead of random ones; row i of y becomes `y[order[i]]`.
        options: Of the metric, such as `k=10` or `debiased=False`.

    Raises:
        UsageError: Rows that do not pair, an unknown metric or option, classes that fix every row.
    """
    measure = measure_of(metric, **options)
    left, right, single = _states(measure, x, y)
    n = len(x) if single else len(x[0])
    by_label = classes if isinstance(classes, Mapping) else {}
    inside = None if isinstance(classes, Mapping) else classes
    observed = _table(measure, left, right)
    place = (
        np.unravel_index(int(np.nanargmax(measure.sign * observed)), observed.shape)
        if (np.isfinite(observed).any())
        else (0, 0)
    )
    raw = float(observed[place])
    best = None if single else (int(place[0]), int(place[1]))

    def against(drawn: np.ndarray) -> Calibrated:
        null = np.array([_extreme(measure, left, right, order) for order in drawn])
        score, tau, p = judge(raw, null, best=measure.best, sign=measure.sign, alpha=alpha)
        return Calibrated(score, raw, tau, p, n, null, best)

    free = against(permutations(n, n_permutations, seed, inside) if orders is None else orders)
    within = {
        name: against(permutations(n, n_permutations, seed, labels))
        for name, labels in by_label.items()
    }
    return Calibrated(free.score, raw, free.threshold, free.p, n, free.null, best, within)


def _states(measure: Measure, x: Any, y: Any) -> tuple[list[Any], list[Any], bool]:
    single = not _is_layers(x) and not _is_layers(y)
    xs, ys = (list(side) if _is_layers(side) else [side] for side in (x, y))
    if not xs or not ys:
        raise UsageError("expected at least one layer on each side, got none")
    for side in (xs, ys):
        for layer in side:
            paired(layer, xs[0])
    prepared = [[measure.prepare(paired(each, each)[0]) for each in side] for side in (xs, ys)]
    return prepared[0], prepared[1], single


def _is_layers(side: Any) -> bool:
    return isinstance(side, list | tuple) and len(side) > 0 and np.ndim(side[0]) == 2


def _table(measure: Measure, left: list[Any], right: list[Any]) -> Float[np.ndarray, "x y"]:
    if measure.relation:
        flat = [np.stack([each.ravel() for each in side]) for side in (left, right)]
        values = flat[0] @ flat[1].T
        return values / (len(left[0]) * measure.per_row) if measure.per_row else values
    return np.array([[measure.value(a, b) for b in right] for a in left])


def _extreme(measure: Measure, left: list[Any], right: list[Any], order: np.ndarray) -> float:
    """The best value over the layers when y is permuted, all of its layers alike."""
    moved = _table(measure, left, [measure.move(each, order) for each in right])
    return float(measure.sign * np.max(measure.sign * moved))


def class_nulls(labels: pd.DataFrame, skip: Sequence[str] = ()) -> dict[str, pd.Series]:
    """The labels of examples that a null can be permuted inside of.

    A label is taken that has 2 to 12 values, and of whose rows at least nine in ten are in classes
    of five or more; labels that split the rows alike are taken once.

    Args:
        labels: One row per example.
        skip: Columns to leave out.
    """
    found: dict[str, pd.Series] = {}
    seen: set[bytes] = set()
    for name, column in _candidates(labels, skip):
        codes = pd.factorize(column.astype(object), use_na_sentinel=False)[0]
        sizes = np.bincount(codes)
        movable = sizes[sizes >= _LEAST_MEMBERS].sum() / len(codes)
        if 2 <= len(sizes) <= _MOST_CLASSES and movable >= _MOVABLE:
            if codes.tobytes() not in seen:
                seen.add(codes.tobytes())
                found[name] = column
    return found


def _candidates(labels: pd.DataFrame, skip: Sequence[str]) -> Iterator[tuple[str, pd.Series]]:
    for name in labels.columns:
        column = labels[name]
        if name not in skip and not pd.api.types.is_float_dtype(column.dtype):
            yield str(name), column
