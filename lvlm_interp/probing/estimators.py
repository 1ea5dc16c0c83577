"""Probes as scikit-learn classifiers: logistic, ridge, difference of means, and a small MLP.

All take raw activations; where a probe standardises them, it does so with the training rows alone
and gives its weights back in the units of the activations, so that `direction_` can be added to a
residual stream as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["LogisticProbe", "MLPProbe", "MeanDifferenceProbe", "RidgeProbe"]

X2d = Float[np.ndarray, "row feature"]
Weights = str | Mapping[Any, float] | None


class _Probe(ClassifierMixin, BaseEstimator):
    """What all probes share: validation, classes and standardisation."""

    def _start(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        checked: Any = validate_data(self, X, y, dtype=(np.float64, np.float32))
        X, y = checked
        if y.dtype.kind in "fc" or y.ndim > 1:  # the check costs as much as a small fit
            check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"A probe needs at least 2 classes; the data contain 1 class: {self.classes_[0]!r}."
            )
        return X, codes

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        checked: Any = validate_data(self, X, reset=False, dtype=(np.float64, np.float32))
        return checked

    def _named(self, scores: np.ndarray) -> np.ndarray:
        codes = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return self.classes_[codes]


class _LinearProbe(_Probe):
    """A probe that scores `X @ coef_.T + intercept_`: a row per class, one row for two classes."""

    coef_: np.ndarray
    intercept_: np.ndarray

    def decision_function(
        self, X: X2d
    ) -> Float[np.ndarray, " row"] | Float[np.ndarray, "row class"]:
        """Signed score towards `classes_[1]`, or one score per class."""
        scores = self._checked(X) @ self.coef_.T + self.intercept_
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: X2d) -> Shaped[np.ndarray, " row"]:
        """The class of each row."""
        return self._named(self.decision_function(X))

    @property
    def direction_(self) -> Float[np.ndarray, " feature"]:
        """Unit vector towards `classes_[1]`, in the units of the activations.

        Raises:
            AttributeError: There are more than two classes.
        """
        check_is_fitted(self)
        if len(self.coef_) != 1:
            raise AttributeError(f"{len(self.classes_)} classes have no one direction.")
        return self.coef_[0] / max(np.linalg.norm(self.coef_[0]), np.finfo(float).tiny)

    def _set_from_standard(self, coef: np.ndarray, intercept: np.ndarray, scale: _Scale) -> None:
        self.coef_ = coef / scale.std
        self.intercept_ = intercept - self.coef_ @ scale.mean


class LogisticProbe(_LinearProbe):
    """Logistic regression (lbfgs, L2), multinomial for more than two classes.

    Args:
        C: Inverse strength of the penalty, as in scikit-learn.
        standardize: Scale features to unit variance on the training rows before the penalty.
        class_weight: `balanced` weighs classes alike, as balanced accuracy does; or a weight for
            each class; None weighs rows.
        max_iter: Of lbfgs.
        tol: Of lbfgs.
    """

    def __init__(
        self,
        C: float = 0.1,
        standardize: bool = True,
        class_weight: Weights = None,
        max_iter: int = 1000,
        tol: float = 1e-4,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.standardize = standardize
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: X2d, y: Shaped[np.ndarray, " row"]) -> LogisticProbe:
        """Fit; returns self."""
        X, codes = self._start(X, y)
        scale = _Scale(X, self.standardize)
        inner = LogisticRegression(C=self.C, max_iter=self.max_iter, tol=self.tol)
        inner.fit(scale(X), codes, sample_weight=_weights(self.class_weight, codes, self.classes_))
        self.n_iter_ = int(np.max(inner.n_iter_))
        self._set_from_standard(inner.coef_, np.atleast_1d(inner.intercept_), scale)
        return self

    def predict_proba(self, X: X2d) -> Float[np.ndarray, "row class"]:
        """Probability of each class."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)


