"""Intervals for rates, means, ratios and differences of clustered rows.

References:
    Wilson (1927), the score interval. Efron (1987), "Better bootstrap confidence intervals" (BCa).
    Field and Welsh (2007), "Bootstrapping clustered data". Korn and Graubard (1998), intervals for
    proportions with few expected counts (the effective sample size in `rate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats as scipy_stats

from lvlm_interp.errors import UsageError
from lvlm_interp.stats.estimate import Estimate
from lvlm_interp.stats.resampling import (
    Method,
    Values,
    bootstrap_rows,
    bootstrap_totals,
    first_over_second,
    prepare,
    same_length,
    sums,
)

__all__ = ["cluster_bootstrap", "difference", "mean_of_ratios", "rate", "ratio_of_means", "wilson"]


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


def rate(successes: Values, clusters: Values | None = None, *, level: float = 0.95) -> Estimate:
    """Share of true values, with a Wilson interval on the effective number of trials.

    The bootstrap gives an interval of width zero when all answers are alike; this one does not. The
    effective number is n / deff, deff being the linearised between-cluster variance over p (1 - p)
    / n, never below 1; where all answers are alike it is the number of clusters.

    Args:
        successes: One boolean (or 0 and 1) per row.
        clusters: One label per row; None when rows are independent.
        level: Coverage of the interval.

    Raises:
        UsageError: A value other than 0 and 1, or lengths that differ.
    """
    values, index = prepare(successes, clusters)
    if not np.isin(values, (0.0, 1.0)).all():
        raise UsageError(
            "expected booleans (or 0 and 1), got other values: use cluster_bootstrap for means"
        )
    if not len(values):
        return Estimate(math.nan, math.nan, math.nan, 0)
    n, p = len(values), float(values.mean())
    n_clusters = int(index.max()) + 1
    effective = float(n_clusters)
    if n_clusters > 1 and 0 < p < 1:
        residuals = np.bincount(index, weights=values - p)
        variance = n_clusters / (n_clusters - 1) * float(residuals @ residuals) / n**2
        effective = n / max(1.0, variance / (p * (1 - p) / n))
    if n_clusters == 1 and n > 1:
        return Estimate(p, math.nan, math.nan, n)
    interval = wilson(p * effective, effective, level=level)
    return Estimate(p, interval.low, interval.high, n)


def cluster_bootstrap(
    values: Values,
    clusters: Values | None = None,
    *,
    statistic: Callable[[np.ndarray], float] | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: Method = "percentile",
) -> Estimate:
    """Mean (or another statistic) with an interval that resamples whole clusters.

    Args:
        values: One row per observation; 1-D for the mean, any leading axis for `statistic`.
        clusters: One label per row; None when rows are independent.
        statistic: Takes the resampled rows, gives one number. None is the mean, which is
            vectorised.
        n_resamples: Bootstrap draws.
        seed: Of the draws.
        level: Coverage of the interval.
        method: `"percentile"`, or `"bca"` (bias-corrected and accelerated, jackknife over
            clusters).

    Returns:
        The estimate on all rows. With one cluster the bounds are NaN: there is nothing to resample.

    Raises:
        UsageError: Lengths that differ, values that are not finite, or an unknown method.
    """
    rows, index = prepare(values, clusters)
    if statistic is not None:
        return bootstrap_rows(rows, index, statistic, n_resamples, seed, level, method)
    totals = np.stack([sums(rows, index), np.bincount(index).astype(float)], axis=-1)
    return bootstrap_totals(totals, first_over_second, len(rows), n_resamples, seed, level, method)


def ratio_of_means(
    numerator: Values,
    denominator: Values,
    clusters: Values | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: Method = "percentile",
) -> Estimate:
    """mean(numerator) / mean(denominator): rows weigh by their denominator.

    Steadier than `mean_of_ratios` when some denominators are near zero. A resample whose
    denominator sums to zero is left out of the interval.

    Args:
        numerator: One value per row.
        denominator: One value per row.
        clusters: One label per row; None when rows are independent.
        n_resamples: Bootstrap draws.
        seed: Of the draws.
        level: Coverage of the interval.
        method: `"percentile"` or `"bca"`.

    Raises:
        UsageError: Lengths that differ, values that are not finite, or an unknown method.
    """
    top, index = prepare(numerator, clusters)
    bottom, _ = prepare(denominator, clusters)
    same_length(top, bottom)
    totals = np.stack([sums(top, index), sums(bottom, index)], axis=-1)
    return bootstrap_totals(totals, first_over_second, len(top), n_resamples, seed, level, method)


def mean_of_ratios(
    numerator: Values,
    denominator: Values,
    clusters: Values | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: Method = "percentile",
) -> Estimate:
    """Mean over rows of numerator / denominator: rows weigh alike.

    Args:
        numerator: One value per row.
        denominator: One value per row, none of them zero.
        clusters: One label per row; None when rows are independent.
        n_resamples: Bootstrap draws.
        seed: Of the draws.
        level: Coverage of the interval.
        method: `"percentile"` or `"bca"`.

    Raises:
        UsageError: A denominator of zero, lengths that differ, or values that are not finite.
    """
    top, bottom = np.asarray(numerator, dtype=float), np.asarray(denominator, dtype=float)
    same_length(top, bottom)
    if (bottom == 0).any():
        raise UsageError(
            f"{int((bottom == 0).sum())} of {len(bottom)} denominators are zero: "
            "drop those rows or use ratio_of_means"
        )
    ratios = top / bottom
    return cluster_bootstrap(
        ratios, clusters, n_resamples=n_resamples, seed=seed, level=level, method=method
    )


def difference(
    first: Values,
    second: Values,
    clusters: Values | None = None,
    second_clusters: Values | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: Method = "percentile",
) -> Estimate:
    """mean(first) - mean(second), both resampled with the same clusters.

    What a cluster contributes to both sides moves together, so the interval is as narrow as the
    pairing allows. The two sides may have different numbers of rows, also within a cluster.

    Args:
        first: One value per row, for example errors after an intervention.
        second: One value per row, for example errors before it.
        clusters: Labels of the rows of `first`; None pairs row i with row i.
        second_clusters: Labels of the rows of `second`; None when they are those of `first`.
        n_resamples: Bootstrap draws.
        seed: Of the draws.
        level: Coverage of the interval.
        method: `"percentile"` or `"bca"`.

    Returns:
        The difference; `n` counts the rows of `first`.

    Raises:
        UsageError: Lengths that differ, or values that are not finite.
    """
    if second_clusters is None:
        same_length(first, second)
        second_clusters = clusters = np.arange(len(first)) if clusters is None else clusters
    elif clusters is None:
        raise UsageError("expected clusters for both sides, got second_clusters alone")
    rows, index = prepare(
        np.concatenate([np.asarray(first, float), np.asarray(second, float)]),
        [*clusters, *second_clusters],
    )
    is_first = np.arange(len(rows)) < len(first)
    totals = np.stack(
        [sums(column, index) for side in (is_first, ~is_first) for column in (rows * side, side)],
        axis=-1,
    )

    def gap(totals: np.ndarray) -> np.ndarray:
        return np.asarray(first_over_second(totals[..., :2]) - first_over_second(totals[..., 2:]))

    return bootstrap_totals(totals, gap, len(first), n_resamples, seed, level, method)
