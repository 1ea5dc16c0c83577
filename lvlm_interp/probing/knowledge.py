"""Known but not said: where the probe is right while the model's answer is wrong.

Along vision tower, projector and language model, per site: among the examples that the model
answers wrongly, how often is a probe of the truth right? The share alone would flatter a probe that
always says what is usually true where the model errs, so the base rate stands beside it, and
balanced accuracy over the truths where both occur. Position (and for the line `best` also the site)
is chosen on training folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lvlm_interp.errors import UsageError
from lvlm_interp.probing.design import MAIN
from lvlm_interp.probing.fitting import Outcome
from lvlm_interp.probing.scores import REFITTING, balanced_accuracy
from lvlm_interp.probing.sweep import ProbeSweep
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.sites import Site
from lvlm_interp.stats import rate

__all__ = ["KnownNotSaid", "known_but_not_said"]


@dataclass(frozen=True, repr=False)
class KnownNotSaid(Result):
    """What the probes know of the answers that are wrong.

    Attributes:
        table: One row per wrongly answered example and site: metric `correct` of the probe.
        summary: One row per site in the order of the forward, then `best` (site chosen on training
            folds) and `answer` (the model itself): `among_wrong` with its interval, `base_rate`
            (share of the commonest truth among the wrong answers), `balanced` over the truths among
            them (missing where they have one truth alone), and `overall`, the probe's balanced
            accuracy on all examples.
        n_wrong: Number of wrong answers.
    """

    summary: pd.DataFrame
    n_wrong: int


def known_but_not_said(sweep: ProbeSweep, *, wrong: str = "wrong") -> KnownNotSaid:
    """How often the probes are right where the model is wrong.

    Args:
        sweep: Of a label that is the truth (`present`, `truth`, ...).
        wrong: Column that says whether the model's answer was wrong.

    Raises:
        UsageError: The model was never wrong, or not on examples of this sweep.
    """
    errs = sweep.data.label(wrong).fillna(False).to_numpy(dtype=bool)
    rows = sweep.design.rows
    if not errs[rows].any():
        raise UsageError(f"None of the {len(rows)} examples is answered wrongly ({wrong!r}).")
    full = [each for each in sweep.problems_at() if len(each.rows) == len(rows)]
    if not full:
        raise UsageError("No site of the sweep has all examples: choose positions that all have.")
    lines, frames = [], []
    for site in dict.fromkeys(each.site for each in full):
        picks = sweep.picks([each for each in full if each.site == site])
        line, frame = _line(sweep, site, picks, errs)
        lines.append(line)
        frames.append(frame)
    line, _ = _line(sweep, "best", sweep.picks(full), errs)
    lines += [line, _answer(sweep, errs)]
    table = ResultTable(pd.concat(frames, ignore_index=True), sweep.table.provenance)
    summary = pd.DataFrame(lines).astype({"layer": "Int64"})
    return KnownNotSaid(table, summary, int(errs[rows].sum()))


def _line(
    sweep: ProbeSweep, name: str, picks: list[Outcome], errs: np.ndarray
) -> tuple[dict[str, Any], pd.DataFrame]:
    design = sweep.design
    held = [design.fold[pick.rows] == fold for fold, pick in enumerate(picks)]
    rows = np.concatenate([pick.rows[mask] for pick, mask in zip(picks, held, strict=True)])
    predicted = np.concatenate(
        [pick.predicted[MAIN][mask] for pick, mask in zip(picks, held, strict=True)]
    )
    truth = design.codes[MAIN][rows]
    correct, where = predicted == truth, errs[rows]
    site = Site.parse(name) if name != "best" else None
    position = max({p.position for p in picks}, key=[p.position for p in picks].count)
    line = _scored(sweep, rows, correct, where) | {
        "site": name,
        "tower": site.tower if site else None,
        "layer": site.layer if site else None,
        "position": position,
    }
    frame = pd.DataFrame(
        {
            "example": sweep.data.label("example").to_numpy()[rows[where]],
            "tower": line["tower"],
            "layer": line["layer"],
            "site": name,
            "position": position,
            "metric": "correct",
            "value": correct[where].astype(float),
            "group": design.groups[rows[where]],
            "truth": np.array(design.classes, dtype=object)[truth[where]].astype(str),
        }
    )
    return line, frame


def _answer(sweep: ProbeSweep, errs: np.ndarray) -> dict[str, Any]:
    """The model's own answer: right nowhere among its errors, by definition."""
    rows = sweep.design.rows
    line = _scored(sweep, rows, ~errs[rows], errs[rows])
    return line | {"site": "answer", "tower": "answer", "layer": None, "position": "last"}


def _scored(
    sweep: ProbeSweep, rows: np.ndarray, correct: np.ndarray, where: np.ndarray
) -> dict[str, Any]:
    design, options = sweep.design, {"inflation": REFITTING}
    truth, groups = design.codes[MAIN][rows], design.groups[rows]
    among = rate(correct[where], groups[where])
    counts = np.bincount(truth[where], minlength=len(design.classes))
    overall = balanced_accuracy(truth, correct, groups, **options)
    line: dict[str, Any] = {
        "among_wrong": among.estimate,
        "among_wrong_low": among.low,
        "among_wrong_high": among.high,
        "n_wrong": among.n,
        "base_rate": counts.max() / counts.sum(),
        "balanced": np.nan,
        "balanced_low": np.nan,
        "balanced_high": np.nan,
        "overall": overall.estimate,
        "overall_low": overall.low,
        "overall_high": overall.high,
        "n": overall.n,
    }
    if (counts > 0).sum() > 1:
        both = balanced_accuracy(truth[where], correct[where], groups[where], **options)
        line |= {
            "balanced": both.estimate,
            "balanced_low": both.low,
            "balanced_high": both.high,
        }
    return line
