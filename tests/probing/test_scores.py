import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from lvlm_interp.probing.scores import (
    auroc,
    balanced_accuracy,
    balanced_difference,
    mean_of_shuffles,
    pvalue_above,
)
from lvlm_interp.stats import Estimate


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(3, size=60), 2)
    predicted = np.where(rng.random(120) < 0.6, truth, rng.integers(3, size=120))
    return truth, predicted, np.repeat(np.arange(60), 2)


def test_estimates_are_scikit_learns(rows):
    truth, predicted, groups = rows
    found = balanced_accuracy(truth, predicted == truth, groups)
    assert found.estimate == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert found.low < found.estimate < found.high
    rng = np.random.default_rng(1)
    binary = (truth > 0).astype(int)
    scores = np.round(binary + rng.standard_normal(120), 1)  # with ties
    area = auroc(binary, scores, groups)
    assert area.estimate == pytest.approx(roc_auc_score(binary, scores))
    assert area.low < area.estimate < area.high


def test_the_intervals_are_those_of_resampled_groups(rows):
    truth, predicted, groups = rows
    rng = np.random.default_rng(5)
    scores = (truth > 0) + rng.standard_normal(120)
    draws = []
    for _ in range(1500):
        picked = rng.integers(60, size=60)
        at = np.concatenate([[2 * g, 2 * g + 1] for g in picked])
        recalls = [(predicted == truth)[at][truth[at] == k].mean() for k in range(3)]
        above = scores[at][truth[at] > 0][:, None] > scores[at][truth[at] == 0]
        draws.append((np.mean(recalls), above.mean()))
    expected = np.quantile(draws, [0.025, 0.975], axis=0)
    found = balanced_accuracy(truth, predicted == truth, groups, n_resamples=4000)
    np.testing.assert_allclose([found.low, found.high], expected[:, 0], atol=0.02)
    area = auroc((truth > 0).astype(int), scores, groups, n_resamples=4000)
    np.testing.assert_allclose([area.low, area.high], expected[:, 1], atol=0.02)


def test_groups_that_err_together_widen_the_interval():
    truth = np.tile([0, 1], 100)
    correct = np.repeat(np.random.default_rng(0).random(20) < 0.7, 10)
    narrow = balanced_accuracy(truth, correct, np.arange(200))
    wide = balanced_accuracy(truth, correct, np.repeat(np.arange(20), 10))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_all_right_has_an_interval_of_some_width():
    found = balanced_accuracy(np.tile([0, 1], 20), np.ones(40, bool), np.repeat(np.arange(20), 2))
    assert (found.estimate, found.high) == (1.0, 1.0) and 0.8 < found.low < 0.9


def test_selectivity_is_the_difference_resampled_together(rows):
    truth, predicted, groups = rows
    correct = predicted == truth
    same = balanced_difference(truth, correct, truth, correct, groups)
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)
    other = (truth + 1) % 3
    gap = balanced_difference(truth, correct, other, predicted == other, groups)
    expected = balanced_accuracy_score(truth, predicted) - balanced_accuracy_score(other, predicted)
    assert gap.estimate == pytest.approx(expected)


def test_pvalue():
    assert pvalue_above(Estimate(0.7, 0.7 - 1.96 * 0.1, 0.7 + 1.96 * 0.1, 9), 0.5) == pytest.approx(
        0.02275, abs=1e-4
    )
    assert np.isnan(pvalue_above(Estimate(1, np.nan, np.nan, 9), 0.5))


def test_the_interval_of_shuffles_takes_the_larger_variance():
    near = [Estimate(0.5, 0.402, 0.598, 90)] * 4  # alike: the corrected bootstrap decides
    found = mean_of_shuffles(near, n_folds=5)
    assert (found.estimate, found.n) == (0.5, 90)
    assert found.high - 0.5 == pytest.approx(0.098 * (1 + 5 / 4) ** 0.5 / 2, rel=1e-3)
    apart = [Estimate(value, value - 0.01, value + 0.01, 90) for value in (0.3, 0.5, 0.7)]
    found = mean_of_shuffles(apart, n_folds=5)
    assert found.high - 0.5 == pytest.approx(1.96 * 0.2 / 3**0.5, rel=1e-3)
