"""Paired rows: what every metric takes, checked once and in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.errors import UsageError

__all__ = ["Rows", "centred", "paired", "rows", "squared_distances", "unit"]

Rows = np.ndarray | Tensor | Sequence[Any]
"""Features `n d`: one row per example, as numpy or torch."""


def rows(x: Rows, name: str = "x") -> Float[np.ndarray, "n d"]:
    """Features as a float64 matrix.

    Raises:
        UsageError: Not a matrix, or a value that is not finite.
    """
    if isinstance(x, Tensor):
        x = x.detach().cpu().double().numpy()
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 2:
        raise UsageError(
            f"expected {name} as a matrix of examples by features, got shape {values.shape}: "
            "average or select the positions first"
        )
    bad = (~np.isfinite(values)).any(axis=1).sum()
    if bad:
        raise UsageError(
            f"expected finite features, got {bad} rows of {name} with NaN or infinity: drop those "
            "examples from both sides"
        )
    return values


def paired(
    x: Rows, y: Rows, least: int = 2
) -> tuple[Float[np.ndarray, "n dx"], Float[np.ndarray, "n dy"]]:
    """Two matrices whose rows belong together.

    Args:
        x: Features of one side.
        y: Features of the other, of any width.
        least: How many pairs the metric needs.

    Raises:
        UsageError: As `rows`, unequal numbers of rows, or too few.
    """
    left, right = rows(x, "x"), rows(y, "y")
    if len(left) != len(right):
        raise UsageError(
            f"expected row i of x to belong to row i of y, got {len(left)} and {len(right)} rows"
        )
    if len(left) < least:
        raise UsageError(f"expected at least {least} pairs for this metric, got {len(left)}")
    return left, right


def unit(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows at length 1; a row of zeros stays."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms == 0, 1.0, norms)


def centred(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows less their mean."""
    return x - x.mean(axis=0)


def squared_distances(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """Squared Euclidean distances of all rows, never negative, exactly 0 on the diagonal."""
    gram = x @ x.T
    norms = np.diag(gram)
    found = np.maximum(norms[:, None] + norms[None] - 2 * gram, 0.0)
    np.fill_diagonal(found, 0.0)
    return found
