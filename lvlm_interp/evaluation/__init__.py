"""Behaviour: what a model says, as one table of answers, and every published score of it.

`score` scores anyone's answers to a published benchmark by a rule with a name.
"""

from lvlm_interp.evaluation.answers import Answers
from lvlm_interp.evaluation.replies import said
from lvlm_interp.evaluation.scoring import RULES, Scores, score

__all__ = ["RULES", "Answers", "Scores", "said", "score"]
