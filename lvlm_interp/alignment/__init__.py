"""Alignment: do image and text tokens represent alike, and does behaviour follow?

Metrics take two arrays `n d` whose rows belong together; `calibrated` puts a null beside any of
them.
"""

from lvlm_interp.alignment.beside import Beside, beside_behaviour, per_example
from lvlm_interp.alignment.frechet import frechet, frechet_gaussians, mir
from lvlm_interp.alignment.geometry import procrustes, rsa, svcca
from lvlm_interp.alignment.kernels import cka, cknna, hsic, kernel_matrix
from lvlm_interp.alignment.matching import local_cka, matched, qap
from lvlm_interp.alignment.neighbours import (
    cycle_knn,
    edit_knn,
    lcs_knn,
    mutual_knn,
    overlaps,
    platonic_features,
)
from lvlm_interp.alignment.null import Calibrated, calibrated, class_nulls, permutations
from lvlm_interp.alignment.one_space import (
    AlignmentUniformity,
    alignment_uniformity,
    cosine,
    modality_gap,
)
from lvlm_interp.alignment.profile import Profile, profile
from lvlm_interp.alignment.trajectory import SHIPPED, Trajectory, compare, stages
from lvlm_interp.alignment.words import Vocabulary, clip_embeddings, clip_score, vocabulary

__all__ = [
    "SHIPPED",
    "AlignmentUniformity",
    "Beside",
    "Calibrated",
    "Profile",
    "Trajectory",
    "Vocabulary",
    "alignment_uniformity",
    "beside_behaviour",
    "calibrated",
    "cka",
    "cknna",
    "class_nulls",
    "clip_embeddings",
    "clip_score",
    "compare",
    "cosine",
    "cycle_knn",
    "edit_knn",
    "frechet",
    "frechet_gaussians",
    "hsic",
    "kernel_matrix",
    "lcs_knn",
    "local_cka",
    "matched",
    "mir",
    "modality_gap",
    "mutual_knn",
    "overlaps",
    "per_example",
    "permutations",
    "platonic_features",
    "procrustes",
    "profile",
    "qap",
    "rsa",
    "stages",
    "svcca",
    "vocabulary",
]
