"""Do the two sides have the same neighbours?

Huh et al. 2024 (arXiv 2405.07987), section 2 and app. A. Neighbours are the k rows of largest inner
product, the row itself left out. `variant="paper"` takes rows at length 1; `variant="platonic"`
takes them as given, which is what the released functions do: their script clamps and normalises
beforehand (`platonic_features`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from lvlm_interp.alignment.arrays import Rows, paired, rows, unit
from lvlm_interp.errors import UsageError

__all__ = [
    "NeighbourVariant",
    "cycle_knn",
    "cycle_of",
    "edit_knn",
    "edit_of",
    "lcs_knn",
    "lcs_of",
    "mutual_knn",
    "nearest",
    "overlaps",
    "platonic_features",
    "shared",
]

NeighbourVariant = Literal["paper", "platonic"]


def nearest(x: Rows, k: int = 10, *, variant: NeighbourVariant = "paper") -> Int[np.ndarray, "n k"]:
    """The k nearest rows of each row, nearest first; of ties the earlier row.

    Args:
        x: Features `n d`.
        k: Neighbours, 1 to n - 1.
        variant: `"paper"` (unit rows) or `"platonic"` (rows as given).

    Raises:
        UsageError: No such variant, or k is not within 1 and n - 1.
    """
    values = rows(x)
    if variant not in ("paper", "platonic"):
        raise UsageError(f"variant must be 'paper' or 'platonic', got {variant!r}")
    if not 1 <= k < len(values):
        raise UsageError(f"expected 1 <= k <= n - 1 = {len(values) - 1} neighbours, got k={k}")
    values = unit(values) if variant == "paper" else values
    similarity = values @ values.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


def _lists(x: Rows, y: Rows, k: int, variant: NeighbourVariant) -> tuple[np.ndarray, np.ndarray]:
    left, right = paired(x, y)
    return nearest(left, k, variant=variant), nearest(right, k, variant=variant)


def overlaps(
    x: Rows, y: Rows, k: int = 10, *, variant: NeighbourVariant = "paper"
) -> Float[np.ndarray, " n"]:
    """Share of common neighbours of each row, 0 to 1; their mean is `mutual_knn`.

    Raises:
        UsageError: As `nearest`, or rows that do not pair.
    """
    return shared(*_lists(x, y, k, variant)) / k


def shared(a: Int[np.ndarray, "n k"], b: Int[np.ndarray, "n k"]) -> Int[np.ndarray, " n"]:
    """Number of common entries of each row of two lists without repetition."""
    return (a[:, :, None] == b[:, None, :]).sum(axis=(1, 2))


def mutual_knn(x: Rows, y: Rows, k: int = 10, *, variant: NeighbourVariant = "paper") -> float:
    """Mean of |N_A(i) & N_B(i)| / k, 0 to 1; k / (n - 1) without a relation (eq. 11).

    The paper reports the maximum over pairs of layers without a null: see `calibrated`.

    Raises:
        UsageError: As `overlaps`.
    """
    return float(overlaps(x, y, k, variant=variant).mean())


def cycle_knn(x: Rows, y: Rows, k: int = 10, *, variant: NeighbourVariant = "paper") -> float:
    """Share of i that is among the neighbours in x of its neighbours in y, 0 to 1.

    Saturates: without a relation about 1 - (1 - 1 / (n - 1)) ** (k * k).

    Raises:
        UsageError: As `overlaps`.
    """
    return cycle_of(*_lists(x, y, k, variant))


def cycle_of(a: Int[np.ndarray, "n k"], b: Int[np.ndarray, "n k"]) -> float:
    """`cycle_knn` of two neighbour lists."""
    return float((a[b] == np.arange(len(a))[:, None, None]).any(axis=(1, 2)).mean())


def lcs_knn(x: Rows, y: Rows, k: int = 10, *, variant: NeighbourVariant = "paper") -> float:
    """Mean length of the longest common subsequence of the ordered lists, 0 to k.

    Raises:
        UsageError: As `overlaps`.
    """
    return lcs_of(*_lists(x, y, k, variant))


def lcs_of(a: Int[np.ndarray, "n k"], b: Int[np.ndarray, "n k"]) -> float:
    """`lcs_knn` of two neighbour lists."""
    k = a.shape[1]
    length = np.zeros((k + 1, k + 1, len(a)), dtype=np.int64)
    for i in range(1, k + 1):
        for j in range(1, k + 1):
            longer = np.maximum(length[i - 1, j], length[i, j - 1])
            same = a[:, i - 1] == b[:, j - 1]
            length[i, j] = np.where(same, length[i - 1, j - 1] + 1, longer)
    return float(length[k, k].mean())


def edit_knn(x: Rows, y: Rows, k: int = 10, *, variant: NeighbourVariant = "paper") -> float:
    """1 - mean Levenshtein distance of the ordered lists / k, 0 to 1.

    Raises:
        UsageError: As `overlaps`.
    """
    return edit_of(*_lists(x, y, k, variant))


def edit_of(a: Int[np.ndarray, "n k"], b: Int[np.ndarray, "n k"]) -> float:
    """`edit_knn` of two neighbour lists."""
    k = a.shape[1]
    distance = np.zeros((k + 1, k + 1, len(a)), dtype=np.int64)
    distance[:, 0], distance[0, :] = np.arange(k + 1)[:, None], np.arange(k + 1)[:, None]
    for i in range(1, k + 1):
        for j in range(1, k + 1):
            replaced = distance[i - 1, j - 1] + (a[:, i - 1] != b[:, j - 1])
            moved = np.minimum(distance[i - 1, j], distance[i, j - 1]) + 1
            distance[i, j] = np.minimum(replaced, moved)
    return float(1 - distance[k, k].mean() / k)


def platonic_features(
    features: Float[np.ndarray, "n layer d"], *, q: float = 0.95, exact: bool = False
) -> Float[np.ndarray, "n layer d"]:
    """Features of one model as the released script prepares them: clamped once, then unit rows.

    Args:
        features: All layers of one model.
        q: Quantile of |value| at which values are clamped; 1 clamps nothing.
        exact: The quantile over all values (the sorted value at index q * size); by default the
            mean over examples of each example's own quantile.

    Raises:
        UsageError: Not three axes.
    """
    if isinstance(features, np.ndarray) and features.ndim != 3:
        raise UsageError(f"expected features 'n layer d', got shape {features.shape}")
    values = np.asarray(features, dtype=np.float64)
    size = np.abs(values)
    if q < 1:
        if exact:
            limit = np.sort(size, axis=None)[int(q * size.size)]
        else:
            limit = np.quantile(size.reshape(len(size), -1), q, axis=1).mean()
        values = values.clip(-limit, limit)
    norms = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / np.where(norms == 0, 1.0, norms)
