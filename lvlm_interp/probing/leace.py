"""LEACE: the least change of activations that leaves a label linearly unpredictable.

Belrose et al. (2023), "LEACE: Perfect linear concept erasure in closed form", theorem 4.3:
r(x) = x - W^+ P W (x - E x), with W the whitening matrix Sigma_xx^(-1/2) (pseudo-inverse) and P the
orthogonal projection onto the columns of W Sigma_xz.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

__all__ = ["LeaceEraser"]


class LeaceEraser(TransformerMixin, BaseEstimator):
    """Erases a label from activations.

    After `transform`, the covariance of the training activations with the label is zero, so no
    linear probe (of any convex loss) does better on them than a constant.

    Args:
        tol: Directions whose variance is below this share of the largest count as none.

    Attributes:
        mean_: Mean of the training rows.
        removed_: W^+ P W, shape `feature feature`.
        rank_: Number of directions removed, at most the number of classes minus one.
    """

    def __init__(self, tol: float = 1e-8) -> None:
        self.tol = tol

    def fit(
        self, X: Float[np.ndarray, "row feature"], y: Shaped[np.ndarray, " row"]
    ) -> LeaceEraser:
        """Fit; returns self."""
        checked: Any = validate_data(self, X=cast(Any, X), y=cast(Any, y), dtype=np.float64)
        X, y = checked
        classes, codes = np.unique(y, return_inverse=True)
        Z = np.eye(len(classes))[codes]
        self.mean_ = X.mean(axis=0)
        centred = X - self.mean_
        values, vectors = np.linalg.eigh(centred.T @ centred / len(X))
        keep = values > self.tol * max(float(values.max()), np.finfo(float).tiny)
        roots, basis = np.sqrt(values[keep]), vectors[:, keep]
        cross = centred.T @ (Z - Z.mean(axis=0)) / len(X)
        whitened = (basis / roots).T @ cross
        left, size, _ = np.linalg.svd(whitened, full_matrices=False)
        left = left[:, size > 1e-6 * max(float(size.max(initial=0.0)), 1e-12)]
        self.rank_ = left.shape[1]
        self.removed_ = (basis * roots) @ left @ left.T @ (basis / roots).T
        return self

    def transform(self, X: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row feature"]:
        """The rows without what a linear probe could read of the label."""
        check_is_fitted(self)
        checked: Any = validate_data(self, X=cast(Any, X), reset=False, dtype=np.float64)
        return checked - (checked - self.mean_) @ self.removed_.T

    def edit(self, at: Tensor | None = None) -> Any:
        """The same as an edit of a site without heads.

        Args:
            at: Positions to act on, bool of shape `batch pos`; all by default.
        """
        check_is_fitted(self)
        removed, mean = torch.from_numpy(self.removed_), torch.from_numpy(self.mean_)

        def edit(value: Tensor) -> Tensor:
            new = value - (value - mean.to(value)) @ removed.to(value).T
            if at is None:
                return new
            return torch.where(at.to(value.device)[..., None], new, value)

        return edit
