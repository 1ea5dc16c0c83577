"""Intervals: closed forms, coverage by simulation, and what they refuse."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from scipy.stats import t as scipy_t

from lvlm_interp.errors import UsageError
from lvlm_interp.stats import (
    Estimate,
    cluster_bootstrap,
    difference,
    mean,
    mean_of_ratios,
    paired_rate_difference,
    rate,
    rate_difference,
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


def exact(successes, n):
    return binomtest(successes, n).proportion_ci(method="exact")


@pytest.mark.parametrize(("successes", "n"), [(30, 100), (1, 5), (0, 37), (120, 120), (1, 2)])
def test_rate_of_independent_rows_is_the_exact_interval(successes, n):
    ours, theirs = rate([True] * successes + [False] * (n - successes)), exact(successes, n)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_rate_of_copies_has_the_width_of_the_clusters():
    clusters = np.repeat(np.arange(40), 25)
    answers = np.repeat(np.arange(40) % 4 == 0, 25)
    ours, theirs = rate(answers, clusters), exact(10, 40)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)
    assert ours.n == 1000


def test_rate_of_all_alike_has_a_width():
    ours = rate(np.zeros(200), np.repeat(np.arange(50), 4))
    assert (ours.estimate, ours.low) == (0, 0)
    assert ours.high == pytest.approx(exact(0, 50).high)


def test_one_error_more_hardly_makes_a_rate_surer():
    clusters = np.repeat(np.arange(50), 4)
    highs = [rate(np.arange(200) < errors, clusters).high for errors in range(8)]
    assert min(highs) > 0.9 * highs[0]  # without the average over deff it would be 0.4
    assert highs[1:] == sorted(highs[1:])


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


def test_paired_rates_have_tangos_interval():
    """Against the score statistic with the restricted estimate found by a numerical search."""
    up, down, n = 9, 2, 40
    first = [1] * up + [0] * down + [1] * 10 + [0] * (n - up - down - 10)
    second = [0] * up + [1] * down + [1] * 10 + [0] * (n - up - down - 10)
    found = paired_rate_difference(first, second)

    def score(delta):
        def loss(q):  # cells p21 = q, p12 = q + delta, the rest concordant
            cells = np.array([q + delta, q, 1 - 2 * q - delta])
            counts = np.array([up, down, n - up - down])
            return np.inf if (cells <= 0).any() else -counts @ np.log(cells)

        q = minimize_scalar(loss, bounds=(max(0, -delta), (1 - delta) / 2), method="bounded").x
        return (up - down - n * delta) / math.sqrt(n * (2 * q + delta - delta**2))

    assert found.estimate == pytest.approx((up - down) / n)
    assert score(found.low) == pytest.approx(1.96, abs=2e-3)
    assert score(found.high) == pytest.approx(-1.96, abs=2e-3)


def test_rates_that_never_differ_have_a_difference_of_some_width():
    z = 1.959964
    found = difference([0.0] * 37, [0.0] * 37)
    assert (found.low, found.high) == pytest.approx((-(z**2) / (37 + z**2), z**2 / (37 + z**2)))
    copies = difference([0.0] * 74, [0.0] * 74, np.repeat(np.arange(37), 2))
    assert (copies.low, copies.high) == pytest.approx((found.low, found.high))
    unpaired = difference([1.0, 1.0, 1.0], [1.0, 1.0], ["a", "b", "c"], ["a", "b"])
    assert unpaired.low < -0.3 and unpaired.high > 0.3


def test_unpaired_rates_have_newcombes_interval_from_the_limits_of_both():
    first, second = [1.0] * 10 + [0.0] * 20, [1.0] * 3 + [0.0] * 22
    found = rate_difference(first, second)
    one, other = rate(first), rate(second)
    gap = 10 / 30 - 3 / 25
    low = gap - math.hypot(one.estimate - one.low, other.high - other.estimate)
    high = gap + math.hypot(one.high - one.estimate, other.estimate - other.low)
    assert (found.estimate, found.low, found.high) == pytest.approx((gap, low, high))


def test_a_mean_knows_rates_from_amounts():
    assert mean([0, 0, 1, 1]) == rate([0, 0, 1, 1])
    assert mean([0.0, 0.5, 1.0]) == cluster_bootstrap([0.0, 0.5, 1.0])


@pytest.mark.parametrize("n_clusters", [5, 8])
def test_a_mean_of_few_normal_values_is_covered_as_by_the_t_interval(n_clusters):
    rng = np.random.default_rng(10)
    hits = 0
    for _ in range(600):
        rows = rng.normal(size=n_clusters)
        found = cluster_bootstrap(rows, n_resamples=300)
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / 600 <= 0.98


def test_ratios_have_fiellers_interval():
    rng = np.random.default_rng(11)
    bottom = rng.normal(2, 1, 30)
    top = 0.5 * bottom + rng.normal(0, 0.3, 30)
    found = ratio_of_means(top, bottom)
    t = scipy_t.ppf(0.975, 29)
    for bound in (found.low, found.high):
        rest = top - bound * bottom
        assert abs(rest.mean()) == pytest.approx(t * rest.std(ddof=1) / math.sqrt(30))
    assert found.low < found.estimate < found.high
    resampled = ratio_of_means(top, bottom, method="percentile")
    assert (found.low, found.high) == pytest.approx((resampled.low, resampled.high), abs=0.03)


def test_a_ratio_over_a_gap_that_may_be_zero_may_be_anything():
    rng = np.random.default_rng(12)
    hits = 0
    for _ in range(300):
        bottom = rng.normal(0.05, 1, 60)
        found = ratio_of_means(0.5 * bottom + rng.normal(0, 0.3, 60), bottom)
        hits += found.low <= 0.5 <= found.high
    assert hits / 300 >= 0.93
    vague = ratio_of_means([1.0, -1.0, 0.5], [1.0, -1.0, 0.1])
    assert (vague.low, vague.high) == (-math.inf, math.inf)
    assert vague.to_dict()["low"] is None and not vague.above(0)
