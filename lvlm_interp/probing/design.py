"""The design of a sweep: labels, folds that keep groups whole, and the labels of the controls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from lvlm_interp.activations.base import Activations
from lvlm_interp.errors import UsageError
from lvlm_interp.probing.chance import chance_of
from lvlm_interp.probing.where import mask_of

__all__ = [
    "CONTROLS",
    "MAIN",
    "PIXELS",
    "SHUFFLED",
    "TYPES",
    "UNTRAINED",
    "Design",
    "design_of",
]

MAIN, SHUFFLED, TYPES = "none", "shuffled_labels", "control_task"
"""The task itself, and the two controls that change its labels."""

UNTRAINED, PIXELS = "untrained", "pixels"
"""The two controls that have other activations."""

CONTROLS = (SHUFFLED, TYPES, UNTRAINED, PIXELS)

QUESTION = "prompt"
"""Column of the question; what it gives away alone is part of chance."""

_LABELLINGS = 3
"""How often the labels of the control task are drawn."""
_EXCHANGED = 4
"""Groups of a size in a fold below which their rows are shuffled one by one."""
_MOST_CLASSES = 50
_NO_TYPE = "(none)"


@dataclass(frozen=True, eq=False)
class Design:
    """What every problem of a sweep shares, example by example.

    Attributes:
        label: Name of the label.
        classes: Its values, sorted; codes are indices into it.
        codes: Code per example under the task and each label control, every shuffle by itself; -1
            leaves an example out.
        groups: Group of each example.
        fold: Fold in which an example is held out; -1 leaves it out.
        n_folds: Number of folds.
        chance: Balanced accuracy of the best guess without the image; see `chance.chance_of`.
    """

    label: str
    classes: tuple
    codes: dict[str, np.ndarray]
    groups: np.ndarray
    fold: np.ndarray
    n_folds: int
    chance: float

    def draws(self, control: str) -> list[str]:
        """Names of the draws of a label control among the codes."""
        return [name for name in self.codes if name == control or name.startswith(f"{control} ")]

    def drawn(self, name: str) -> tuple[str, int | None]:
        """Control and number of the draw that a name among the codes stands for."""
        for control in (SHUFFLED, TYPES):
            if name in self.draws(control):
                return control, self.draws(control).index(name)
        return name, None

    @property
    def rows(self) -> np.ndarray:
        """Examples that take part."""
        return np.flatnonzero(self.fold >= 0)

    def training(self, fold: int, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks of one split: rows to choose on, rows to validate on, and rows held out.

        The validation fold is the one behind the held-out fold, so that a choice (of
        regularisation, of a site) never sees what it is scored on.
        """
        held_out, validation = folds == fold, folds == (fold + 1) % self.n_folds
        return ~held_out & ~validation, validation, held_out


def design_of(
    data: Activations,
    *,
    label: str,
    group: str | None,
    where: str | None = None,
    control_type: str | None = "type",
    controls: tuple[str, ...] = (SHUFFLED, TYPES),
    n_folds: int = 5,
    n_shuffles: int = 5,
    seed: int = 0,
) -> Design:
    """Labels, folds and control labels of a sweep.

    The control task gives each type of thing one random label, drawn from the labels' own
    distribution and shared by all folds (Hewitt and Liang 2019, section 2); it is drawn several
    times.

    Args:
        data: Activations with labels.
        label: Column to be predicted.
        group: Column whose equal values are never split: scene or image.
        where: Which examples take part, in the grammar of `lvlm_interp.probing.where`.
        control_type: Column of the types of the control task.
        controls: Label controls to draw.
        n_folds: Outer folds.
        n_shuffles: How often the labels are shuffled.
        seed: Of folds, shuffles and control labels.

    Raises:
        UsageError: No group, no such column, a label with one class or with too many, a class in
            too few groups, or too few folds or shuffles.
    """
    _check_counts(n_folds, n_shuffles)
    if not group:
        raise UsageError(
            "A sweep needs a group (scene or image), so that none is both trained on and "
            "tested: pass group='group', or the column that names your images."
        )
    target, groups = data.label(label), data.label(group)
    taking = target.notna().to_numpy() & mask_of(data.labels, where)
    if groups[taking].isna().any():
        n = int(groups[taking].isna().sum())
        raise UsageError(
            f"The group column {group!r} is missing in {n} examples: every one needs it."
        )
    classes, codes = _codes(label, target, taking)
    groups = groups.astype(str).to_numpy()
    _check_spread(label, classes, codes[taking], groups[taking], n_folds)
    fold = np.full(len(codes), -1)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    rows = np.flatnonzero(taking)
    for index, (_, held) in enumerate(splitter.split(rows, codes[rows], groups[rows])):
        fold[rows[held]] = index
    _check_folds(label, classes, codes[rows], fold[rows], n_folds)
    found = {MAIN: codes}
    rng = np.random.default_rng(seed)
    if SHUFFLED in controls:
        for draw in range(n_shuffles):
            found[_drawn(SHUFFLED, draw)] = _shuffled(codes, fold, n_folds, groups, rng)
    if TYPES in controls:
        types = data.label(control_type or "type").astype(object).fillna(_NO_TYPE).astype(str)
        for draw in range(_LABELLINGS):
            drawn = _by_type(codes, types.to_numpy(), rows, len(classes), rng)
            found[_drawn(TYPES, draw)] = drawn
    asked = data.labels[QUESTION].to_numpy()[rows] if QUESTION in data.labels else None
    chance = chance_of(codes[rows], groups[rows], fold[rows], asked, n_folds)
    return Design(label, classes, found, groups, fold, n_folds, chance)


