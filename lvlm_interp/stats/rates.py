"""Intervals of proportions: of rows that vary together, of weighted rows, and of pairs of rows.

Exact or score intervals on an effective number of trials, so that none has width zero: what was
never seen in 37 scenes may still happen in one of ten.

References:
    Clopper and Pearson (1934), the exact interval. Korn and Graubard (1998), "Confidence intervals
    for proportions with small expected number of positive counts estimated from survey data": the
    effective number of trials, and its correction by t for few clusters. Wilson (1927), the score
    interval. Tango (1998), "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design". Zou and Donner (2008), "Construction of confidence
    limits about effect measures" (limits of a difference from those of its parts; for independent
    proportions Newcombe 1998).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import optimize
from scipy import stats as scipy_stats

from lvlm_interp.errors import UsageError
from lvlm_interp.stats.estimate import Estimate
from lvlm_interp.stats.resampling import Values, prepare, same_length

__all__ = [
    "is_binary",
    "paired_rate_difference",
    "proportion",
    "rate",
    "rate_difference",
    "wilson",
]


def wilson(successes: float, n: float, *, level: float = 0.95) -> Estimate:
    """Wilson's score interval for a proportion of independent trials.

    Args:
        successes: Number of successes, 0 to `n`.
        n: Number of trials; 0 gives an estimate of NaN.
        level: Coverage of the interval.

    Raises:
        UsageError: `successes` is not within 0 and `n`.
    """
    if not 0 <= successes <= n:
        raise UsageError(f"expected 0 <= successes <= n, got successes={successes}, n={n}")
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    z = float(scipy_stats.norm.ppf(0.5 + level / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and at n the closed form is exactly 0 and 1, up to rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(p, low, high, round(n))


def is_binary(values: Values) -> bool:
    """Whether there are values, and all of them are 0 or 1."""
    rows = np.asarray(values, dtype=float)
    return bool(rows.size) and bool(np.isin(rows, (0.0, 1.0)).all())


def rate(successes: Values, clusters: Values | None = None, *, level: float = 0.95) -> Estimate:
    """Share of true values, with Korn and Graubard's interval.

    It is the exact (Clopper-Pearson) interval on the effective number of trials, n / deff times the
    square of t(n - 1) / t(clusters - 1). deff is the linearised between-cluster variance over
    p (1 - p) / (n - 1), never below 1. Few clusters that hold the rarer answer say little about it,
    so it is averaged with its largest value, n / clusters, which counts as two of them; where all
    answers are alike the effective number is that of the clusters. With one row a cluster it is the
    exact interval of n trials.

    Args:
        successes: One boolean (or 0 and 1) per row.
        clusters: One label per row; None when rows are independent.
        level: Coverage of the interval.

    Raises:
        UsageError: A value other than 0 and 1, or lengths that differ.
    """
    values, index = prepare(successes, clusters)
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0)
    if not is_binary(values):
        raise UsageError(
            "expected booleans (or 0 and 1), got other values: use cluster_bootstrap for means"
        )
    p = float(values.mean())
    residuals = np.bincount(index, weights=values - p) / len(values)
    rarer = len(set(index[values == (p <= 0.5)]))
    return proportion(p, residuals, rarer, len(values), level=level)


def proportion(
    p: float,
    residuals: np.ndarray,
    rarer: int,
    n: float,
    *,
    rows: int | None = None,
    inflation: float = 1.0,
    level: float = 0.95,
) -> Estimate:
    """Korn and Graubard's interval of a proportion, from what its clusters add to it; see `rate`.

    Args:
        p: The proportion, within 0 and 1; it may be a weighted one.
        residuals: What each cluster adds to the estimate beyond its expectation; they sum to zero.
        rarer: How many clusters hold the rarer answer.
        n: Number of independent trials it is worth at most.
        rows: What `Estimate.n` says; `n` by default.
        inflation: Factor on the variance that the clusters cannot show.
        level: Coverage of the interval.
    """
    rows = round(n) if rows is None else rows
    n_clusters = len(residuals)
    if n_clusters == 1 and n > 1:
        return Estimate(p, math.nan, math.nan, rows)
    largest = max(1.0, n / n_clusters)
    deff, wider = largest, 1.0
    if n_clusters > 1 and 0 < p < 1:
        deff = max(1.0, between(residuals) / (p * (1 - p) / max(n - 1, 1)))
        deff = (rarer * deff + 2 * max(deff, largest)) / (rarer + 2)
        wider = few_clusters(n, n_clusters, level)
    low, high = _exact(p, n / deff / wider**2 / inflation, level)
    return Estimate(p, low, high, rows)


def between(residuals: np.ndarray) -> float:
    """Variance of a sum over clusters of residuals that sum to zero."""
    n = len(residuals)
    return n / (n - 1) * float(residuals @ residuals) if n > 1 else math.nan


def few_clusters(n: float, n_clusters: int, level: float) -> float:
    """t(clusters - 1) / t(n - 1): what a variance from few clusters costs an interval."""
    tail = 0.5 + level / 2
    rows = scipy_stats.t.ppf(tail, max(n - 1, 1))
    return max(1.0, float(scipy_stats.t.ppf(tail, n_clusters - 1) / rows))


def paired_rate_difference(
    first: Values, second: Values, clusters: Values | None = None, *, level: float = 0.95
) -> Estimate:
    """Difference of two shares over the same rows, with Tango's score interval.

    Only rows in which the two sides differ count. The number of rows is the effective one, as in
    `rate`, with the variance of the mean difference in place of that of the share, and the clusters
    that hold such rows in place of those with the rarer answer.

    Args:
        first: One boolean (or 0 and 1) per row, for example errors after an intervention.
        second: Its partner in the same row, for example errors before it.
        clusters: One label per row; None when rows are independent.
        level: Coverage of the interval.

    Raises:
        UsageError: A value other than 0 and 1, or lengths that differ.
    """
    same_length(first, second)
    gaps, index = prepare(np.asarray(first, float) - np.asarray(second, float), clusters)
    n = len(gaps)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    if not (is_binary(first) and is_binary(second)):
        raise UsageError(
            "expected booleans (or 0 and 1) on both sides, got other values: use difference"
        )
    mean, n_clusters = float(gaps.mean()), int(index.max()) + 1
    if n_clusters == 1 and n > 1:
        return Estimate(mean, math.nan, math.nan, n)
    variance = between(np.bincount(index, weights=gaps - mean) / n)
    independent = float(np.mean(gaps**2) - mean**2) / max(n - 1, 1)
    deff, wider = n / n_clusters, 1.0
    if independent > 0:
        found, differ = max(1.0, variance / independent), len(set(index[gaps != 0]))
        deff = (differ * found + 2 * max(found, deff)) / (differ + 2)
        wider = few_clusters(n, n_clusters, level)
    effective = n / deff / wider**2
    up, down = float(np.mean(gaps > 0)), float(np.mean(gaps < 0))
    low, high = _tango(up * effective, down * effective, effective, level)
    return Estimate(mean, low, high, n)


def rate_difference(
    first: Values,
    second: Values,
    clusters: Values | None = None,
    second_clusters: Values | None = None,
    *,
    level: float = 0.95,
) -> Estimate:
    """Difference of two shares over rows that do not pair, from the limits of each share.

    Both limits come from `rate`. Where clusters are on both sides, the correlation of the two
    shares over them narrows the interval, by no more than one disagreeing cluster at each end would
    allow (1 - 2 / clusters).

    Args:
        first: One boolean (or 0 and 1) per row.
        second: Likewise.
        clusters: Labels of the rows of `first`; None when all rows are independent.
        second_clusters: Labels of the rows of `second`.
        level: Coverage of the interval.

    Returns:
        The difference; `n` counts the rows of `first`.

    Raises:
        UsageError: A value other than 0 and 1, or lengths that differ.
    """
    one, other = rate(first, clusters, level=level), rate(second, second_clusters, level=level)
    gap = one.estimate - other.estimate
    r = 0.0
    if clusters is not None and second_clusters is not None and len(first) and len(second):
        r = _correlation(first, second, clusters, second_clusters)
    down, up = one.estimate - one.low, one.high - one.estimate
    other_down, other_up = other.estimate - other.low, other.high - other.estimate
    low = gap - math.sqrt(max(0.0, down**2 + other_up**2 - 2 * r * down * other_up))
    high = gap + math.sqrt(max(0.0, up**2 + other_down**2 - 2 * r * up * other_down))
    return Estimate(gap, max(-1.0, low), min(1.0, high), one.n)


def _correlation(first: Values, second: Values, clusters: Values, second_clusters: Values) -> float:
    sides = (np.asarray(first, float), np.asarray(second, float))
    _, index = prepare(np.zeros(len(first) + len(second)), [*clusters, *second_clusters])
    n_clusters = int(index.max()) + 1
    parts = (index[: len(first)], index[len(first) :])
    one, other = (
        np.bincount(part, weights=side - side.mean(), minlength=n_clusters)
        for side, part in zip(sides, parts, strict=True)
    )
    scale = math.sqrt(float(one @ one) * float(other @ other))
    if scale == 0:
        return 0.0
    bound = 1 - 2 / n_clusters
    return float(np.clip(one @ other / scale, -bound, bound))


def _exact(p: float, n: float, level: float) -> tuple[float, float]:
    """Clopper and Pearson's limits; counts need not be whole."""
    tail, x = 0.5 - level / 2, p * n
    low = 0.0 if p == 0 else float(scipy_stats.beta.ppf(tail, x, n - x + 1))
    high = 1.0 if p == 1 else float(scipy_stats.beta.ppf(1 - tail, x + 1, n - x))
    return low, high


def _tango(up: float, down: float, n: float, level: float) -> tuple[float, float]:
    """Limits of (up - down) / n: where the score statistic of Tango (1998) eq. 8 is z and -z."""
    z = float(scipy_stats.norm.ppf(0.5 + level / 2))

    def score(delta: float) -> float:
        b = -up - down + (2 * n - up + down) * delta
        c = -down * delta * (1 - delta)
        q = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        return (up - down - n * delta) / math.sqrt(max(variance, 1e-300))

    edge = 1 - 1e-9

    def root(value: float) -> float:
        if score(-edge) <= value:
            return -1.0
        if score(edge) >= value:
            return 1.0
        found: Any = optimize.brentq(lambda delta: score(delta) - value, -edge, edge)
        return float(found)

    return root(z), root(-z)
