"""Where an answer comes from: the image, the prompt, or the language model's prior."""

from lvlm_interp.attribution.game import Shares, answer_set, dividends, four_runs, owen, shapley
from lvlm_interp.attribution.image_off import BASELINES
from lvlm_interp.attribution.replies import token_logprobs
from lvlm_interp.attribution.sources import Sources, three_sources

__all__ = [
    "BASELINES",
    "Shares",
    "Sources",
    "answer_set",
    "dividends",
    "four_runs",
    "owen",
    "shapley",
    "three_sources",
    "token_logprobs",
]
