"""Scores of predictions with intervals that resample whole groups.

Balanced accuracy is the mean over classes of the share that is right (its chance level is one over
the number of classes, whatever the base rate).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats as scipy_stats

from lvlm_interp.stats import Estimate, rate
from lvlm_interp.stats.resampling import bootstrap_totals, prepare

__all__ = [
    "auroc",
    "balanced_accuracy",
    "balanced_difference",
    "mean_of_shuffles",
    "point_balanced",
    "pvalue_above",
]

_Z = float(scipy_stats.norm.ppf(0.975))

Codes = Int[np.ndarray, " row"]
Groups = Shaped[np.ndarray, " row"]


def point_balanced(truth: Codes, correct: Bool[np.ndarray, " row"]) -> float:
    """Balanced accuracy without an interval."""
    n = np.bincount(truth)
    return float(
        np.mean((np.bincount(truth, weights=correct, minlength=len(n)) / np.maximum(n, 1))[n > 0])
    )


def balanced_accuracy(
    truth: Codes,
    correct: Bool[np.ndarray, " row"],
    groups: Groups,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Balanced accuracy with a cluster-bootstrap interval.

    Where all rows are right (or all wrong) the bootstrap has no width; the Wilson interval of the
    number of groups takes its place.
    """
    if len(truth) and (correct.all() or not correct.any()):
        return rate(correct, groups)
    totals = _totals(truth, correct, groups)
    return bootstrap_totals(totals, _mean_recall, len(truth), n_resamples, seed, 0.95, "percentile")


def balanced_difference(
    truth: Codes,
    correct: Bool[np.ndarray, " row"],
    other_truth: Codes,
    other_correct: Bool[np.ndarray, " row"],
    groups: Groups,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Difference of two balanced accuracies on the same rows, resampled together (selectivity)."""
    first, second = _totals(truth, correct, groups), _totals(other_truth, other_correct, groups)
    width = first.shape[1]

    def gap(totals: np.ndarray) -> np.ndarray:
        return np.asarray(_mean_recall(totals[..., :width]) - _mean_recall(totals[..., width:]))

    both = np.concatenate([first, second], axis=1)
    return bootstrap_totals(both, gap, len(truth), n_resamples, seed, 0.95, "percentile")


def auroc(
    truth: Codes,
    scores: Float[np.ndarray, " row"],
    groups: Groups,
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Area under the ROC curve of a binary truth, with a cluster-bootstrap interval.

    It is the share of (positive, negative) pairs in the right order, ties counting half; a draw
    weighs each pair by how often it took the two groups.
    """
    positive, negative = truth == 1, truth == 0
    if not (positive.any() and negative.any()):
        return Estimate(np.nan, np.nan, np.nan, len(truth))
    _, index = prepare(np.zeros(len(truth)), groups)
    n_groups = int(index.max()) + 1
    gaps = np.sign(scores[positive][:, None] - scores[negative][None, :])
    wins = np.zeros((n_groups, n_groups))
    rows, by_row = _summed((gaps + 1) / 2, index[positive])
    columns, by_both = _summed(by_row.T, index[negative])
    wins[np.ix_(rows, columns)] = by_both.T
    counts = np.stack(
        [np.bincount(index[each], minlength=n_groups) for each in (positive, negative)]
    )
    rng = np.random.default_rng(seed)
    # Single precision: the product below is the cost, and an interval needs no more.
    weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), n_resamples)
    weights = weights.astype(np.float32)
    pairs = (weights @ counts[0]) * (weights @ counts[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = np.einsum("rg,rg->r", weights @ wins.astype(np.float32), weights) / pairs
    estimate = float(wins.sum() / (counts[0].sum() * counts[1].sum()))
    low, high = np.nanquantile(draws, [0.025, 0.975]) if n_groups > 1 else (np.nan, np.nan)
    return Estimate(estimate, float(low), float(high), len(truth))


def mean_of_shuffles(scores: Sequence[Estimate], n_folds: int) -> Estimate:
    """Mean score of several shuffles of the labels, with an interval that holds the refitting.

    The variance of one score is the larger of two: the spread between the shuffles, which are
    independent given the features; and the mean bootstrap variance times 1 + J n2/n1, the
    correction of Nadeau and Bengio (2003), "Inference for the Generalization Error", section 3, for
    the J folds whose n2 held-out rows also train the others' probes (n2/n1 = 1/(J-1)). The second
    is there because few shuffles can lie close together by luck.

    Args:
        scores: One per shuffle, each with its bootstrap interval of 95%.
        n_folds: Of the cross-validation.

    Returns:
        The mean with a 95% interval, within 0 and 1.
    """
    values = np.array([each.estimate for each in scores])
    halves = np.array([(each.high - each.low) / 2 for each in scores])
    within = float(np.mean((halves / _Z) ** 2)) * (1 + n_folds / (n_folds - 1))
    between = float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
    mean, half = float(values.mean()), _Z * (max(within, between) / len(values)) ** 0.5
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), scores[0].n)


def pvalue_above(estimate: Estimate, chance: float) -> float:
    """One-sided p-value that a score is above chance: normal, its deviation from the interval."""
    half = (estimate.high - estimate.low) / 2
    if not np.isfinite(half) or half <= 0:
        return float("nan")
    return float(scipy_stats.norm.sf((estimate.estimate - chance) / (half / _Z)))


def _summed(values: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows summed by group: the groups that occur, in order, and one row of sums for each."""
    order = np.argsort(index, kind="stable")
    groups, starts = np.unique(index[order], return_index=True)
    return groups, np.add.reduceat(values[order], starts, axis=0)


def _totals(truth: np.ndarray, correct: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Per group: right rows of each class, then rows of each class; shape `group 2*class`."""
    _, index = prepare(np.zeros(len(truth)), groups)
    n_groups, n_classes = int(index.max()) + 1, int(truth.max()) + 1
    cell = index * n_classes + truth
    size = n_groups * n_classes
    right = np.bincount(cell, weights=correct, minlength=size).reshape(n_groups, n_classes)
    count = np.bincount(cell, minlength=size).reshape(n_groups, n_classes)
    return np.concatenate([right, count], axis=1)


def _mean_recall(totals: np.ndarray) -> np.ndarray:
    """Mean over the classes that a draw holds of the share that is right."""
    right, count = np.split(totals, 2, axis=-1)
    here = count > 0
    recall = np.where(here, right / np.where(here, count, 1), 0.0)
    return np.asarray(recall.sum(axis=-1) / np.maximum(here.sum(axis=-1), 1))
