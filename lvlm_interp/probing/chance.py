"""What a guess gets that never looks at the image: the chance level of a sweep.

One over the number of classes is chance only where nothing outside of the image tells classes
apart. Half of the questions may be about colours and half about shapes: who knows the question and
nothing else is right in half of the cases, though there are four truths.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Shaped

from lvlm_interp.probing.scores import REFITTING, point_balanced, pvalue_above

__all__ = ["chance_of"]

_SHOWN = 0.05
"""One-sided p-value below which the question alone is taken to tell something."""

Codes = Int[np.ndarray, " row"]


def chance_of(
    codes: Codes,
    groups: Shaped[np.ndarray, " row"],
    fold: Codes,
    questions: Shaped[np.ndarray, " row"] | None,
    n_folds: int,
) -> float:
    """Balanced accuracy of the best of three guesses without the image.

    The first takes any class. The second knows which truths compete: classes that occur together in
    a group (the two sides of a pair) answer one question, and each group is about one set of them.
    The third knows the question's words: per question the class that is most frequent for its size,
    counted in training folds and scored on the held-out ones; it counts where it is above the first
    by more than luck (p < 0.05).

    Args:
        codes: Class of each row.
        groups: Group of each row.
        fold: Held-out fold of each row.
        questions: Question of each row; None where it is not known.
        n_folds: Number of folds.
    """
    n_classes = int(codes.max()) + 1
    plain = 1 / n_classes
    found = [plain, _by_competitors(codes, groups)]
    if questions is not None:
        right = _by_question(codes, fold, questions, n_folds) == codes
        if pvalue_above(codes, right, groups, plain, inflation=REFITTING) < _SHOWN:
            found.append(point_balanced(codes, right))
    return max(found)


def _by_competitors(codes: Codes, groups: np.ndarray) -> float:
    """Best guess that knows which set of competing classes a group is about."""
    n_classes = int(codes.max()) + 1
    _, index = np.unique(groups, return_inverse=True)
    held = np.zeros((int(index.max()) + 1, n_classes))
    np.add.at(held, (index, codes), 1)
    mixed = (held > 0).sum(axis=1) > 1
    if not (held[mixed] > 0).any(axis=0).all():
        return 1 / n_classes  # some class never stands beside another: groups are no pairs
    together = (held[mixed].T @ held[mixed]) > 0
    for _ in range(n_classes):  # paths through other classes count as well
        together = (together.astype(float) @ together) > 0
    n_sets = len(np.unique(together, axis=0))
    return n_sets / n_classes


def _by_question(codes: Codes, fold: Codes, questions: np.ndarray, n_folds: int) -> np.ndarray:
    """Class that the question alone predicts, by counts of the other folds."""
    n_classes = int(codes.max()) + 1
    _, asked = np.unique(questions.astype(str), return_inverse=True)
    guess = np.zeros(len(codes), dtype=int)
    for each in range(n_folds):
        train, held = fold != each, fold == each
        counts = np.zeros((int(asked.max()) + 1, n_classes))
        np.add.at(counts, (asked[train], codes[train]), 1)
        shares = counts / np.maximum(counts.sum(axis=0), 1)
        guess[held] = shares.argmax(axis=1)[asked[held]]
    return guess
