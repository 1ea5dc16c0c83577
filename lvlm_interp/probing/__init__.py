"""Linear probes on activations: what is there, where it is lost, and whether the model uses it."""

from lvlm_interp.probing.baselines import pixels, untrained, untrained_model
from lvlm_interp.probing.directions import CausalEffect, Direction, causal_effect
from lvlm_interp.probing.estimators import (
    LogisticProbe,
    MeanDifferenceProbe,
    MLPProbe,
    RidgeProbe,
)
from lvlm_interp.probing.knowledge import KnownNotSaid, known_but_not_said
from lvlm_interp.probing.leace import LeaceEraser
from lvlm_interp.probing.plan import Study, load_study
from lvlm_interp.probing.study import run_study
from lvlm_interp.probing.sweep import ProbeSweep, sweep
from lvlm_interp.probing.transfer import CrossTest, Place, cross_test

__all__ = [
    "CausalEffect",
    "CrossTest",
    "Direction",
    "KnownNotSaid",
    "LeaceEraser",
    "LogisticProbe",
    "MLPProbe",
    "MeanDifferenceProbe",
    "Place",
    "ProbeSweep",
    "RidgeProbe",
    "Study",
    "causal_effect",
    "cross_test",
    "known_but_not_said",
    "load_study",
    "pixels",
    "run_study",
    "sweep",
    "untrained",
    "untrained_model",
]
