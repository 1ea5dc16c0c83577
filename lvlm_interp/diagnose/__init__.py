"""The main job: which flaw, where inside, what acting there does, with a verdict and a report."""

from lvlm_interp.diagnose.run import Outcome, diagnose

__all__ = ["Outcome", "diagnose"]