class RidgeProbe(_LinearProbe):
    """Least squares on -1 and 1 with an L2 penalty, one against the rest for several classes.

    Args:
        alpha: Strength of the penalty.
        standardize: Scale features to unit variance on the training rows before the penalty.
        class_weight: `balanced`, a weight for each class, or None.
    """

    def __init__(
        self, alpha: float = 10.0, standardize: bool = True, class_weight: Weights = None
    ) -> None:
        self.alpha = alpha
        self.standardize = standardize
        self.class_weight = class_weight

    def fit(self, X: X2d, y: Shaped[np.ndarray, " row"]) -> RidgeProbe:
        """Fit; returns self."""
        X, codes = self._start(X, y)
        scale = _Scale(X, self.standardize)
        inner = RidgeClassifier(alpha=self.alpha)
        inner.fit(scale(X), codes, sample_weight=_weights(self.class_weight, codes, self.classes_))
        self._set_from_standard(np.atleast_2d(inner.coef_), np.atleast_1d(inner.intercept_), scale)
        return self


class MeanDifferenceProbe(_LinearProbe):
    """Nearest class mean; for two classes the direction is the difference of the means.

    Nothing is tuned. Marks and Tegmark (2023), "The Geometry of Truth", call the binary case
    mass-mean probing (here without their covariance correction).
    """

    def fit(self, X: X2d, y: Shaped[np.ndarray, " row"]) -> MeanDifferenceProbe:
        """Fit; returns self."""
        X, codes = self._start(X, y)
        means = np.stack([X[codes == code].mean(axis=0) for code in range(len(self.classes_))])
        offsets = -(means**2).sum(axis=1) / 2
        if len(means) == 2:
            means, offsets = means[1:] - means[:1], offsets[1:] - offsets[:1]
        self.coef_, self.intercept_ = means, offsets
        return self


class MLPProbe(_Probe):
    """One hidden layer, for contrast: what a linear probe misses.

    Args:
        hidden: Width of the hidden layer.
        alpha: L2 penalty.
        class_weight: `balanced`, a weight for each class, or None.
        max_iter: Epochs at most.
        random_state: Of the initial weights and of the order of rows.
    """

    def __init__(
        self,
        hidden: int = 32,
        alpha: float = 1e-3,
        class_weight: Weights = None,
        max_iter: int = 300,
        random_state: int | None = 0,
    ) -> None:
        self.class_weight = class_weight
        self.hidden = hidden
        self.alpha = alpha
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: X2d, y: Shaped[np.ndarray, " row"]) -> MLPProbe:
        """Fit; returns self."""
        X, codes = self._start(X, y)
        self.scale_ = _Scale(X, True)
        self.network_ = MLPClassifier(
            (self.hidden,),
            alpha=self.alpha,
            max_iter=self.max_iter,
            learning_rate_init=5e-3,
            random_state=self.random_state,
        )
        weights = compute_sample_weight(self.class_weight, self.classes_[codes])
        self.network_.fit(self.scale_(X), codes, sample_weight=weights)
        self.n_iter_ = self.network_.n_iter_
        return self

    def predict_proba(self, X: X2d) -> Float[np.ndarray, "row class"]:
        """Probability of each class."""
        X = self._checked(X)
        check_is_fitted(self)
        return np.asarray(self.network_.predict_proba(self.scale_(X)))

    def predict(self, X: X2d) -> Shaped[np.ndarray, " row"]:
        """The class of each row."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def _weights(class_weight: Weights, codes: np.ndarray, classes: np.ndarray) -> np.ndarray | None:
    """Weight of each row; scikit-learn's own `balanced` gives the same at ten times the cost."""
    if class_weight is None:
        return None
    if not isinstance(class_weight, str):
        return compute_sample_weight(class_weight, classes[codes])
    if class_weight != "balanced":
        raise ValueError(
            f"class_weight is 'balanced', weights by class, or None, got {class_weight!r}."
        )
    counts = np.bincount(codes)
    return (len(codes) / (len(counts) * counts))[codes]


class _Scale:
    """Mean and deviation of the training rows; a constant feature is left as it is."""

    def __init__(self, X: np.ndarray, on: bool) -> None:
        self.mean = X.mean(axis=0) if on else np.zeros(X.shape[1], X.dtype)
        self.std = X.std(axis=0) if on else np.ones(X.shape[1], X.dtype)
        self.std = np.where(self.std > 1e-6 * (1 + np.abs(self.mean)), self.std, 1.0)

    def __call__(self, X: np.ndarray) -> np.ndarray:
        return (X - self.mean) / self.std
