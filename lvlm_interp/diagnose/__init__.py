"""The main job: which flaw, where inside, what acting there does, with a verdict and a report."""

from lvlm_interp.diagnose.job import Outcome, run

diagnose = run
"""The name of the command; in Python `li.diagnose.run(model, data)` reads better."""

__all__ = ["Outcome", "diagnose", "run"]
