"""Patching: which components carry the answer, found by exchanging them between two runs."""

from lvlm_interp.patching.ablation import ablate
from lvlm_interp.patching.activation import activation_patch
from lvlm_interp.patching.attribution import attribution_patch
from lvlm_interp.patching.gradients import Integration
from lvlm_interp.patching.heads import HeadMeans, head_edit, head_means
from lvlm_interp.patching.result import PatchResult

__all__ = [
    "HeadMeans",
    "Integration",
    "PatchResult",
    "ablate",
    "activation_patch",
    "attribution_patch",
    "head_edit",
    "head_means",
]
