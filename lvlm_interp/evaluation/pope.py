"""POPE: polls about objects (Li et al. 2023), by the authors' parser and by ours.

The positive class is yes. With several splits in hand the plain names are means over the splits, as
LLaVA reports them, and `SPLIT/f1` stands beside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lvlm_interp.evaluation.pairing import Paired
from lvlm_interp.evaluation.replies import NONE, said
from lvlm_interp.evaluation.rules import Outcome, Rule, Settings
from lvlm_interp.evaluation.tally import Formula, estimates, over

__all__ = ["RULES", "SCORES", "confusion_formulas", "confusion_scores", "said_by_pope_2023"]

SCORES: tuple[str, ...] = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def said_by_pope_2023(reply: str) -> str:
    """What POPE's own scorer reads: no iff a piece before the first stop is No, no or not.

    Pieces are parted by single blanks once commas are dropped. All else is yes: "NO", "No!",
    "Nope", "isn't", nothing at all.
    """
    pieces = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(pieces) else "yes"


def confusion_formulas(prefix: str = "") -> dict[str, Formula]:
    """Scores of two classes from `tp fp tn fn` (each with the prefix before it)."""
    tp, fp, tn, fn = (f"{prefix}{name}" for name in ("tp", "fp", "tn", "fn"))

    def precision(c: Mapping[str, np.ndarray]) -> np.ndarray:
        return over(c[tp], c[tp] + c[fp])

    def recall(c: Mapping[str, np.ndarray]) -> np.ndarray:
        return over(c[tp], c[tp] + c[fn])

    def f1(c: Mapping[str, np.ndarray]) -> np.ndarray:
        return over(2 * precision(c) * recall(c), precision(c) + recall(c))

    return {
        "accuracy": lambda c: over(c[tp] + c[tn], c[tp] + c[tn] + c[fp] + c[fn]),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": lambda c: over(c[tp] + c[fp], c[tp] + c[fp] + c[tn] + c[fn]),
    }


def confusion_columns(truth: Sequence[Any], read: Sequence[Any]) -> dict[str, list[float]]:
    """`tp fp tn fn` of each answer, positive class yes; an answer that is neither has none."""
    cells = {"tp": ("yes", "yes"), "fp": ("no", "yes"), "tn": ("no", "no"), "fn": ("yes", "no")}
    return {
        name: [float((t, r) == cell) for t, r in zip(truth, read, strict=True)]
        for name, cell in cells.items()
    }


def confusion_scores(
    paired: Paired, read: Sequence[str], settings: Settings, *, intervals: bool = True
) -> dict[str, Any]:
    """POPE's five scores of what was read, per split and as the mean over splits."""
    truth = [example.answer for example in paired.examples]
    splits = [str(example.labels.get("category", "all")) for example in paired.examples]
    names = list(dict.fromkeys(splits))
    columns: dict[str, np.ndarray] = {}
    for split in names:
        mine = np.array([each == split for each in splits], dtype=float)
        for name, values in confusion_columns(truth, read).items():
            columns[f"{split}:{name}"] = mine * np.array(values)
    of_split = {split: confusion_formulas(f"{split}:") for split in names}
    formulas: dict[str, Formula] = {name: _mean_over(of_split, name) for name in SCORES}
    counted = {
        split: sum(s == split and r != NONE for s, r in zip(splits, read, strict=True))
        for split in names
    }
    sizes: dict[str, int] = dict.fromkeys(SCORES, sum(counted.values()))
    if len(names) > 1:
        for split in names:
            for name in SCORES:
                formulas[f"{split}/{name}"] = of_split[split][name]
                sizes[f"{split}/{name}"] = counted[split]
    draws = settings.n_resamples if intervals else 0
    return estimates(
        columns,
        paired.groups,
        formulas,
        n=sizes,
        bounds=lambda name: (0.0, 1.0),
        n_resamples=draws,
        seed=settings.seed,
    )


def _mean_over(of_split: Mapping[str, Mapping[str, Formula]], name: str) -> Formula:
    parts = [formulas[name] for formulas in of_split.values()]
    if len(parts) == 1:
        return parts[0]
    return lambda counts: np.mean([part(counts) for part in parts], axis=0)


def _rule(reader: Callable[[str], str]) -> Callable[[Paired, Settings], Outcome]:
    def score(paired: Paired, settings: Settings) -> Outcome:
        read = [reader(reply) for reply in paired.replies]
        controls = {
            f"always {word}": {
                name: each.estimate
                for name, each in confusion_scores(
                    paired, [word] * len(read), settings, intervals=False
                ).items()
            }
            for word in ("yes", "no")
        }
        return Outcome(
            scores=confusion_scores(paired, read, settings),
            read=read,
            unparsed=sum(said(reply) == NONE for reply in paired.replies),
            controls=controls,
            notes=_vintage(paired),
        )

    return score


def _vintage(paired: Paired) -> list[str]:
    notes = []
    splits = [str(example.labels.get("category", "all")) for example in paired.examples]
    for split in dict.fromkeys(splits):
        mine = [e for e, s in zip(paired.examples, splits, strict=True) if s == split]
        no = sum(example.answer == "no" for example in mine)
        if "random" in split and len(mine) == 2910:
            notes.append(
                f"{split}: 2,910 questions, {no:,} of them no: the file of May 2023, which is what "
                "LLaVA's figures are on"
            )
    return notes


RULES = (
    Rule("pope-2023", "pope", "the authors' evaluate.py of 2023", _rule(said_by_pope_2023)),
    Rule("pope-strict", "pope", "ours: yes, no or none; none is left out", _rule(said), own=True),
)
