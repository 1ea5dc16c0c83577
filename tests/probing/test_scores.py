import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from lvlm_interp.probing.scores import (
    REFITTING,
    auroc,
    balanced_accuracy,
    balanced_difference,
    mean_of_shuffles,
    pvalue_above,
    selectivity,
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


def test_the_interval_has_the_width_of_resampled_groups(rows):
    truth, predicted, groups = rows
    rng = np.random.default_rng(5)
    draws = []
    for _ in range(1500):
        picked = rng.integers(60, size=60)
        at = np.concatenate([[2 * g, 2 * g + 1] for g in picked])
        draws.append(np.mean([(predicted == truth)[at][truth[at] == k].mean() for k in range(3)]))
    expected = np.quantile(draws, [0.025, 0.975])
    found = balanced_accuracy(truth, predicted == truth, groups)
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.03)
    wide = balanced_accuracy(truth, predicted == truth, groups, inflation=REFITTING)
    ratio = (wide.high - wide.low) / (found.high - found.low)
    assert ratio == pytest.approx(REFITTING**0.5, rel=0.05)


def test_groups_that_err_together_widen_the_interval():
    truth = np.tile([0, 1], 100)
    correct = np.repeat(np.random.default_rng(0).random(20) < 0.7, 10)
    narrow = balanced_accuracy(truth, correct, np.arange(200))
    wide = balanced_accuracy(truth, correct, np.repeat(np.arange(20), 10))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_all_right_has_an_interval_of_some_width():
    found = balanced_accuracy(np.tile([0, 1], 20), np.ones(40, bool), np.repeat(np.arange(20), 2))
    assert (found.estimate, found.high) == (1.0, 1.0) and 0.8 < found.low < 0.9


def test_selectivity_is_the_difference_over_the_same_rows(rows):
    truth, predicted, groups = rows
    correct = predicted == truth
    other = (truth + 1) % 3
    gap = balanced_difference(truth, correct, other, predicted == other, groups)
    expected = balanced_accuracy_score(truth, predicted) - balanced_accuracy_score(other, predicted)
    assert gap.estimate == pytest.approx(expected)
    adds = 0.0
    for labels, right, sign in ((truth, correct, 1), (other, predicted == other, -1)):
        counts = np.bincount(labels)
        recall = np.bincount(labels, weights=right) / counts
        adds = adds + sign * (right - recall[labels]) / counts[labels] / 3
    per_group = np.bincount(groups, weights=adds)
    half = t.ppf(0.975, 59) * (60 / 59 * per_group @ per_group) ** 0.5
    assert gap.high - gap.estimate == pytest.approx(half)


def test_what_agrees_everywhere_still_has_a_width(rows):
    truth, predicted, groups = rows
    same = balanced_difference(truth, predicted == truth, truth, predicted == truth, groups)
    assert same.estimate == 0
    assert same.high == -same.low == pytest.approx(3.8415 / 63.8415, rel=1e-3)
    right = np.ones(len(truth), bool)
    assert balanced_difference(truth, right, truth, right, groups).low < 0


def test_control_labellings_that_differ_widen_the_interval(rows):
    truth, predicted, groups = rows
    main = (truth, predicted == truth)
    apart = [(truth, predicted == (truth + shift) % 3) for shift in range(3)]
    wide = selectivity(main, apart, groups)
    values = [np.mean([each[1][truth == k].mean() for k in range(3)]) for each in apart]
    assert wide.high - wide.estimate >= 1.96 * (np.var(values, ddof=1) / 3) ** 0.5
    assert wide.high - wide.low > 1.5 * (gap_of(main, apart[1], groups))


def gap_of(main, other, groups):
    found = selectivity(main, [other] * 3, groups)
    return found.high - found.low


def test_pvalue_is_students_over_groups():
    rng = np.random.default_rng(3)
    truth, correct = np.tile([0, 1], 50), rng.random(100) < 0.6
    found = pvalue_above(truth, correct, np.arange(100), 0.5)
    recall = np.array([correct[truth == k].mean() for k in (0, 1)])
    residuals = (correct - recall[truth]) / 100
    deviation = (100 / 99 * residuals @ residuals) ** 0.5
    assert found == pytest.approx(t.sf((recall.mean() - 0.5) / deviation, 99))
    assert pvalue_above(truth, correct, np.arange(100), 0.5, inflation=REFITTING) > found
    assert np.isnan(pvalue_above(truth, correct, np.zeros(100), 0.5))
    assert 0 < pvalue_above(truth, np.ones(100, bool), np.arange(100), 0.5) < 1e-10


def test_the_interval_of_shuffles_takes_the_larger_variance():
    near = [Estimate(0.5, 0.402, 0.598, 90)] * 4  # alike: the corrected variance decides
    found = mean_of_shuffles(near)
    assert (found.estimate, found.n) == (0.5, 90)
    assert found.high - 0.5 == pytest.approx(0.098 * REFITTING**0.5 / 2, rel=1e-3)
    apart = [Estimate(value, value - 0.01, value + 0.01, 90) for value in (0.3, 0.5, 0.7)]
    found = mean_of_shuffles(apart)
    assert found.high - 0.5 == pytest.approx(1.96 * 0.2 / 3**0.5, rel=1e-3)
