"""Permutation tests against counting by hand, and false discoveries against the definition."""

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest

from lvlm_interp.errors import UsageError
from lvlm_interp.stats import (
    benjamini_hochberg,
    holm,
    paired_permutation_test,
    permutation_test,
)


def test_paired_is_exact_where_flips_are_few():
    # All 2^6 sign flips of six ones: only all-plus and all-minus are as extreme.
    found = paired_permutation_test(np.ones(6), np.zeros(6))
    assert found.pvalue == pytest.approx(2 / 64)
    assert (found.statistic, found.n) == (pytest.approx(1), 6)


def test_paired_flips_whole_clusters():
    found = paired_permutation_test(np.ones(12), np.zeros(12), np.repeat(np.arange(3), 4))
    assert found.pvalue == pytest.approx(2 / 8)
    assert found.n == 3


def test_two_samples_are_exact_where_labels_are_few():
    found = permutation_test([3.0, 4.0, 5.0], [0.0, 1.0, 2.0])
    assert found.statistic == 3
    assert found.pvalue == pytest.approx(2 / 20)


def test_level_holds_under_the_null():
    rng = np.random.default_rng(0)
    pvalues = [
        paired_permutation_test(rng.normal(size=30), rng.normal(size=30), n_resamples=299).pvalue
        for _ in range(300)
    ]
    assert 0.02 <= np.mean(np.array(pvalues) <= 0.05) <= 0.085


def test_direction_and_seed():
    rng = np.random.default_rng(1)
    first, second = rng.normal(1, 1, 40), rng.normal(0, 1, 40)
    assert permutation_test(first, second, alternative="greater").pvalue < 0.01
    assert permutation_test(first, second, alternative="less").pvalue > 0.9
    assert permutation_test(first, second, seed=3) == permutation_test(first, second, seed=3)


def test_one_cluster_proves_nothing_and_no_row_is_refused():
    assert paired_permutation_test([1.0, 2.0], [0.0, 0.0], ["a", "a"]).pvalue == 1
    with pytest.raises(UsageError, match="at least one pair"):
        paired_permutation_test([], [])
    with pytest.raises(UsageError, match="got 0 and 1"):
        permutation_test([], [1.0])


def test_benjamini_hochberg_by_hand_and_missing_tests():
    adjusted = benjamini_hochberg([[0.01, np.nan], [0.04, 0.03]])
    np.testing.assert_allclose(adjusted, [[0.03, np.nan], [0.04, 0.04]])
    assert np.isnan(benjamini_hochberg([np.nan])).all()


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_flips_of_zeros_and_ones_are_counted_and_are_mcnemars_test(alternative):
    rng = np.random.default_rng(2)
    first, second = rng.random(200) < 0.55, rng.random(200) < 0.4
    up, down = int((first & ~second).sum()), int((~first & second).sum())
    found = paired_permutation_test(first, second, alternative=alternative)
    assert found.pvalue == pytest.approx(binomtest(up, up + down, alternative=alternative).pvalue)
    assert found == paired_permutation_test(first, second, alternative=alternative, seed=5)


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_counting_agrees_with_trying_all_flips_of_whole_clusters(alternative):
    gaps = np.array([3, 1, -2, 0, 1, 2, -1])
    signs = np.array(list(itertools.product([-1, 1], repeat=7)))
    sums, observed = signs @ gaps, gaps.sum()
    extreme = {
        "two-sided": abs(sums) >= abs(observed),
        "less": sums <= observed,
        "greater": sums >= observed,
    }[alternative]
    rows = np.repeat(np.sign(gaps), abs(gaps))
    clusters = np.repeat(np.arange(7), abs(gaps))
    found = paired_permutation_test(rows, 0 * rows, clusters, alternative=alternative)
    assert found.pvalue == pytest.approx(extreme.mean())


def test_holm_by_hand_and_missing_tests():
    np.testing.assert_allclose(holm([0.01, 0.04, np.nan, 0.03]), [0.03, 0.06, np.nan, 0.06])
    assert np.isnan(holm([np.nan])).all()
