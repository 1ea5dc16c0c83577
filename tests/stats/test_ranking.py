"""AUROC against scikit-learn, its variance against the bootstrap, its interval in small sets."""

import tracemalloc

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from lvlm_interp.errors import UsageError
from lvlm_interp.stats import area, auroc, cluster_bootstrap


def test_estimates_with_ties_are_scikit_learns():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 3, 200).astype(float), rng.integers(0, 2, 200)
    assert auroc(truth, scores).estimate == pytest.approx(roc_auc_score(truth, scores))
    assert area(truth, scores) == pytest.approx(roc_auc_score(truth, scores))


def test_the_interval_of_clustered_rows_is_that_of_resampled_clusters():
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(80), 4)
    truth = (rng.random(80) < 0.5)[clusters]
    scores = truth + rng.normal(size=80)[clusters] + 0.5 * rng.normal(size=320)
    rows = np.stack([truth, scores], axis=1)
    slow = cluster_bootstrap(rows, clusters, statistic=lambda r: roc_auc_score(r[:, 0], r[:, 1]))
    fast = auroc(truth, scores, clusters)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high), abs=0.03)
    assert fast.high - fast.low > 1.5 * (auroc(truth, scores).high - auroc(truth, scores).low)


def test_scores_of_different_strata_are_not_ranked_together():
    rng = np.random.default_rng(2)
    fold, truth = np.repeat([0, 1], 100), np.tile([0, 1], 100)
    scores = truth + rng.normal(size=200)
    own = [roc_auc_score(truth[fold == each], scores[fold == each]) for each in (0, 1)]
    moved = np.where(fold == 1, 100 * scores + 7, scores)
    found = auroc(truth, moved, strata=fold)
    assert found.estimate == pytest.approx(np.mean(own))
    assert abs(auroc(truth, moved).estimate - np.mean(own)) > 0.02


def test_perfect_order_has_a_width_that_shrinks():
    few = auroc([0, 1, 0, 1], [0.0, 1, 0, 1])
    many = auroc(np.tile([0, 1], 20), np.tile([0.0, 1.0], 20))
    assert few.estimate == many.estimate == few.high == many.high == 1
    assert few.low < 0.6 < many.low < 0.97
    worst = auroc(np.tile([1, 0], 20), np.tile([0.0, 1.0], 20))
    assert (worst.low, worst.high) == pytest.approx((0, 1 - many.low))


@pytest.mark.parametrize(("n", "shift"), [(8, 1.0), (20, 0.0), (20, 2.5), (60, 1.0)])
def test_coverage_of_small_sets(n, shift):
    rng = np.random.default_rng(n)
    truth, right = np.arange(n) % 2, norm.cdf(shift / np.sqrt(2))
    found = [auroc(truth, rng.normal(size=n) + shift * truth) for _ in range(300)]
    assert np.mean([each.low <= right <= each.high for each in found]) >= 0.93


def test_memory_grows_with_the_rows_and_not_with_the_pairs():
    rng = np.random.default_rng(3)
    tracemalloc.start()
    auroc(rng.integers(0, 2, 20_000), rng.normal(size=20_000), np.arange(20_000) // 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30 * 2**20


def test_what_has_no_area_is_nan_or_refused():
    assert np.isnan(auroc([1, 1], [0.0, 1.0]).estimate)
    assert np.isnan(auroc([0, 1, 0], [0.0, 1.0, 2.0], ["a"] * 3).low)
    with pytest.raises(UsageError, match="one truth per score"):
        auroc([1], [0.0, 1.0])
