"""Permutation tests, and the correction for making many of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats as scipy_stats

from lvlm_interp.errors import UsageError
from lvlm_interp.stats.resampling import Values, prepare, same_length, sums

__all__ = [
    "TestResult",
    "benjamini_hochberg",
    "holm",
    "paired_permutation_test",
    "permutation_test",
]

Alternative = Literal["two-sided", "less", "greater"]

_MOST_COUNTED = 20_000
"""Sum of the clusters' sizes up to which flips are counted: the time grows with it and with n."""


@dataclass(frozen=True)
class TestResult:
    """Outcome of a permutation test.

    Attributes:
        statistic: The observed mean, or difference of means.
        pvalue: Share of the null at least as extreme; exact where all permutations were tried.
        n: Number of units that were permuted.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    statistic: float
    pvalue: float
    n: int


def paired_permutation_test(
    first: Values,
    second: Values,
    clusters: Values | None = None,
    *,
    n_resamples: int = 9999,
    seed: int = 0,
    alternative: Alternative = "two-sided",
) -> TestResult:
    """Sign-flip test that paired values differ by zero on average.

    All rows of a cluster flip together. Exact where the sums of the clusters are whole numbers, as
    those of 0 and 1 are (the flips are then counted; one row a cluster gives McNemar's exact test),
    and where there are no more than `n_resamples` flips.

    Args:
        first: One value per row.
        second: Its partner in the same row.
        clusters: One label per row; None when rows are independent.
        n_resamples: Random flips; the p-value is never below 1 / (n_resamples + 1).
        seed: Of the flips.
        alternative: `"two-sided"`, `"less"` or `"greater"` (`first` above `second`).

    Raises:
        UsageError: Lengths that differ, no rows, or values that are not finite.
    """
    same_length(first, second)
    rows, index = prepare(np.asarray(first, float) - np.asarray(second, float), clusters)
    if not len(rows):
        raise UsageError("expected at least one pair, got none")
    totals = sums(rows, index)
    if (totals == np.round(totals)).all() and np.abs(totals).sum() <= _MOST_COUNTED:
        whole = totals.astype(np.int64)
        return TestResult(float(rows.mean()), _counted(whole, alternative), len(whole))
    shares = totals / len(rows)
    if len(shares) == 1:
        return TestResult(float(shares[0]), 1.0, 1)
    outcome = scipy_stats.permutation_test(
        (shares,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_resamples,
        batch=1000,
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    return TestResult(float(outcome.statistic), float(outcome.pvalue), len(shares))


def _counted(totals: np.ndarray, alternative: Alternative) -> float:
    """Share of all sign flips of whole numbers whose sum is at least as extreme, exactly.

    The distribution of the sum over the flips is built cluster by cluster; it lies symmetrically
    about zero.
    """
    sizes = np.abs(totals[totals != 0])
    most = int(sizes.sum())
    chance = np.ones(1)
    for size in sizes:
        chance = (np.pad(chance, (0, 2 * size)) + np.pad(chance, (2 * size, 0))) / 2
    at = np.arange(-most, most + 1)
    observed = int(totals.sum())
    if alternative == "less":
        share = chance[at <= observed].sum()
    elif alternative == "greater":
        share = chance[at >= observed].sum()
    else:
        share = chance[np.abs(at) >= abs(observed)].sum()
    return min(1.0, float(share))


def permutation_test(
    first: Values,
    second: Values,
    *,
    n_resamples: int = 9999,
    seed: int = 0,
    alternative: Alternative = "two-sided",
) -> TestResult:
    """Test that two independent samples have the same mean, by exchanging their labels.

    Give one value per cluster: rows are taken as exchangeable.

    Args:
        first: One value per unit.
        second: One value per unit, of any number.
        n_resamples: Random permutations, all of them where there are fewer.
        seed: Of the permutations.
        alternative: `"two-sided"`, `"less"` or `"greater"` (`first` above `second`).

    Raises:
        UsageError: An empty sample, or values that are not finite.
    """
    (a, _), (b, _) = prepare(first, None), prepare(second, None)
    if not (len(a) and len(b)):
        raise UsageError(f"expected values in both samples, got {len(a)} and {len(b)}")
    outcome = scipy_stats.permutation_test(
        (a, b),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        vectorized=True,
        n_resamples=n_resamples,
        batch=1000,
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    return TestResult(float(outcome.statistic), float(outcome.pvalue), len(a) + len(b))


def holm(pvalues: Values) -> np.ndarray:
    """P-values adjusted so that any false rejection among them is rare (Holm 1979).

    Args:
        pvalues: Any shape; NaN marks a test that was not made: it stays NaN and does not count.

    Returns:
        Adjusted p-values of the same shape; compare them with the wanted rate.
    """
    raw = np.asarray(pvalues, dtype=float)
    adjusted = np.full(raw.shape, np.nan)
    made = ~np.isnan(raw)
    order = np.argsort(raw[made])
    steps = raw[made][order] * np.arange(len(order), 0, -1)
    found = np.empty(len(order))
    found[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    adjusted[made] = found
    return adjusted


def benjamini_hochberg(pvalues: Values) -> np.ndarray:
    """P-values adjusted for the false discovery rate (Benjamini and Hochberg 1995).

    Args:
        pvalues: Any shape; NaN marks a test that was not made: it stays NaN and does not count.

    Returns:
        Adjusted p-values of the same shape; compare them with the wanted rate.
    """
    raw = np.asarray(pvalues, dtype=float)
    adjusted = np.full(raw.shape, np.nan)
    made = ~np.isnan(raw)
    if made.any():
        adjusted[made] = scipy_stats.false_discovery_control(raw[made], method="bh")
    return adjusted
