"""AUROC with an interval: how well a score tells two kinds of rows apart.

References:
    DeLong, DeLong and Clarke-Pearson (1988) and, for clusters, Obuchowski (1997), "Nonparametric
    analysis of clustered ROC curve data" (variance from the structural components). Hanley and
    McNeil (1982), eq. 2, and Newcombe (2006), "Confidence intervals for an effect size measure
    based on the Mann-Whitney statistic", part 2, method 5 (the score interval).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize
from scipy import stats as scipy_stats

from lvlm_interp.errors import UsageError
from lvlm_interp.stats.estimate import Estimate
from lvlm_interp.stats.rates import between, few_clusters
from lvlm_interp.stats.resampling import Values, prepare

__all__ = ["area", "auroc"]


def auroc(
    truth: Values,
    scores: Values,
    clusters: Values | None = None,
    *,
    strata: Values | None = None,
    inflation: float = 1.0,
    level: float = 0.95,
) -> Estimate:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order.

    Ties count half. The interval is Newcombe's on effective numbers of rows: they are those of the
    rows divided by the ratio of Obuchowski's variance over clusters to Hanley and McNeil's of
    independent rows, never below 1, and by the square of t(clusters - 1) / t(rows - 1). So perfect
    separation of a few rows has a width as well; there the numbers are those of the clusters.

    Args:
        truth: Whether each row is positive.
        scores: One per row.
        clusters: One label per row; None when rows are independent.
        strata: One label per row; only pairs within a stratum count. Scores of different probes
            (folds) have different units and are not ranked together.
        inflation: Factor on the variance that the rows cannot show, such as that of refitting.
        level: Coverage of the interval.

    Returns:
        The area; NaN where no stratum has both kinds. `n` is the number of rows.

    Raises:
        UsageError: Lengths that differ, or scores that are not finite.
    """
    values, index = prepare(scores, clusters)
    positive = np.asarray(truth, dtype=bool)
    if len(positive) != len(values):
        raise UsageError(f"expected one truth per score, got {len(positive)} for {len(values)}")
    _, stratum = prepare(np.zeros(len(values)), strata if strata is not None else [0] * len(values))
    above, opponents = _wins(values, positive, stratum)
    pairs = float(opponents[positive].sum())
    n = len(values)
    if not pairs:
        return Estimate(math.nan, math.nan, math.nan, n)
    estimate = float(above[positive].sum() / pairs)
    n_clusters = int(index.max()) + 1
    if n_clusters == 1:
        return Estimate(estimate, math.nan, math.nan, n)
    variance = between(np.bincount(index, weights=(above - estimate * opponents) / pairs))
    sides = [len(set(index[each & (opponents > 0)])) for each in (positive, ~positive)]
    if 0 < estimate < 1:
        rows = [int((each & (opponents > 0)).sum()) for each in (positive, ~positive)]
        deff = (
            max(1.0, variance / _variance(estimate, *rows))
            * few_clusters(n, n_clusters, level) ** 2
        )
        sides = [max(1.0, each / deff) for each in rows]
    positives, negatives = (each / inflation for each in sides)
    low, high = _newcombe(estimate, positives, negatives, level)
    return Estimate(estimate, low, high, n)


def area(truth: Values, scores: Values) -> float:
    """AUROC without an interval; NaN where all rows are of one kind."""
    values, _ = prepare(scores, None)
    positive = np.asarray(truth, dtype=bool)
    above, opponents = _wins(values, positive, np.zeros(len(values), dtype=np.intp))
    pairs = float(opponents[positive].sum())
    return float(above[positive].sum() / pairs) if pairs else math.nan


def _wins(
    scores: Float[np.ndarray, " row"], positive: np.ndarray, stratum: Int[np.ndarray, " row"]
) -> tuple[np.ndarray, np.ndarray]:
    """Per row the pairs it takes part in that are in the right order, and all of them.

    By midranks, in n log n: a positive row stands above (rank among all - rank among positives)
    negatives of its stratum; a negative below the rest of the positives.
    """
    above, opponents = np.zeros(len(scores)), np.zeros(len(scores))
    for each in range(int(stratum.max(initial=-1)) + 1):
        here = np.flatnonzero(stratum == each)
        ranks = scipy_stats.rankdata(scores[here])
        for side in (True, False):
            mine = positive[here] == side
            own = scipy_stats.rankdata(scores[here][mine])
            beaten = ranks[mine] - own
            others = int((~mine).sum())
            above[here[mine]] = beaten if side else others - beaten
            opponents[here[mine]] = others
    return above, opponents


def _variance(theta: float, positives: float, negatives: float) -> float:
    """Hanley and McNeil's variance under exponential scores, with Newcombe's N* on both sides."""
    star = max((positives + negatives) / 2 - 1, 0.0)
    spread = 1 + star * ((1 - theta) / (2 - theta) + theta / (1 + theta))
    return theta * (1 - theta) * spread / (positives * negatives)


def _newcombe(
    theta: float, positives: float, negatives: float, level: float
) -> tuple[float, float]:
    """Where (theta - x)^2 = z^2 variance(x), below and above the estimate."""
    z = float(scipy_stats.norm.ppf(0.5 + level / 2))

    def excess(x: float) -> float:
        return (theta - x) ** 2 - z * z * _variance(x, positives, negatives)

    # At 0 and at 1 the excess has a second root, on the edge itself.
    low = 0.0 if theta <= 0 else _root(excess, 0.0, min(theta, 1 - 1e-9))
    high = 1.0 if theta >= 1 else _root(excess, max(theta, 1e-9), 1.0)
    return low, high


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    found: Any = optimize.brentq(function, low, high)
    return float(found)
