"""Kernel alignment: do the two sides find the same rows alike, near and far?

Kornblith et al. 2019 (arXiv 1905.00414), CKA; Song et al. 2012 (JMLR 13), eq. 5, the unbiased HSIC;
Huh et al. 2024 (arXiv 2405.07987), CKNNA. With n below the width, biased CKA is large on noise:
sqrt(dA dB / ((dA + n)(dB + n))); debiased is the default here.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import Float

from lvlm_interp.alignment.arrays import Rows, paired, rows, squared_distances, unit
from lvlm_interp.alignment.neighbours import nearest
from lvlm_interp.errors import UsageError

__all__ = ["KernelName", "KernelVariant", "Sigma", "cka", "cknna", "hsic", "kernel_matrix"]

KernelName = Literal["linear", "rbf"]
KernelVariant = Literal["paper", "platonic"]
Sigma = Literal["median", "median_all", "platonic"] | float

_EPSILON = 1e-6
"""What the released Platonic code adds below the fraction."""


def kernel_matrix(
    x: Rows, kernel: KernelName = "linear", *, sigma: Sigma = "median"
) -> Float[np.ndarray, "n n"]:
    """Gram matrix: inner products, or exp(-D2 / (2 sigma ** 2)).

    Args:
        x: Features `n d`.
        kernel: `"linear"` or `"rbf"`.
        sigma: Of `"rbf"`: `"median"`, sigma ** 2 the median of the squared distances that are not 0
            (Maniparambil et al. 2024); `"median_all"`, of all of them (the Aristotelian view, arXiv
            2602.14486); `"platonic"`, sigma 1 on unit rows; or a number, on the rows as they are.

    Raises:
        UsageError: No such kernel or rule, or a sigma that is not positive.
    """
    values = rows(x)
    if kernel == "linear":
        return values @ values.T
    if kernel != "rbf":
        raise UsageError(f"kernel must be 'linear' or 'rbf', got {kernel!r}")
    distances = squared_distances(unit(values) if sigma == "platonic" else values)
    if sigma == "median":
        spread = float(np.median(distances[distances != 0])) if distances.any() else 0.0
    elif sigma == "median_all":
        spread = float(np.median(distances))
    elif sigma == "platonic":
        spread = 1.0
    elif isinstance(sigma, str):
        raise UsageError(
            f"sigma must be 'median', 'median_all', 'platonic' or a number, got {sigma!r}"
        )
    else:
        spread = float(sigma) ** 2
    if not spread > 0:
        raise UsageError(f"expected a positive sigma, got {math.sqrt(spread)}: the rows are alike")
    return np.exp(-distances / (2 * spread))


def hsic(
    left: Float[np.ndarray, "n n"], right: Float[np.ndarray, "n n"], *, debiased: bool = True
) -> float:
    """Hilbert-Schmidt independence criterion of two Gram matrices.

    Args:
        left: Gram matrix; it need not be symmetric (CKNNA).
        right: The other.
        debiased: The U-statistic of Song et al. 2012, eq. 5, which may be negative; otherwise
            tr(K H L H), without a factor for n.

    Raises:
        UsageError: Fewer than 4 rows for the U-statistic.
    """
    n = len(left)
    if not debiased:
        centre = np.eye(n) - 1 / n
        return float(((centre @ left @ centre) * right.T).sum())
    if n < 4:
        raise UsageError(f"the debiased HSIC needs at least 4 rows, got {n}")
    left, right = left.copy(), right.copy()
    np.fill_diagonal(left, 0.0)
    np.fill_diagonal(right, 0.0)
    both = (left * right.T).sum() + left.sum() * right.sum() / ((n - 1) * (n - 2))
    cross = left.sum(axis=0) @ right.sum(axis=1)
    return float((both - 2 * cross / (n - 2)) / (n * (n - 3)))


def _ratio(top: float, left: float, right: float, variant: KernelVariant) -> float:
    if variant not in ("paper", "platonic"):
        raise UsageError(f"variant must be 'paper' or 'platonic', got {variant!r}")
    product = left * right
    if product < 0 or not (product > 0 or variant == "platonic"):
        return math.nan
    return top / (math.sqrt(product) + (_EPSILON if variant == "platonic" else 0.0))


def cka(
    x: Rows,
    y: Rows,
    kernel: KernelName = "linear",
    *,
    debiased: bool = True,
    sigma: Sigma = "median",
    variant: KernelVariant = "paper",
) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)): centred kernel alignment.

    Args:
        x: Features `n d`.
        y: Features of the same rows, of any width.
        kernel: `"linear"` or `"rbf"`.
        debiased: With the U-statistic (at least 4 rows), which is 0 in the mean without a relation
            and may be negative; otherwise the paper's biased one, at most 1.
        sigma: Width of `"rbf"`, see `kernel_matrix`.
        variant: `"platonic"` adds 1e-6 to the denominator as the released code does: with small
            features that changes the value (features x 1e-3 take 0.67 to 0.13).

    Returns:
        The value; NaN where one side has no spread.

    Raises:
        UsageError: Rows that do not pair, too few rows, an unknown option.
    """
    left, right = paired(x, y, 4 if debiased else 2)
    grams = [kernel_matrix(side, kernel, sigma=sigma) for side in (left, right)]
    own = [hsic(gram, gram, debiased=debiased) for gram in grams]
    return _ratio(hsic(grams[0], grams[1], debiased=debiased), own[0], own[1], variant)


def cknna(
    x: Rows, y: Rows, k: int = 10, *, debiased: bool = True, variant: KernelVariant = "paper"
) -> float:
    """CKA of the neighbours that both sides share (Huh et al. 2024, app. A).

    HSIC(M o K, M o L) over the square root of the same with each side's own neighbours, M being 1
    where j is among the k nearest of i on both sides. M o K is not symmetric; the U-statistic keeps
    its transpose. It may exceed 1.

    Args:
        x: Features `n d`.
        y: Features of the same rows.
        k: Neighbours, 2 to n - 1.
        debiased: As `cka`; biased, a row counts as its own neighbour, as in the released code.
        variant: `"paper"` on unit rows; `"platonic"` on rows as given, with 1e-6 in the
            denominator.

    Raises:
        UsageError: As `nearest`; k below 2.
    """
    left, right = paired(x, y, 4 if debiased else 3)
    if k < 2:
        raise UsageError(f"CKNNA needs k of at least 2, got {k}")
    if variant == "paper":
        left, right = unit(left), unit(right)
    sides = []
    for values in (left, right):
        mask = np.zeros((len(values), len(values)))
        if debiased:
            near = nearest(values, k, variant="platonic")
        else:
            near = np.argsort(-(values @ values.T), axis=1, kind="stable")[:, :k]
        np.put_along_axis(mask, near, 1.0, axis=1)
        sides.append((mask, values @ values.T))
    (mask_k, gram_k), (mask_l, gram_l) = sides
    both = mask_k * mask_l
    return _ratio(
        hsic(both * gram_k, both * gram_l, debiased=debiased),
        hsic(mask_k * gram_k, mask_k * gram_k, debiased=debiased),
        hsic(mask_l * gram_l, mask_l * gram_l, debiased=debiased),
        variant,
    )
