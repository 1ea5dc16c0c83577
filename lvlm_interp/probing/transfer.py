"""Cross-tests: a probe trained in one place and read in another, and whether directions agree.

One place may be another organism on the same scenes, another position, or another level. Groups are
kept whole across both: a probe is never read on a group it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from sklearn import base

from lvlm_interp.activations.base import Activations
from lvlm_interp.errors import UsageError
from lvlm_interp.probing.design import MAIN, Design, design_of
from lvlm_interp.probing.fitting import probe_of
from lvlm_interp.probing.scores import REFITTING, balanced_accuracy, point_balanced
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.stats import Estimate

__all__ = ["CrossTest", "Place", "cross_test"]


@dataclass(frozen=True, eq=False)
class Place:
    """Where a probe is trained or read.

    Attributes:
        data: Activations.
        site, position, head: Where in the model.
        where: Which examples, as in `sweep`.
        label: The label there; both places must have the same classes.
        group: As in `sweep`.
    """

    data: Activations
    site: str
    position: str
    head: int | None = None
    where: str | None = None
    label: str = "present"
    group: str = "group"


@dataclass(frozen=True, repr=False)
class CrossTest(Result):
    """How a probe carries over.

    Attributes:
        table: One row per held-out example and kind: `within` (trained and read at the first
            place), `cross` (trained at the first, read at the second), `ceiling` (both at the
            second).
        within, cross, ceiling: Balanced accuracies.
        cosine: Of the directions at the two places, corrected for the noise of fitting them, with
            its spread over halves of the groups; None where there are more than two classes.
    """

    within: Estimate
    cross: Estimate
    ceiling: Estimate
    cosine: Estimate | None


def cross_test(
    train: Place,
    test: Place,
    *,
    probe: str | Any = "logistic",
    grid: Mapping[str, Sequence[Any]] | None = None,
    n_folds: int = 5,
    seed: int = 0,
    n_resamples: int = 1000,
    n_refits: int = 100,
) -> CrossTest:
    """Train a probe at one place and read it at another.

    Args:
        train: Where the probe is trained.
        test: Where it is read; it must have as many features.
        probe: As in `sweep`.
        grid: As in `sweep`.
        n_folds: Folds over the groups of both places together.
        seed: Of the folds and the refits.
        n_resamples: Has no effect: the intervals of the accuracies are in closed form.
        n_refits: Random halves of the groups, on which directions are fitted for the cosine.

    Raises:
        UsageError: The places differ in classes or in the number of features.
    """
    estimator, settings = probe_of(probe, grid)
    first, second = _Side(train, n_folds, seed), _Side(test, n_folds, seed)
    if first.design.classes != second.design.classes:
        raise UsageError(
            f"The places have different classes: {first.design.classes}, {second.design.classes}."
        )
    if first.X.shape[1] != second.X.shape[1]:
        raise UsageError(
            f"{train.site} has {first.X.shape[1]} features and {test.site} {second.X.shape[1]}: "
            "a probe cannot be carried over."
        )
    folds = _folds({*first.groups, *second.groups}, n_folds, seed)
    kinds = {"within": (first, first), "cross": (first, second), "ceiling": (second, second)}
    found, frames = {}, []
    for kind, (source, target) in kinds.items():
        correct = _read(source, target, folds, n_folds, estimator, settings)
        keep = correct >= 0
        found[kind] = balanced_accuracy(
            target.y[keep],
            correct[keep] == 1,
            target.groups[keep],
            inflation=REFITTING,
        )
        frames.append(target.frame(kind, correct, keep))
    cosine = None
    if len(first.design.classes) == 2:
        cosine = _cosine(first, second, estimator, settings, n_refits, seed)
    table = ResultTable(pd.concat(frames, ignore_index=True), train.data.provenance)
    return CrossTest(table, **found, cosine=cosine)


class _Side:
    """Features, codes and groups of one place."""

    def __init__(self, place: Place, n_folds: int, seed: int) -> None:
        self.place = place
        self.design: Design = design_of(
            place.data,
            label=place.label,
            group=place.group,
            where=place.where,
            controls=(),
            n_folds=n_folds,
            seed=seed,
        )
        X, rows = place.data[place.site].rows_at(place.position, place.head)
        keep = (self.design.fold[rows] >= 0) & np.isfinite(X).all(axis=1)
        self.X, self.rows = X[keep], rows[keep]
        self.y, self.groups = self.design.codes[MAIN][self.rows], self.design.groups[self.rows]

    def frame(self, kind: str, correct: np.ndarray, keep: np.ndarray) -> pd.DataFrame:
        """Rows for the table."""
        names = self.place.data.label("example").to_numpy()
        return pd.DataFrame(
            {
                "example": names[self.rows[keep]],
                "site": self.place.site,
                "head": self.place.head,
                "position": self.place.position,
                "metric": "correct",
                "value": correct[keep].astype(float),
                "kind": kind,
                "group": self.groups[keep],
            }
        )


def _folds(groups: set[str], n_folds: int, seed: int) -> dict[str, int]:
    names = sorted(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    return {names[index]: int(place % n_folds) for place, index in enumerate(order)}


def _read(
    source: _Side,
    target: _Side,
    folds: Mapping[str, int],
    n_folds: int,
    estimator: Any,
    settings: Sequence[Mapping[str, Any]],
) -> np.ndarray:
    """1 where a row of the target is read rightly, 0 where wrongly; every row is held out once."""
    train_fold = np.array([folds[group] for group in source.groups])
    test_fold = np.array([folds[group] for group in target.groups])
    correct = np.full(len(target.y), -1)
    for fold in range(n_folds):
        held = train_fold == fold
        validation = train_fold == (fold + 1) % n_folds
        scores = []
        for each in settings:
            inner = _fit(estimator, each, source, ~held & ~validation)
            right = inner.predict(source.X[validation]) == source.y[validation]
            scores.append(point_balanced(source.y[validation], right))
        fitted = _fit(estimator, settings[int(np.argmax(scores))], source, ~held)
        now = test_fold == fold
        if now.any():
            correct[now] = fitted.predict(target.X[now]) == target.y[now]
    return correct


def _fit(estimator: Any, settings: Mapping[str, Any], side: _Side, rows: np.ndarray) -> Any:
    copy: Any = base.clone(estimator)
    return copy.set_params(**settings).fit(side.X[rows], side.y[rows])


def _cosine(
    first: _Side,
    second: _Side,
    estimator: Any,
    settings: Sequence[Mapping[str, Any]],
    n_refits: int,
    seed: int,
) -> Estimate:
    """Cosine of the two directions, over what two halves of the groups agree on at each place.

    Noise of fitting makes any two directions look less alike. So the cosine between the places
    (each fitted on another half) is divided by the geometric mean of the cosines between the halves
    of one place (Spearman 1904, "The proof and measurement of association between two things", the
    correction for attenuation). The interval is the spread of it over random halves, which is that
    of the whole sample (McCarthy 1969, half-sampling), cut at -1 and 1.
    """
    middle = settings[len(settings) // 2]
    groups = sorted({*first.groups, *second.groups})
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n_refits):
        order = rng.permutation(len(groups))
        halves = [[groups[i] for i in order[start::2]] for start in (0, 1)]
        fitted = [
            _direction(estimator, middle, side, half) for side in (first, second) for half in halves
        ]
        if any(each is None for each in fitted):
            continue
        one, half_one, other, half_other = map(np.asarray, fitted)
        across = (one @ half_other + half_one @ other) / 2
        found.append([across, one @ half_one, other @ half_other])
    if not found:
        return Estimate(np.nan, np.nan, np.nan, len(first.y))
    across, own, others = np.array(found, dtype=float).T
    ceiling = np.sqrt(np.maximum(own.mean() * others.mean(), 0))
    if min(own.mean(), others.mean()) <= 0:
        return Estimate(np.nan, np.nan, np.nan, len(first.y))  # no direction to compare
    estimate = float(np.clip(across.mean() / ceiling, -1, 1))
    bounds = np.clip(np.quantile(across / ceiling, [0.025, 0.975]), -1, 1)
    return Estimate(estimate, float(bounds[0]), float(bounds[1]), len(first.y))


def _direction(
    estimator: Any, settings: Mapping[str, Any], side: _Side, drawn: Sequence[str]
) -> Float[np.ndarray, " feature"] | None:
    members: dict[str, list[int]] = {}
    for row, group in enumerate(side.groups):
        members.setdefault(group, []).append(row)
    rows = np.array([row for group in drawn for row in members.get(group, [])], dtype=int)
    if len(set(side.y[rows])) < 2:
        return None
    fitted = _fit(estimator, settings, side, rows)
    if not hasattr(fitted, "direction_"):
        raise UsageError(f"{type(fitted).__name__} has no direction: take a linear probe.")
    return fitted.direction_
