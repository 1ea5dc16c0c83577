"""How well a score tells two kinds of examples apart: `stats.auroc`, refusing what has no area."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from lvlm_interp import stats
from lvlm_interp.errors import UsageError
from lvlm_interp.stats import Estimate


def auroc(
    scores: Float[np.ndarray, " example"],
    labels: Bool[np.ndarray, " example"],
    clusters: np.ndarray | None = None,
    *,
    n_resamples: int = 0,
) -> Estimate:
    """Area under the ROC curve, P(score of a positive > score of a negative), ties counting half.

    Args:
        scores: One per example.
        labels: Which of them are positive.
        clusters: Scene or image of each.
        n_resamples: Has no effect: the interval is in closed form.

    Returns:
        The area with the 95% interval of `stats.auroc`; `n` is the number of examples.

    Raises:
        UsageError: Lengths differ, or one of the two kinds is missing.
    """
    scores, labels = np.asarray(scores, float), np.asarray(labels, bool)
    if len(scores) != len(labels):
        raise UsageError(f"Expected one label per score, got {len(labels)} for {len(scores)}.")
    if labels.all() or not labels.any():
        raise UsageError("AUROC needs positive and negative examples; all are of one kind.")
    return stats.auroc(labels, scores, clusters)
