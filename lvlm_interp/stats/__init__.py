"""Intervals and tests for results whose rows are not independent.

Rows that share a scene, an image or a pair vary together, so every interval and every test here
takes whole clusters as its unit. All functions are deterministic for a given `seed`, and values are
in whatever unit came in. Intervals of 0 and 1 never have width zero.
"""

from lvlm_interp.stats.estimate import Estimate
from lvlm_interp.stats.intervals import (
    cluster_bootstrap,
    difference,
    mean,
    mean_of_ratios,
    ratio_of_means,
)
from lvlm_interp.stats.permutation import (
    TestResult,
    benjamini_hochberg,
    holm,
    paired_permutation_test,
    permutation_test,
)
from lvlm_interp.stats.ranking import area, auroc
from lvlm_interp.stats.rates import (
    is_binary,
    paired_rate_difference,
    rate,
    rate_difference,
    wilson,
)

__all__ = [
    "Estimate",
    "TestResult",
    "area",
    "auroc",
    "benjamini_hochberg",
    "cluster_bootstrap",
    "difference",
    "holm",
    "is_binary",
    "mean",
    "mean_of_ratios",
    "paired_permutation_test",
    "paired_rate_difference",
    "permutation_test",
    "rate",
    "rate_difference",
    "ratio_of_means",
    "wilson",
]
