"""Intervals: closed forms, coverage by simulation, and what they refuse."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from lvlm_interp.errors import UsageError
from lvlm_interp.stats import (
    Estimate,
    cluster_bootstrap,
    difference,
    mean_of_ratios,
    rate,
    ratio_of_means,
    wilson,
)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(counts):
    successes, n = counts
    theirs = binomtest(successes, n).proportion_ci(method="wilson")
    ours = wilson(successes, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= ours.estimate <= ours.high <= 1


def test_wilson_refuses_and_knows_nothing_of_nothing():
    assert wilson(0, 0).to_dict() == {"estimate": None, "low": None, "high": None, "n": 0}
    with pytest.raises(UsageError, match="successes=3, n=2"):
        wilson(3, 2)


def test_rate_of_independent_rows_is_wilson():
    rows = [True] * 30 + [False] * 70
    ours, theirs = rate(rows), wilson(30, 100)
    # The linearised variance divides by n - 1, which leaves an effective number of 99.
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-3)


def test_rate_of_copies_has_the_width_of_the_clusters():
    clusters = np.repeat(np.arange(40), 25)
    answers = np.repeat(np.arange(40) % 4 == 0, 25)
    ours, theirs = rate(answers, clusters), wilson(10, 40)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours.n == 1000


def test_rate_of_all_alike_has_a_width():
    ours = rate(np.zeros(200), np.repeat(np.arange(50), 4))
    assert (ours.estimate, ours.low) == (0, 0)
    assert ours.high == pytest.approx(wilson(0, 50).high)


def test_rate_refuses_what_is_no_rate():
    with pytest.raises(UsageError, match="use cluster_bootstrap"):
        rate([0.5, 1.0])


def _cluster_samples(rng, n_clusters=60, size=4):
    effect = rng.normal(size=n_clusters)[:, None]
    rows = effect + 0.3 * rng.normal(size=(n_clusters, size))
    return rows.ravel(), np.repeat(np.arange(n_clusters), size)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_coverage_with_clusters(method):
    rng = np.random.default_rng(1)
    hits = {"clusters": 0, "rows": 0}
    for seed in range(200):
        rows, clusters = _cluster_samples(rng)
        for name, labels in (("clusters", clusters), ("rows", None)):
            found = cluster_bootstrap(rows, labels, n_resamples=500, seed=seed % 3, method=method)
            hits[name] += found.low <= 0 <= found.high
    assert 0.90 <= hits["clusters"] / 200 <= 0.98
    assert hits["rows"] / 200 < 0.85  # ignoring the clusters claims too much


def test_rate_coverage_with_clusters():
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        chance = rng.beta(0.5, 2.0, size=50)
        answers = rng.random((50, 4)) < chance[:, None]
        found = rate(answers.ravel(), np.repeat(np.arange(50), 4))
        hits += found.low <= 0.2 <= found.high
    assert 0.91 <= hits / 400 <= 0.985


def test_mean_bootstrap_has_the_width_of_the_standard_error():
    rows = np.random.default_rng(3).normal(size=400)
    found = cluster_bootstrap(rows, n_resamples=4000)
    error = rows.std(ddof=1) / math.sqrt(len(rows))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_a_statistic_of_rows_agrees_with_the_vectorised_mean():
    rows, clusters = _cluster_samples(np.random.default_rng(4))
    fast = cluster_bootstrap(rows, clusters, n_resamples=4000)
    slow = cluster_bootstrap(rows, clusters, statistic=np.mean, n_resamples=4000, seed=1)
    assert (slow.estimate, slow.low, slow.high) == pytest.approx(
        (fast.estimate, fast.low, fast.high), abs=0.04
    )


def test_same_seed_same_interval_and_another_differs():
    rows, clusters = _cluster_samples(np.random.default_rng(5))
    first = cluster_bootstrap(rows, clusters, seed=7)
    assert first == cluster_bootstrap(rows, clusters, seed=7)
    assert first != cluster_bootstrap(rows, clusters, seed=8)


@pytest.mark.parametrize("statistic", [None, np.median])
def test_one_cluster_has_no_interval_and_no_row_no_estimate(statistic):
    one = cluster_bootstrap([1.0, 2.0], ["a", "a"], statistic=statistic)
    assert one.estimate == 1.5
    assert math.isnan(one.low) and math.isnan(one.high)
    assert math.isnan(cluster_bootstrap([], statistic=statistic).estimate)
    assert not one.above(0) and not one.below(10)


def test_bca_of_a_skewed_sample_leans_to_the_tail():
    rows = np.random.default_rng(6).exponential(size=40)
    plain, bca = cluster_bootstrap(rows), cluster_bootstrap(rows, method="bca")
    assert bca.low > plain.low and bca.high > plain.high


def test_ratios_are_two_different_things():
    top, bottom = [1.0, 6.0, 4.0], [1.0, 2.0, 4.0]
    assert ratio_of_means(top, bottom).estimate == pytest.approx(11 / 7)
    assert mean_of_ratios(top, bottom).estimate == pytest.approx((1 + 3 + 1) / 3)
    with pytest.raises(UsageError, match="1 of 2 denominators are zero"):
        mean_of_ratios([1.0, 1.0], [0.0, 1.0])


def test_paired_difference_is_narrower_than_the_parts():
    rng = np.random.default_rng(8)
    before, clusters = _cluster_samples(rng)
    after = before - 0.5 + 0.01 * rng.normal(size=len(before))
    found = difference(after, before, clusters)
    assert found.estimate == pytest.approx(-0.5, abs=0.01)
    assert found.high - found.low < 0.02
    assert found.below(0)


def test_difference_with_other_rows_per_side():
    found = difference([1.0, 1.0, 0.0], [0.0, 1.0], ["a", "a", "b"], ["a", "b"])
    assert found.estimate == pytest.approx(2 / 3 - 1 / 2)
    assert found.n == 3


def test_difference_is_the_bootstrap_of_the_differences_where_rows_pair():
    rng = np.random.default_rng(9)
    first, second = rng.normal(size=50), rng.normal(size=50)
    ours, theirs = difference(first, second), cluster_bootstrap(first - second)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cluster_bootstrap([1.0, math.nan]), "1 that are NaN or infinite"),
        (lambda: cluster_bootstrap([1.0, 2.0], ["a"]), "1 labels for 2 values"),
        (lambda: ratio_of_means([1.0], [1.0, 2.0]), "got 1 and 2"),
        (lambda: difference([1.0], [1.0, 2.0]), "got 1 and 2"),
    ],
)
def test_refusals_say_what_came(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_estimate_is_json_and_readable():
    assert Estimate(0.5, math.nan, math.nan, 3).to_dict() == {
        "estimate": 0.5,
        "low": None,
        "high": None,
        "n": 3,
    }
    assert str(Estimate(0.5, 0.25, 0.75, 12)) == "0.5 [0.25, 0.75] (n=12)"
