"""Metrics for two sides that live in one space, such as image and text tokens of one model."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from lvlm_interp.alignment.arrays import Rows, centred, paired, squared_distances, unit
from lvlm_interp.errors import UsageError

__all__ = ["AlignmentUniformity", "alignment_uniformity", "cosine", "modality_gap"]

CosineKind = Literal["raw", "centred", "wrong", "retrieval"]


def _one_space(x: Rows, y: Rows) -> tuple[np.ndarray, np.ndarray]:
    left, right = paired(x, y)
    if left.shape[1] != right.shape[1]:
        raise UsageError(
            f"expected both sides in one space, got widths {left.shape[1]} and {right.shape[1]}: "
            "use cka or mutual_knn between spaces"
        )
    return left, right


def cosine(x: Rows, y: Rows, *, kind: CosineKind = "raw") -> float:
    """Mean cosine of row i of both sides, or what shows whether it means anything.

    The raw cosine follows the two mean vectors and hardly the pairing: look at the others too.

    Args:
        x: Features `n d`.
        y: Features of the same rows in the same space.
        kind: `"raw"`; `"centred"`, each side less its mean; `"wrong"`, the mean over all pairs that
            do not belong together; `"retrieval"`, the share of rows of x whose nearest row of y by
            centred cosine is their own (1 / n by chance).

    Raises:
        UsageError: Not one space, or an unknown kind.
    """
    left, right = _one_space(x, y)
    if kind not in ("raw", "centred", "wrong", "retrieval"):
        raise UsageError(f"kind must be 'raw', 'centred', 'wrong' or 'retrieval', got {kind!r}")
    if kind in ("centred", "retrieval"):
        left, right = centred(left), centred(right)
    left, right = unit(left), unit(right)
    if kind in ("raw", "centred"):
        return float((left * right).sum(axis=1).mean())
    table = left @ right.T
    if kind == "retrieval":
        return float((table.argmax(axis=1) == np.arange(len(table))).mean())
    n = len(table)
    return float((table.sum() - np.trace(table)) / (n * (n - 1)))


def modality_gap(x: Rows, y: Rows) -> float:
    """Distance of the two mean unit rows, 0 to 2 (Liang et al. 2022, arXiv 2203.02053, section 4).

    Raises:
        UsageError: Not one space.
    """
    left, right = _one_space(x, y)
    return float(np.linalg.norm(unit(left).mean(axis=0) - unit(right).mean(axis=0)))


class AlignmentUniformity(NamedTuple):
    """Alignment and uniformity of unit rows (Wang and Isola 2020, arXiv 2005.10242, eq. 1 and 2).

    Attributes:
        alignment: Mean of norm(a_i - b_i) ** alpha; 0 is perfect.
        uniformity_x: log of the mean of exp(-t D2) over pairs of x; more negative is more uniform.
        uniformity_y: The same of y.
    """

    alignment: float
    uniformity_x: float
    uniformity_y: float


def alignment_uniformity(
    x: Rows,
    y: Rows,
    *,
    alpha: float = 2.0,
    t: float = 2.0,
    variant: Literal["paper", "resi"] = "paper",
) -> AlignmentUniformity:
    """How close pairs are, and how evenly each side covers the sphere.

    Args:
        x: Features `n d`.
        y: Features of the same rows in the same space.
        alpha: Power of the distance.
        t: Of the Gaussian potential.
        variant: `"paper"` takes pairs i < j; `"resi"` all pairs, i = j too, as ReSi does.

    Raises:
        UsageError: Not one space, or an unknown variant.
    """
    left, right = (unit(side) for side in _one_space(x, y))
    if variant not in ("paper", "resi"):
        raise UsageError(f"variant must be 'paper' or 'resi', got {variant!r}")
    aligned = float((np.linalg.norm(left - right, axis=1) ** alpha).mean())
    return AlignmentUniformity(
        aligned, _uniformity(left, t, variant), _uniformity(right, t, variant)
    )


def _uniformity(values: np.ndarray, t: float, variant: str) -> float:
    potential = np.exp(-t * squared_distances(values))
    if variant == "resi":
        return math.log(potential.mean())
    return math.log(potential[np.triu_indices(len(values), 1)].mean())
