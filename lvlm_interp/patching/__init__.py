"""Patching: which components carry the answer, found by exchanging them between two runs."""

from lvlm_interp.patching.ablation import ablate
from lvlm_interp.patching.activation import activation_patch
from lvlm_interp.patching.answers import answer_set_metric
from lvlm_interp.patching.attribution import attribution_patch
from lvlm_interp.patching.direct import DirectResult, direct_logit_attribution
from lvlm_interp.patching.gradients import Integration
from lvlm_interp.patching.heads import HeadMeans, head_edit, head_means
from lvlm_interp.patching.joint import patch_together
from lvlm_interp.patching.knockout import KnockoutResult, attention_knockout, knocked_out
from lvlm_interp.patching.paths import path_patch
from lvlm_interp.patching.result import PatchResult

__all__ = [
    "DirectResult",
    "HeadMeans",
    "Integration",
    "KnockoutResult",
    "PatchResult",
    "ablate",
    "activation_patch",
    "answer_set_metric",
    "attention_knockout",
    "attribution_patch",
    "direct_logit_attribution",
    "head_edit",
    "head_means",
    "knocked_out",
    "patch_together",
    "path_patch",
]
