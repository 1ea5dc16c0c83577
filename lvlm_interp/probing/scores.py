"""Scores of predictions with intervals and tests whose unit is a whole group.

Balanced accuracy is the mean over classes of the share that is right (its chance level is one over
the number of classes, whatever the base rate).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Shaped
from scipy import stats as scipy_stats

from lvlm_interp import stats
from lvlm_interp.stats import Estimate
from lvlm_interp.stats.rates import between, proportion
from lvlm_interp.stats.resampling import prepare

__all__ = [
    "REFITTING",
    "auroc",
    "balanced_accuracy",
    "balanced_difference",
    "mean_of_shuffles",
    "point_balanced",
    "pvalue_above",
    "selectivity",
]

REFITTING = 1.75
"""Variance of a cross-validated score over what its held-out rows show, where labels mean nothing.

A row helps to predict the others and they help to predict it, so each pair of rows counts twice: if
predictions added up over pairs, as the scores of a difference of means do, the variance would be
twice that of independent rows. Predictions of 0 and 1 bring it to between 1.4 and 2 in simulation,
for rows by themselves, pairs and clusters alike; 1.75 was chosen on those draws, and sizes of 1% to
7% were seen with it where 5% is nominal. Nadeau and Bengio (2003),
"Inference for the Generalization Error", section 3, have 1 + J n2 / n1 for it, 2.25 for five folds.
"""

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
    inflation: float = 1.0,
) -> Estimate:
    """Balanced accuracy with Korn and Graubard's interval, groups as clusters.

    It is a share in which each row weighs one over the number of classes and of the rows of its
    class; see `stats.rate`. Its variance over groups is linearised class by class.

    Args:
        truth: Class of each row.
        correct: Whether it was predicted.
        groups: Group of each row.
        inflation: Factor on the variance; `REFITTING` for predictions of a cross-validation.
    """
    if not len(truth):
        return Estimate(np.nan, np.nan, np.nan, 0)
    estimate, residuals, index, n = _linear(truth, correct, groups)
    rarer = len(set(index[correct == (estimate <= 0.5)]))
    rows = len(truth)
    return proportion(estimate, residuals, rarer, n, rows=rows, inflation=inflation)


def auroc(
    truth: Codes,
    scores: Shaped[np.ndarray, " row"],
    groups: Groups,
    *,
    folds: Codes | None = None,
    inflation: float = 1.0,
    n_resamples: int = 0,
) -> Estimate:
    """`stats.auroc` of the second of two classes, ranked within folds.

    Args:
        truth: 0 or 1 of each row.
        scores: Towards class 1.
        groups: Group of each row.
        folds: Held-out fold of each row: the scores of two probes have no common unit.
        inflation: As in `balanced_accuracy`.
        n_resamples: Has no effect: the interval is in closed form.
    """
    return stats.auroc(truth, scores, groups, strata=folds, inflation=inflation)


def pvalue_above(
    truth: Codes,
    correct: Bool[np.ndarray, " row"],
    groups: Groups,
    chance: float,
    *,
    inflation: float = 1.0,
) -> float:
    """One-sided p-value that balanced accuracy is above chance: Student's t over groups.

    NaN with one group. Where all rows are right, or all wrong, the variance is that under chance of
    as many rows as there are groups.
    """
    estimate, residuals, _, _ = _linear(truth, correct, groups)
    if len(residuals) < 2:
        return float("nan")
    variance = between(residuals) or chance * (1 - chance) / len(residuals)
    t = (estimate - chance) / (variance * inflation) ** 0.5
    return float(scipy_stats.t.sf(t, len(residuals) - 1))


def balanced_difference(
    truth: Codes,
    correct: Bool[np.ndarray, " row"],
    other_truth: Codes,
    other_correct: Bool[np.ndarray, " row"],
    groups: Groups,
    *,
    inflation: float = 1.0,
) -> Estimate:
    """Difference of two balanced accuracies on the same rows; see `selectivity`."""
    return selectivity(
        (truth, correct), [(other_truth, other_correct)], groups, inflation=inflation
    )


def selectivity(
    main: tuple[Codes, Bool[np.ndarray, " row"]],
    controls: Sequence[tuple[Codes, Bool[np.ndarray, " row"]]],
    groups: Groups,
    *,
    inflation: float = 1.0,
) -> Estimate:
    """Balanced accuracy on the task minus the mean of those on control tasks, on the same rows.

    The variance is that over groups of the difference, linearised, times `inflation`, and that
    between the control labellings over their number: how much a control task can be learned moves
    with the draw of its labels. The interval is Student's over groups, and never narrower than
    Tango's of two shares that agree in every group.

    Args:
        main: Truth of each row and whether it was predicted.
        controls: The same under each control labelling.
        groups: Group of each row.
        inflation: As in `balanced_accuracy`.
    """
    estimate, residuals, _, _ = _linear(*main, groups)
    others = [_linear(*each, groups) for each in controls]
    values = np.array([each[0] for each in others])
    gap = float(estimate - values.mean())
    n_groups = len(residuals)
    if n_groups < 2:
        return Estimate(gap, np.nan, np.nan, len(groups))
    residuals = residuals - np.mean([each[1] for each in others], axis=0)
    variance = between(residuals) * inflation
    if len(values) > 1:
        variance += float(np.var(values, ddof=1)) / len(values)
    half = float(scipy_stats.t.ppf(0.975, n_groups - 1)) * variance**0.5
    half = max(half, _Z**2 / (n_groups + _Z**2))
    return Estimate(gap, max(-1.0, gap - half), min(1.0, gap + half), len(groups))


def mean_of_shuffles(scores: Sequence[Estimate]) -> Estimate:
    """Mean score of several shuffles of the labels, with an interval that holds the refitting.

    The variance of one score is the larger of two: the spread between the shuffles, which are
    independent given the features; and the mean variance over groups times `REFITTING`. The
    second is there because few shuffles can lie close together by luck.

    Args:
        scores: One per shuffle, each with its interval of 95%.

    Returns:
        The mean with a 95% interval, within 0 and 1.
    """
    values = np.array([each.estimate for each in scores])
    halves = np.array([(each.high - each.low) / 2 for each in scores])
    within = float(np.mean((halves / _Z) ** 2)) * REFITTING
    apart = float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
    mean, half = float(values.mean()), _Z * (max(within, apart) / len(values)) ** 0.5
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), scores[0].n)


def _linear(
    truth: np.ndarray, correct: np.ndarray, groups: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, float]:
    """Balanced accuracy, what each group adds to it, the group of each row, and Kish's n."""
    _, index = prepare(np.zeros(len(truth)), groups)
    counts = np.bincount(truth)
    recall = np.bincount(truth, weights=correct, minlength=len(counts)) / np.maximum(counts, 1)
    weights = 1 / (counts[truth] * (counts > 0).sum())
    residuals = np.bincount(index, weights=weights * (correct - recall[truth]))
    return float(recall[counts > 0].mean()), residuals, index, float(1 / (weights @ weights))
