"""One probing problem: folds, regularisation chosen inside the training folds, and the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn import base, config_context
from sklearn.model_selection import ParameterGrid

from lvlm_interp.errors import UsageError
from lvlm_interp.probing.design import MAIN, Design
from lvlm_interp.probing.estimators import (
    LogisticProbe,
    MeanDifferenceProbe,
    MLPProbe,
    RidgeProbe,
)
from lvlm_interp.probing.scores import point_balanced

__all__ = ["PROBES", "Outcome", "Problem", "fit_problem", "probe_of"]

PROBES: dict[str, tuple[Any, dict[str, Sequence[Any]]]] = {
    "logistic": (LogisticProbe(class_weight="balanced", tol=1e-3), {"C": (0.001, 0.01, 0.1)}),
    "ridge": (RidgeProbe(class_weight="balanced"), {"alpha": (1000.0, 100.0, 10.0)}),
    "mean_difference": (MeanDifferenceProbe(), {}),
    "mlp": (MLPProbe(class_weight="balanced"), {"alpha": (1.0, 0.01)}),
}
"""Probes by name, and the regularisation that is tried, the strongest first."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Features of one site, position and head.

    Attributes:
        control: `none` for the model's own activations, else the baseline they come from.
        site, position, head: Where from; head is None for all of it.
        X: Features.
        rows: Example of each row.
    """

    control: str
    site: str
    position: str
    head: int | None
    X: Float[np.ndarray, "row feature"]
    rows: Int[np.ndarray, " row"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the probes of one problem predicted, each row by a probe that did not see its group.

    Attributes:
        control, site, position, head: Of the problem.
        rows: Example of each row that took part.
        predicted: Codes by label control (`none` is the task itself).
        score: Score towards the second class where there are two; NaN otherwise.
        inner: Balanced accuracy on the validation fold, per outer fold: what sites are chosen by.
        chosen: Regularisation per outer fold.
    """

    control: str
    site: str
    position: str
    head: int | None
    rows: np.ndarray
    predicted: dict[str, np.ndarray]
    score: np.ndarray
    inner: np.ndarray
    chosen: tuple[dict[str, Any], ...]


def probe_of(
    probe: str | Any, grid: Mapping[str, Sequence[Any]] | None
) -> tuple[Any, list[dict[str, Any]]]:
    """An unfitted probe and the settings to try.

    Raises:
        UsageError: No probe of that name, or settings that it does not have.
    """
    if isinstance(probe, str):
        if probe not in PROBES:
            raise UsageError(f"There is no probe {probe!r}; there are {', '.join(PROBES)}.")
        estimator, usual = PROBES[probe]
    else:
        estimator, usual = probe, {}
    found = list(ParameterGrid({k: list(v) for k, v in (usual if grid is None else grid).items()}))
    try:
        for settings in found:
            _fresh(estimator, settings)
    except ValueError as error:
        raise UsageError(f"The probe cannot take these settings: {error}") from error
    return estimator, found


def fit_problem(
    problem: Problem, design: Design, estimator: Any, settings: Sequence[Mapping[str, Any]]
) -> Outcome:
    """Predict every fold by a probe trained on the others.

    The probes of the label controls take the regularisation that the task chose.
    """
    # Rows are finite and settings were checked: scikit-learn need not look again at every fit.
    with config_context(assume_finite=True, skip_parameter_validation=True):
        return _fit_problem(problem, design, estimator, settings)


def _fit_problem(
    problem: Problem, design: Design, estimator: Any, settings: Sequence[Mapping[str, Any]]
) -> Outcome:
    taking = (design.fold[problem.rows] >= 0) & np.isfinite(problem.X).all(axis=1)
    X, rows = problem.X[taking], problem.rows[taking]
    folds = design.fold[rows]
    codes = {
        name: values[rows]
        for name, values in design.codes.items()
        if name == MAIN or problem.control == MAIN
    }
    predicted = {name: np.full(len(rows), -1) for name in codes}
    score, inner, chosen = np.full(len(rows), np.nan), [], []
    for fold in range(design.n_folds):
        fitting, validation, held = design.training(fold, folds)
        tried = [
            _validated(estimator, each, X, codes[MAIN], fitting, validation) for each in settings
        ]
        best = int(np.argmax(tried))
        inner.append(tried[best])
        chosen.append(dict(settings[best]))
        for name, y in codes.items():
            fitted = _fresh(estimator, settings[best]).fit(X[~held], y[~held])
            predicted[name][held] = fitted.predict(X[held])
            if name == MAIN and len(design.classes) == 2:
                score[held] = _score(fitted, X[held])
    return Outcome(
        problem.control, problem.site, problem.position, problem.head,
        rows, predicted, score, np.array(inner), tuple(chosen),
    )  # fmt: skip


def _validated(
    estimator: Any,
    settings: Mapping[str, Any],
    X: np.ndarray,
    y: np.ndarray,
    fitting: np.ndarray,
    validation: np.ndarray,
) -> float:
    fitted = _fresh(estimator, settings).fit(X[fitting], y[fitting])
    return point_balanced(y[validation], fitted.predict(X[validation]) == y[validation])


def _fresh(estimator: Any, settings: Mapping[str, Any]) -> Any:
    """An unfitted copy of a probe with some settings."""
    copy: Any = base.clone(estimator)
    return copy.set_params(**settings)


def _score(fitted: Any, X: np.ndarray) -> np.ndarray:
    if hasattr(fitted, "decision_function"):
        return fitted.decision_function(X)
    return fitted.predict_proba(X)[:, 1]
