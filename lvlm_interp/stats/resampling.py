"""Resampling of whole clusters: what the intervals and the permutation tests are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from scipy import stats as scipy_stats

from lvlm_interp.errors import UsageError
from lvlm_interp.stats.estimate import Estimate

__all__ = [
    "Method",
    "Values",
    "bootstrap_rows",
    "bootstrap_totals",
    "first_over_second",
    "prepare",
    "same_length",
    "stretched",
    "sums",
]

Values = Sequence[Any] | np.ndarray
Method = Literal["percentile", "bca"]


def prepare(values: Values, clusters: Values | None) -> tuple[np.ndarray, np.ndarray]:
    """Values as floats and the cluster of each row as 0, 1, ... in order of first appearance."""
    rows = np.asarray(values, dtype=float)
    if not np.isfinite(rows).all():
        raise UsageError(
            f"expected finite values, got {(~np.isfinite(rows)).sum()} that are NaN or infinite"
        )
    if clusters is None:
        return rows, np.arange(len(rows))
    if len(clusters) != len(rows):
        raise UsageError(
            f"expected one cluster per value, got {len(clusters)} labels for {len(rows)} values"
        )
    seen: dict[Any, int] = {}
    return rows, np.array([seen.setdefault(label, len(seen)) for label in clusters], dtype=np.intp)


def same_length(first: Values, second: Values) -> None:
    """Raise UsageError when two columns cannot be paired row by row."""
    if len(first) != len(second):
        raise UsageError(
            f"expected as many values on both sides, got {len(first)} and {len(second)}"
        )


def sums(rows: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Sum of the rows of each cluster."""
    return np.bincount(index, weights=rows)


def first_over_second(totals: np.ndarray) -> np.ndarray:
    """Ratio of the two last-axis columns; NaN or infinite where the second is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(totals[..., 0] / totals[..., 1])


@lru_cache(maxsize=2)
def _resample_counts(n_clusters: int, n_resamples: int, seed: int) -> np.ndarray:
    """How often each draw takes each cluster; kept, since the groups of a table share it."""
    rng = np.random.default_rng(seed)
    counts = np.empty((n_resamples, n_clusters), dtype=np.float32)
    for draw in range(n_resamples):
        counts[draw] = np.bincount(rng.integers(n_clusters, size=n_clusters), minlength=n_clusters)
    counts.setflags(write=False)
    return counts


def bootstrap_totals(
    totals: np.ndarray,
    function: Callable[[np.ndarray], np.ndarray],
    n: int,
    n_resamples: int,
    seed: int,
    level: float,
    method: Method,
) -> Estimate:
    """Bootstrap of a function of sums over clusters; `totals` is cluster x column."""
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    estimate = float(function(totals.sum(axis=0)))
    if len(totals) < 2:
        return Estimate(estimate, math.nan, math.nan, n)
    draws = function(_resample_counts(len(totals), n_resamples, seed).astype(float) @ totals)
    jackknife = function(totals.sum(axis=0) - totals) if method == "bca" else None
    bounds = _interval(draws, estimate, level, method, jackknife)
    return Estimate(estimate, *stretched(estimate, bounds, len(totals), level), n)


def bootstrap_rows(
    rows: np.ndarray,
    index: np.ndarray,
    statistic: Callable[[np.ndarray], float],
    n_resamples: int,
    seed: int,
    level: float,
    method: Method,
) -> Estimate:
    """Bootstrap of any statistic of the rows, one call per draw."""
    if not len(rows):
        return Estimate(math.nan, math.nan, math.nan, 0)
    estimate = float(statistic(rows))
    members = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
    if len(members) < 2:
        return Estimate(estimate, math.nan, math.nan, len(rows))
    rng = np.random.default_rng(seed)
    picks = (rng.integers(len(members), size=len(members)) for _ in range(n_resamples))
    draws = np.array(
        [statistic(rows[np.concatenate([members[c] for c in pick])]) for pick in picks]
    )
    jackknife = None
    if method == "bca":
        jackknife = np.array([statistic(rows[index != c]) for c in range(len(members))])
    bounds = _interval(draws, estimate, level, method, jackknife)
    return Estimate(estimate, *stretched(estimate, bounds, len(members), level), len(rows))


def stretched(
    estimate: float, bounds: tuple[float, float], n_clusters: int, level: float
) -> tuple[float, float]:
    """Bounds of a bootstrap over few clusters, moved apart as far as a t-interval's would be."""
    tail = 0.5 + level / 2
    wider = float(scipy_stats.t.ppf(tail, n_clusters - 1) / scipy_stats.norm.ppf(tail))
    wider *= math.sqrt(n_clusters / (n_clusters - 1))
    low, high = bounds
    return estimate - wider * (estimate - low), estimate + wider * (high - estimate)


def _interval(
    draws: np.ndarray, estimate: float, level: float, method: Method, jackknife: np.ndarray | None
) -> tuple[float, float]:
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return math.nan, math.nan
    tails = np.array([0.5 - level / 2, 0.5 + level / 2])
    if method == "bca":
        assert jackknife is not None
        tails = _bca_tails(draws, estimate, jackknife[np.isfinite(jackknife)], tails)
    elif method != "percentile":
        raise UsageError(f"expected method 'percentile' or 'bca', got {method!r}")
    low, high = np.quantile(draws, tails)
    return float(low), float(high)


def _bca_tails(
    draws: np.ndarray, estimate: float, jackknife: np.ndarray, tails: np.ndarray
) -> np.ndarray:
    """Efron 1987, eq. 2.3 and 6.6: the tails after bias correction z0 and acceleration a."""
    below = (np.sum(draws < estimate) + 0.5 * np.sum(draws == estimate)) / len(draws)
    if below in (0.0, 1.0):
        return tails
    z0 = scipy_stats.norm.ppf(below)
    gaps = jackknife.mean() - jackknife
    spread = float(np.sum(gaps**2)) ** 1.5
    a = float(np.sum(gaps**3)) / (6 * spread) if spread > 0 else 0.0
    z = z0 + scipy_stats.norm.ppf(tails)
    return np.asarray(scipy_stats.norm.cdf(z0 + z / (1 - a * z)))
