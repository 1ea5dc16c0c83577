"""Step 2: is the truth linearly there, where, and also where the model says something else?

Probes are fitted on both sides of evidence pairs, which hold both truths alike. A truth of yes or
no belongs to the question and not to the image, so there the most frequent question alone is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from lvlm_interp import probing
from lvlm_interp.activations.memory import collect
from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.diagnose.items import group_of
from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.probing.design import MAIN, SHUFFLED, TYPES
from lvlm_interp.results import ResultTable
from lvlm_interp.stats import Estimate, rate

SITES = ("vision.*.resid_post", "projector.out", "text.*.resid_post")
FOLDS = 4
FEWEST = 40
"""Examples below which no probe is fitted."""


def examples_of(pairs: Sequence[ContrastPair]) -> list[Example]:
    """Both sides of the evidence pairs, with their truth as a label; see the module."""
    found = []
    for pair in pairs:
        if pair.kind == "evidence":
            for example, truth in ((pair.clean, pair.answer), (pair.corrupt, pair.foil)):
                labels = {**example.labels, "truth": truth}
                found.append(replace(example, labels=labels, group=group_of(pair)))
    truths = {example.labels["truth"] for example in found}
    if found and truths <= {"yes", "no"}:
        prompts = Counter(example.prompt for example in found)
        asked = prompts.most_common(1)[0][0]
        found = [example for example in found if example.prompt == asked]
    return found


def probe(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    errors: Mapping[str, float],
    seed: int,
    batch_size: int,
    provenance: Mapping[str, Any],
) -> ResultTable:
    """Probes for the truth along vision tower, projector and language model.

    Args:
        model: The model.
        pairs: Of one level.
        errors: Whether the model errs (1) on an example, by the example's id.
        seed: Of folds, controls and intervals.
        batch_size: Rows in a forward.
        provenance: For the table.

    Returns:
        One row per estimate, with `low, high, n, chance`: `role` is `flow` (a site and position),
        `shuffled` (the same with shuffled labels) or `selected` (chosen on training folds, scored
        on held-out scenes: `balanced_accuracy`, `selectivity`, `known_but_not_said` and its
        `known_base_rate`).

    Raises:
        UsageError: The pairs do not allow a probe; the sentence says why.
    """
    examples = examples_of(pairs)
    classes = Counter(example.labels["truth"] for example in examples)
    _check_enough(examples, classes)
    has_box = all("object" in example.boxes for example in examples)
    positions = ("object", "last") if has_box else ("image_mean", "last")
    typed = types_lacking(pairs) is None
    sweep = probing.sweep(
        collect(model, examples, SITES, positions, batch_size=batch_size),
        label="truth",
        controls=(SHUFFLED, TYPES) if typed else (SHUFFLED,),
        control_type="type" if typed else None,
        n_folds=FOLDS,
        seed=seed,
        grid={"C": (0.01, 1.0)},
    )
    rows = _flow(sweep.summary) + _selected(sweep, errors)
    chance = sweep.design.chance
    frame = pd.DataFrame(rows).assign(chance=chance, unit="share")
    return ResultTable(frame, {**sweep.table.provenance, **provenance})


def _check_enough(examples: Sequence[Example], classes: Mapping[str, int]) -> None:
    if not examples:
        raise UsageError("there are no evidence pairs")
    if len(examples) < FEWEST:
        raise UsageError(f"{len(examples)} sides of evidence pairs, and {FEWEST} are needed")
    rarest = min(classes, key=lambda truth: classes[truth])
    if len(classes) < 2 or classes[rarest] < 2 * FOLDS:
        raise UsageError(
            f"the truth is {rarest!r} in {classes[rarest]} of {len(examples)} examples, and two "
            f"truths or more are needed {2 * FOLDS} times each"
        )


def types_lacking(pairs: Sequence[ContrastPair]) -> str | None:
    """Why there is no control task, in words; None where the label `type` allows one."""
    examples = examples_of(pairs)
    types = {str(example.labels.get("type")) for example in examples}
    n_truths = len({example.labels["truth"] for example in examples})
    if any(example.labels.get("type") is None for example in examples):
        return "not every example has the label 'type'"
    if len(types) < max(2, n_truths):
        return f"the label 'type' has {len(types)} values for {n_truths} truths"
    return None


def _flow(summary: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for _, row in summary[summary["control"] == MAIN].iterrows():
        where = {name: row[name] for name in ("tower", "layer", "site", "position", "n")}
        for role, name in (("flow", "balanced_accuracy"), ("shuffled", "shuffled")):
            rows.append(
                {
                    **where,
                    "role": role,
                    "metric": "balanced_accuracy",
                    "value": row[name],
                    "low": row[f"{name}_low"],
                    "high": row[f"{name}_high"],
                }
            )
    return rows


def _selected(sweep: probing.ProbeSweep, errors: Mapping[str, float]) -> list[dict[str, Any]]:
    best = sweep.best()
    known = known_but_not_said(sweep, best.per_fold, errors)
    found = {
        "balanced_accuracy": best.balanced_accuracy,
        "selectivity": best.selectivity,
        "known_but_not_said": None if known is None else known[0],
        "known_base_rate": None if known is None else known[1],
    }
    return [
        {
            "role": "selected",
            "site": best.site,
            "position": best.position,
            "metric": metric,
            "value": estimate.estimate,
            "low": estimate.low,
            "high": estimate.high,
            "n": estimate.n,
        }
        for metric, estimate in found.items()
        if estimate is not None
    ]


def known_but_not_said(
    sweep: probing.ProbeSweep,
    per_fold: Sequence[tuple[str, str, int | None]],
    errors: Mapping[str, float],
) -> tuple[Estimate, Estimate] | None:
    """Among the model's wrong answers, how often the held-out probe has the truth.

    None where the model makes no error. Second comes the base rate: how often the commonest truth
    among them would be right.
    """
    frame = sweep.table.frame
    frame = frame[frame["control"] == MAIN]
    keep = np.zeros(len(frame), bool)
    for fold, (site, position, _) in enumerate(per_fold):
        at = (frame["fold"] == fold) & (frame["site"] == site) & (frame["position"] == position)
        keep |= at.to_numpy()
    held_out = frame[keep]
    erring = [name for name, error in errors.items() if error]
    wrong = held_out[held_out["example"].isin(erring)]
    if wrong.empty:
        return None
    groups = wrong["group"].to_numpy()
    commonest = wrong["truth"] == wrong["truth"].mode().iloc[0]
    return rate(wrong["value"].to_numpy(), groups), rate(commonest.to_numpy(), groups)
