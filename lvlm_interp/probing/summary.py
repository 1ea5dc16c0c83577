"""From held-out predictions to rows, summaries and the score of an honest choice.

Folds are not independent: the label of each row helps to predict those of the others, and they its
own (Bengio and Grandvalet 2004, "No unbiased estimator of the variance of k-fold
cross-validation"). So every variance over groups is multiplied by `scores.REFITTING`, in intervals,
selectivity and p-values alike. Labels are shuffled several times, each time with probes fitted anew
(Ojala and Garriga 2010, "Permutation tests for studying classifier performance", test 1), and so
are those of the control task; their intervals hold the spread between the draws. AUROC ranks within
folds, since the scores of two probes have no common unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lvlm_interp.activations.base import Activations
from lvlm_interp.probing.design import MAIN, PIXELS, SHUFFLED, TYPES, Design
from lvlm_interp.probing.fitting import Outcome
from lvlm_interp.probing.scores import (
    REFITTING,
    auroc,
    balanced_accuracy,
    mean_of_shuffles,
    pvalue_above,
    selectivity,
)
from lvlm_interp.sites import Site
from lvlm_interp.stats import Estimate, benjamini_hochberg

__all__ = ["Best", "best_of", "rows_of", "summary_of"]


@dataclass(frozen=True)
class Best:
    """The score of a sweep whose site and position were chosen on training folds alone.

    Attributes:
        site, position, head: The choice of most folds.
        balanced_accuracy: On the held-out folds, each scored at the site that its training chose.
        auroc: Likewise; None unless there are two classes.
        selectivity: Balanced accuracy minus the mean of those of the control tasks at the same
            sites; None without that control.
        shuffled: Balanced accuracy with shuffled labels at the same sites; None without it.
        per_fold: (site, position, head) of each fold.
    """

    site: str
    position: str
    head: int | None
    balanced_accuracy: Estimate
    auroc: Estimate | None
    selectivity: Estimate | None
    shuffled: Estimate | None
    per_fold: tuple[tuple[str, str, int | None], ...]

    def to_dict(self) -> dict[str, Any]:
        """For `summary.json`: site, position, accuracy and selectivity with their intervals."""
        return {
            "site": self.site,
            "position": self.position,
            "head": self.head,
            "accuracy": self.balanced_accuracy.to_dict(),
            "auroc": self.auroc.to_dict() if self.auroc else None,
            "selectivity": self.selectivity.to_dict() if self.selectivity else None,
        }


def rows_of(outcome: Outcome, design: Design, data: Activations) -> pd.DataFrame:
    """One row per held-out prediction of a problem, for the tidy table."""
    site = Site.parse(outcome.site) if outcome.control != PIXELS else None
    names, classes = data.label("example").to_numpy(), np.array(design.classes, dtype=object)
    frames = []
    for name, predicted in outcome.predicted.items():
        truth = design.codes[name][outcome.rows]
        control, draw = design.drawn(name)
        frames.append(
            pd.DataFrame(
                {
                    "example": names[outcome.rows],
                    "tower": site.tower if site else None,
                    "layer": site.layer if site else None,
                    "site": outcome.site,
                    "head": outcome.head,
                    "position": outcome.position,
                    "metric": "correct",
                    "value": (predicted == truth).astype(float),
                    "control": outcome.control if outcome.control != MAIN else control,
                    "draw": draw,
                    "group": design.groups[outcome.rows],
                    "fold": design.fold[outcome.rows],
                    "truth": classes[truth].astype(str),
                    "predicted": classes[predicted].astype(str),
                    "score": outcome.score if control == MAIN else np.nan,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def summary_of(outcomes: Sequence[Outcome], design: Design) -> pd.DataFrame:
    """One row per problem, with the interval of each score; see `sweep`."""
    rows = []
    for outcome in outcomes:
        site = Site.parse(outcome.site) if outcome.control != PIXELS else None
        found, pvalue = _scores([outcome], [slice(None)], design)
        row: dict[str, Any] = {
            "control": outcome.control,
            "tower": site.tower if site else None,
            "layer": site.layer if site else None,
            "site": outcome.site,
            "position": outcome.position,
            "head": outcome.head,
            "n": len(outcome.rows),
            "chance": design.chance,
        }
        for name, estimate in found.items():
            values = (estimate.estimate, estimate.low, estimate.high) if estimate else (np.nan,) * 3
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
        row["pvalue"] = pvalue
        rows.append(row)
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})
    frame["pvalue_adjusted"] = benjamini_hochberg(frame["pvalue"].to_numpy())
    return frame


def best_of(picks: Sequence[Outcome], design: Design) -> Best:
    """The score of problems that were chosen per fold, each on the fold that it was chosen for."""
    held = [design.fold[pick.rows] == fold for fold, pick in enumerate(picks)]
    found, _ = _scores(picks, held, design)
    per_fold = tuple((pick.site, pick.position, pick.head) for pick in picks)
    site, position, head = max(dict.fromkeys(per_fold), key=per_fold.count)
    accuracy = found.pop("balanced_accuracy")
    assert accuracy is not None
    return Best(site, position, head, accuracy, **found, per_fold=per_fold)


def _scores(
    parts: Sequence[Outcome], keep: Sequence[Any], design: Design
) -> tuple[dict[str, Estimate | None], float]:
    """Scores of predictions that may come from several problems, some rows of each, and p."""
    rows = np.concatenate([part.rows[mask] for part, mask in zip(parts, keep, strict=True)])
    groups = design.groups[rows]

    def joined(control: str) -> tuple[np.ndarray, np.ndarray] | None:
        if any(control not in part.predicted for part in parts):
            return None
        predicted = [part.predicted[control][mask] for part, mask in zip(parts, keep, strict=True)]
        truth = design.codes[control][rows]
        return truth, np.concatenate(predicted) == truth

    main = joined(MAIN)
    assert main is not None
    types = [each for name in design.draws(TYPES) if (each := joined(name)) is not None]
    shuffles = [each for name in design.draws(SHUFFLED) if (each := joined(name)) is not None]
    score = np.concatenate([part.score[mask] for part, mask in zip(parts, keep, strict=True)])
    found: dict[str, Estimate | None] = {
        "balanced_accuracy": balanced_accuracy(*main, groups, inflation=REFITTING),
        "auroc": None,
        "shuffled": None,
        "selectivity": selectivity(main, types, groups, inflation=REFITTING) if types else None,
    }
    if len(design.classes) == 2:
        folds = design.fold[rows]
        found["auroc"] = auroc(main[0], score, groups, folds=folds, inflation=REFITTING)
    if shuffles:
        each = [balanced_accuracy(*shuffle, groups) for shuffle in shuffles]
        found["shuffled"] = mean_of_shuffles(each)
    return found, pvalue_above(*main, groups, design.chance, inflation=REFITTING)