def _drawn(control: str, draw: int) -> str:
    return control if draw == 0 else f"{control} {draw}"


def _check_counts(n_folds: int, n_shuffles: int) -> None:
    if n_folds < 3:
        raise UsageError(
            f"n_folds={n_folds} is too few: of each split one fold is held out, one chooses the "
            "regularisation and the rest is fitted, so there must be at least 3."
        )
    if n_shuffles < 2:
        raise UsageError(
            f"n_shuffles={n_shuffles} is too few: the interval of shuffled labels is made of the "
            "spread between shuffles, so there must be at least 2; or leave out the control."
        )


def _shuffled(
    codes: np.ndarray, fold: np.ndarray, n_folds: int, groups: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Labels shuffled within each fold: between groups of one size, then within each group.

    A fold short of a class would have its probe trained on more of it, and score below chance. What
    a group holds stays together: where labels are those of the group, or both are in each group,
    shuffled labels vary as much as true ones would without a relation.
    """
    out = codes.copy()
    for each in range(n_folds):
        held = np.flatnonzero(fold == each)
        _, index, sizes = np.unique(groups[held], return_inverse=True, return_counts=True)
        for size in np.unique(sizes):
            rows = held[sizes[index] == size]
            rows = rows[np.argsort(groups[rows], kind="stable")].reshape(-1, size)
            if len(rows) < _EXCHANGED:
                out[rows] = rng.permutation(codes[rows].ravel()).reshape(rows.shape)
            else:
                out[rows] = rng.permuted(codes[rng.permutation(rows)], axis=1)
    return out


def _codes(label: str, target: pd.Series, taking: np.ndarray) -> tuple[tuple, np.ndarray]:
    values = target.to_numpy(dtype=object)
    classes = tuple(sorted(set(values[taking]), key=lambda value: (str(type(value)), value)))
    if not 2 <= len(classes) <= _MOST_CLASSES:
        what = f"{len(classes)} values" + (f" ({classes[0]!r})" if len(classes) == 1 else "")
        raise UsageError(
            f"The label {label!r} has {what} among {int(taking.sum())} examples; a probe needs "
            f"2 to {_MOST_CLASSES} classes."
        )
    index = {value: code for code, value in enumerate(classes)}
    return classes, np.array(
        [index[value] if take else -1 for value, take in zip(values, taking, strict=True)]
    )


def _check_spread(
    label: str, classes: tuple, codes: np.ndarray, groups: np.ndarray, n_folds: int
) -> None:
    for code, value in enumerate(classes):
        n = len(set(groups[codes == code]))
        if n < n_folds:
            raise UsageError(
                f"The label {label!r} is {value!r} in {n} groups only, and {n_folds} folds need it "
                f"in {n_folds} at least: give more examples, or fewer folds."
            )


def _check_folds(
    label: str, classes: tuple, codes: np.ndarray, fold: np.ndarray, n_folds: int
) -> None:
    """Groups that hold many examples of a class may leave a part of the split without it."""
    for held in range(n_folds):
        fitting = (fold != held) & (fold != (held + 1) % n_folds)
        missing = sorted(set(range(len(classes))) - set(codes[fitting]))
        if missing:
            raise UsageError(
                f"Where fold {held} of {n_folds} is held out and the next one chooses the "
                f"regularisation, no example is left of which the label {label!r} is "
                f"{classes[missing[0]]!r}: give more groups with it, or more folds."
            )


def _by_type(
    codes: np.ndarray, types: np.ndarray, rows: np.ndarray, n_classes: int, rng: np.random.Generator
) -> np.ndarray:
    """One random label per type, every class taken by some type."""
    names, of = np.unique(types[rows], return_inverse=True)
    if len(names) < n_classes:
        raise UsageError(
            f"The control task needs at least {n_classes} types, the examples are of {len(names)}: "
            "name another column with control_type=, or leave the control out."
        )
    shares = np.bincount(codes[rows], minlength=n_classes) / len(rows)
    drawn = rng.choice(n_classes, size=len(names), p=shares)
    drawn[rng.permutation(len(names))[:n_classes]] = np.arange(n_classes)
    out = np.full(len(codes), -1)
    out[rows] = drawn[of]
    return out
