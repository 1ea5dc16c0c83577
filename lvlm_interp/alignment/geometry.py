"""Whole geometries: canonical correlation, distances, rotations."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats as scipy_stats
from scipy.spatial.distance import pdist

from lvlm_interp.alignment.arrays import Rows, centred, paired
from lvlm_interp.errors import UsageError

__all__ = ["procrustes", "rsa", "svcca"]

Compare = Literal["spearman", "pearson", "cosine", "kendall"]


def svcca(
    x: Rows,
    y: Rows,
    *,
    threshold: float = 0.99,
    variant: Literal["paper", "platonic"] = "paper",
    dims: int = 10,
) -> float:
    """Mean canonical correlation of the leading singular subspaces (Raghu et al. 2017, 1706.05806).

    Exact: the canonical correlations of two subspaces with orthonormal bases U and V are the
    singular values of U'V (Bjorck and Golub 1973). The released Platonic code draws its SVD and
    iterates its CCA: 0.40 to 0.88 by seed on a rotated copy.

    Args:
        x: Features `n d`.
        y: Features of the same rows.
        threshold: Share of the variance that each side keeps.
        variant: `"paper"` keeps `threshold` of the variance of the centred rows; `"platonic"`
            standardises columns and keeps `dims` directions, as the released code means to.
        dims: Directions of `"platonic"`.

    Raises:
        UsageError: Rows that do not pair, or an unknown option.
    """
    left, right = paired(x, y, 3)
    if variant not in ("paper", "platonic") or not 0 < threshold <= 1:
        raise UsageError(
            "expected variant 'paper' or 'platonic' and 0 < threshold <= 1, got "
            f"{variant!r} and {threshold}"
        )
    bases = []
    for values in (centred(left), centred(right)):
        if variant == "platonic":
            values = values / (values.std(axis=0, ddof=1) + 1e-8)
        u, s, _ = np.linalg.svd(values, full_matrices=False)
        rank = int((s > s[0] * max(values.shape) * np.finfo(float).eps).sum())
        share = np.cumsum(s**2) / (s**2).sum() if rank else s
        # Rounding must not ask for one direction more where the threshold is met exactly.
        kept = int(np.searchsorted(share, threshold - 1e-12)) + 1
        bases.append(u[:, : min(rank, kept if variant == "paper" else dims)])
    if not (bases[0].shape[1] and bases[1].shape[1]):
        return math.nan
    correlations = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return float(correlations.clip(0, 1).mean())


def rsa(
    x: Rows,
    y: Rows,
    *,
    distance: Literal[
        "euclidean", "sqeuclidean", "cosine", "correlation", "cityblock"
    ] = "euclidean",
    compare: Compare = "spearman",
) -> float:
    """Correlation of the two condensed distance matrices (Kriegeskorte et al. 2008).

    Args:
        x: Features `n d`.
        y: Features of the same rows.
        distance: Between rows, as scipy names it; rsatoolbox's `euclidean` is the squared one / d,
            whose ranks are the same.
        compare: `"spearman"`, `"pearson"`, `"kendall"`, or `"cosine"`, which is high on noise
            (0.97) since distances are positive.

    Raises:
        UsageError: Fewer than 3 rows, or an unknown option.
    """
    left, right = paired(x, y, 3)
    try:
        a, b = pdist(left, distance), pdist(right, distance)
    except ValueError as error:
        raise UsageError(f"no distance {distance!r}: {error}") from error
    if compare == "cosine":
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    if compare not in ("spearman", "pearson", "kendall"):
        raise UsageError(
            f"compare must be 'spearman', 'pearson', 'kendall' or 'cosine', got {compare!r}"
        )
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    test = {"spearman": scipy_stats.spearmanr, "pearson": scipy_stats.pearsonr}
    found = test.get(compare, scipy_stats.kendalltau)(a, b)
    return float(found[0])


def procrustes(x: Rows, y: Rows, *, angular: bool = False) -> float:
    """Distance of the shapes after the best rotation (Williams et al. 2021, arXiv 2110.14739).

    Rows centred and at unit Frobenius norm, nuc the nuclear norm of A'B: sqrt(2 - 2 nuc), 0 to
    sqrt 2, or arccos(nuc) in radians. Unequal widths are as if padded with zeros. It is a distance:
    small where the sides agree.

    Raises:
        UsageError: Rows that do not pair.
    """
    left, right = (_unit_frobenius(centred(side)) for side in paired(x, y))
    nuclear = float(np.linalg.svd(left.T @ right, compute_uv=False).sum())
    if not (left.any() and right.any()):
        return math.nan
    if angular:
        return math.acos(min(1.0, nuclear))
    return math.sqrt(max(0.0, 2 - 2 * nuclear))


def _unit_frobenius(values: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    norm = np.linalg.norm(values)
    return values / norm if norm > 0 else values
