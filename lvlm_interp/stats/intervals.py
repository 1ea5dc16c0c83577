"""Intervals for means, ratios and differences of clustered rows.

References:
    Efron (1987), "Better bootstrap confidence intervals" (BCa). Field and Welsh (2007),
    "Bootstrapping clustered data". Hesterberg (2015), "What teachers should know about the
    bootstrap", section 4.2: percentile intervals of few rows are too narrow, by the factor that the
    t-interval corrects. Fieller (1954), "Some problems in interval estimation" (ratios).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy import stats as scipy_stats

from lvlm_interp.errors import UsageError
from lvlm_interp.stats.estimate import Estimate
from lvlm_interp.stats.rates import is_binary, paired_rate_difference, rate, rate_difference
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

__all__ = ["cluster_bootstrap", "difference", "mean", "mean_of_ratios", "ratio_of_means"]


def mean(
    values: Values,
    clusters: Values | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Mean of values of any kind: `rate` where all are 0 or 1, else `cluster_bootstrap`.

    Args:
        values: One per row.
        clusters: One label per row; None when rows are independent.
        n_resamples: Bootstrap draws.
        seed: Of the draws.
        level: Coverage of the interval.

    Raises:
        UsageError: Lengths that differ, or values that are not finite.
    """
    if is_binary(values):
        return rate(values, clusters, level=level)
    return cluster_bootstrap(values, clusters, n_resamples=n_resamples, seed=seed, level=level)


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

    The interval of the draws is stretched about the estimate by t(clusters - 1) over the normal
    quantile and by the root of clusters / (clusters - 1): without it, that of a mean of five normal
    values covers 83%. Shares of answers that may all be alike need `rate` (or `mean`).

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


RatioInterval = Literal["fieller", "percentile", "bca"]


def ratio_of_means(
    numerator: Values,
    denominator: Values,
    clusters: Values | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: RatioInterval = "fieller",
) -> Estimate:
    """mean(numerator) / mean(denominator): rows weigh by their denominator.

    Steadier than `mean_of_ratios` when some denominators are near zero. Fieller's interval holds
    every ratio r for which the sums over clusters of numerator - r * denominator are no further
    from zero than t(clusters - 1) standard errors. Where the denominators' own mean is not told
    apart from zero any ratio is possible, and the interval is infinite.

    Args:
        numerator: One value per row.
        denominator: One value per row.
        clusters: One label per row; None when rows are independent.
        n_resamples: Bootstrap draws, of the other methods.
        seed: Of the draws.
        level: Coverage of the interval.
        method: `"fieller"`; `"percentile"` or `"bca"` resample clusters, a draw whose denominator
            sums to zero is left out.

    Raises:
        UsageError: Lengths that differ, values that are not finite, or an unknown method.
    """
    top, index = prepare(numerator, clusters)
    bottom, _ = prepare(denominator, clusters)
    same_length(top, bottom)
    totals = np.stack([sums(top, index), sums(bottom, index)], axis=-1)
    if method == "fieller":
        return _fieller(totals, len(top), level)
    return bootstrap_totals(totals, first_over_second, len(top), n_resamples, seed, level, method)


def _fieller(totals: np.ndarray, n: int, level: float) -> Estimate:
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    top, bottom = map(float, totals.sum(axis=0))
    estimate = float(first_over_second(totals.sum(axis=0)))
    if len(totals) < 2 or not math.isfinite(estimate):
        return Estimate(estimate, math.nan, math.nan, n)
    t = float(scipy_stats.t.ppf(0.5 + level / 2, len(totals) - 1))
    spread = t * t * len(totals) * np.cov(totals, rowvar=False)
    square = bottom * bottom - spread[1, 1]
    if square <= 0:
        return Estimate(estimate, -math.inf, math.inf, n)
    middle = top * bottom - spread[0, 1]
    root = math.sqrt(max(0.0, middle * middle - square * (top * top - spread[0, 0])))
    # Rounding may put a bound on the wrong side where all ratios are one.
    low, high = (middle - root) / square, (middle + root) / square
    return Estimate(estimate, min(low, estimate), max(high, estimate), n)


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
    pairing allows. The two sides may have different numbers of rows, also within a cluster. Where
    all values are 0 or 1 the interval is that of `paired_rate_difference`, or of `rate_difference`
    where rows do not pair.

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
    binary = is_binary(first) and is_binary(second)
    if second_clusters is None:
        same_length(first, second)
        if binary:
            return paired_rate_difference(first, second, clusters, level=level)
        second_clusters = clusters = np.arange(len(first)) if clusters is None else clusters
    elif clusters is None:
        raise UsageError("expected clusters for both sides, got second_clusters alone")
    elif binary:
        return rate_difference(first, second, clusters, second_clusters, level=level)
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
