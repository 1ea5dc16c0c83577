"""AUROC with an interval: how well a score tells two kinds of examples apart."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from lvlm_interp.errors import UsageError
from lvlm_interp.stats import Estimate


def auroc(
    scores: Float[np.ndarray, " example"],
    labels: Bool[np.ndarray, " example"],
    clusters: np.ndarray | None = None,
    *,
    seed: int = 0,
    n_resamples: int = 1000,
) -> Estimate:
    """Area under the ROC curve, P(score of a positive > score of a negative), ties counting half.

    Args:
        scores: One per example.
        labels: Which of them are positive.
        clusters: Scene or image of each; the bootstrap draws whole clusters.
        seed: Of the bootstrap.
        n_resamples: Of the bootstrap.

    Returns:
        The area with a 95% percentile interval; `n` is the number of examples.

    Raises:
        UsageError: Lengths differ, or one of the two kinds is missing.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels, bool)
    if len(scores) != len(labels):
        raise UsageError(f"Expected one label per score, got {len(labels)} for {len(scores)}.")
    if labels.all() or not labels.any():
        raise UsageError("AUROC needs positive and negative examples; all are of one kind.")
    groups = (
        np.arange(len(scores)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    )
    members = [np.flatnonzero(groups == group) for group in range(groups.max() + 1)]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n_resamples):
        picked = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if 0 < labels[picked].sum() < len(picked):
            draws.append(area(scores[picked], labels[picked]))
    low, high = np.quantile(draws, [0.025, 0.975]) if len(members) > 1 else (np.nan, np.nan)
    return Estimate(area(scores, labels), float(low), float(high), len(scores))


def area(scores: np.ndarray, labels: np.ndarray) -> float:
    """AUROC by the Mann-Whitney statistic: (sum of positive ranks - n+ (n+ + 1) / 2) / (n+ n-)."""
    n_positive = int(labels.sum())
    n_negative = len(labels) - n_positive
    ranks = rankdata(scores)[labels].sum()
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
