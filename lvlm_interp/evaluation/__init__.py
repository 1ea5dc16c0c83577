"""Behaviour: what a model says, as one table of answers, and every published score of it.

`score` scores anyone's answers to a published benchmark by a rule with a name; `build_bench` makes
a benchmark of objects, attributes and relations from annotations, `run` asks a model questions,
`evaluate` does both into a folder, `unified` scores a table of answers by frequency, severity and
risk, `compare` holds runs against each other, and `inside` puts what a probe knows beside what was
said.
"""

from lvlm_interp.evaluation.answers import Answers
from lvlm_interp.evaluation.asking import Asking
from lvlm_interp.evaluation.bench_files import build_bench, load_bench, unified_bench
from lvlm_interp.evaluation.comparing import Comparison, compare
from lvlm_interp.evaluation.evaluating import Evaluated, evaluate
from lvlm_interp.evaluation.inside import Inside, inside
from lvlm_interp.evaluation.judge import Judge
from lvlm_interp.evaluation.judging import Reader, Reply
from lvlm_interp.evaluation.replies import said
from lvlm_interp.evaluation.running import run
from lvlm_interp.evaluation.scoring import RULES, Scores, score
from lvlm_interp.evaluation.unified import Unified, conviction, unified

__all__ = [
    "RULES",
    "Answers",
    "Asking",
    "Comparison",
    "Evaluated",
    "Inside",
    "Judge",
    "Reader",
    "Reply",
    "Scores",
    "Unified",
    "build_bench",
    "compare",
    "conviction",
    "evaluate",
    "inside",
    "load_bench",
    "run",
    "said",
    "score",
    "unified",
    "unified_bench",
]
