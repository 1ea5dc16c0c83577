"""Intervals and tests for results whose rows are not independent.

Rows that share a scene, an image or a pair vary together, so every interval here resamples whole
clusters. All functions are deterministic for a given `seed`, and values are in whatever unit came
in.
"""

from lvlm_interp.stats.estimate import Estimate
from lvlm_interp.stats.intervals import (
    cluster_bootstrap,
    difference,
    mean_of_ratios,
    rate,
    ratio_of_means,
    wilson,
)
from lvlm_interp.stats.permutation import (
    TestResult,
    benjamini_hochberg,
    paired_permutation_test,
    permutation_test,
)

__all__ = [
    "Estimate",
    "TestResult",
    "benjamini_hochberg",
    "cluster_bootstrap",
    "difference",
    "mean_of_ratios",
    "paired_permutation_test",
    "permutation_test",
    "rate",
    "ratio_of_means",
    "wilson",
]
