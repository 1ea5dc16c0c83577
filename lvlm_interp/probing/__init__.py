"""Linear probes on activations: what is there, where it is lost, and whether the model uses it."""

from lvlm_interp.probing.estimators import (
    LogisticProbe,
    MeanDifferenceProbe,
    MLPProbe,
    RidgeProbe,
)
from lvlm_interp.probing.sweep import ProbeSweep, sweep

__all__ = [
    "LogisticProbe",
    "MLPProbe",
    "MeanDifferenceProbe",
    "ProbeSweep",
    "RidgeProbe",
    "sweep",
]
