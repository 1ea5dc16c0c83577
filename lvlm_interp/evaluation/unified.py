r"""Frequency, severity and risk per level, from a table of answers with the delta of each error.

**Polls** (tasks poll and pair), over the answers that say yes or no:

.. math::
    FA = P(yes \mid false), \quad MI = P(no \mid true), \quad F = (FA + MI)/2,

    R = \tfrac12 \big( \overline{\delta\,[yes]}_{false} + \overline{\delta\,[no]}_{true} \big).

**Text** (open, describe), over claims: F = false / claims, R = mean of delta over claims, where a
true claim has delta 0; coverage = true things named / true things. A row of a description is a
thing that is true of the image (`said` is yes where the text says so, none where it does not
mention it) or a false claim (`truth` no, `said` yes).

Always S = R / F, so that R = F S exactly. Bias: sensitivity d' = z(H) - z(FA) and criterion
c = -(z(H) + z(FA))/2 of signal detection, with .5 added to each count and 1 to each number of
questions (Hautus 1995). Conviction w = |p_yes - p_no| / (p_yes + p_no) weighs risk a second time:
delta w in place of delta, over the answers whose probabilities are known. Macro values are means
over levels. Minimal pairs: both right, stuck (one answer to both), inverted (both wrong).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri

from lvlm_interp.errors import UsageError
from lvlm_interp.evaluation.answers import Answers
from lvlm_interp.evaluation.replies import NONE
from lvlm_interp.evaluation.tally import Counts, Formula, Share, estimates, over
from lvlm_interp.results import Result, ResultTable

__all__ = ["LEVELS", "Unified", "conviction", "unified"]

LEVELS = ("object", "attribute", "relation")
_POLLS, _TEXTS = ("poll", "pair"), ("open", "describe")


@dataclass(frozen=True, repr=False)
class Unified(Result):
    """The scores of the unified benchmark.

    The table has a row per task, level (and `macro`) and measure: `metric` names the measure,
    `value` is it, `low` and `high` are its 95% interval over images, `n` the answers it rests on.
    """

    def value(self, metric: str, level: str = "macro", task: str = "poll") -> float:
        """One number.

        Raises:
            UsageError: There is none of that name.
        """
        frame = self.table.frame
        found = frame[
            (frame["metric"] == metric) & (frame["level"] == level) & (frame["task"] == task)
        ]
        if len(found) != 1:
            raise UsageError(f"there is no {metric} of {level} in the task {task}")
        return float(found["value"].iloc[0])


def conviction(p_yes: Any, p_no: Any) -> np.ndarray:
    """|p_yes - p_no| / (p_yes + p_no); NaN where either is unknown or both are 0."""
    p_yes, p_no = np.asarray(p_yes, dtype=float), np.asarray(p_no, dtype=float)
    return over(np.abs(p_yes - p_no), p_yes + p_no)


def unified(
    answers: Answers | pd.DataFrame,
    *,
    by: str | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Unified:
    """Score a table of answers whose rows have a `level` and a `delta`.

    Args:
        answers: Columns as in `Answers`, with `delta`: what a wrong answer of this row costs; and
            `conviction` for texts where it is known, and `pair` for minimal pairs.
        by: A further column, such as `condition`, whose values are scored apart.
        n_resamples: Draws of the bootstrap over images; 0 leaves the intervals out.
        seed: Of the draws.

    Raises:
        UsageError: A column is missing, or an answer that can be wrong has no delta in (0, 1].
    """
    table = answers
    if isinstance(answers, pd.DataFrame):
        records = answers.to_dict("records")
        table = Answers.of([{str(name): v for name, v in row.items()} for row in records])
    assert isinstance(table, Answers)
    frame = table.frame.copy()
    for name in ("level", "delta", *([by] if by else [])):
        if name not in frame:
            raise UsageError(f"the unified benchmark needs a column {name!r} in the answers")
    frame["group"] = table.groups()
    _check_deltas(frame)
    rows = []
    parts = [(None, frame)] if by is None else list(frame.groupby(by, sort=False))
    for part, some in parts:
        for task, some_rows in _by_task(some):
            found = _score(some_rows, task, n_resamples, seed)
            rows += [{**row, **({by: part} if by else {})} for row in found]
    about = {**table.table.provenance, "n_resamples": n_resamples, "bootstrap_seed": seed}
    return Unified(ResultTable(rows or {"metric": [], "value": []}, about))


def _by_task(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Polls and pairs together as "poll", pairs also apart, texts each."""
    found = [("poll", frame[frame["task"].isin(_POLLS)])]
    found += [(task, frame[frame["task"] == task]) for task in ("pair", *_TEXTS)]
    return [(task, some) for task, some in found if len(some)]


def _score(frame: pd.DataFrame, task: str, n_resamples: int, seed: int) -> list[dict[str, Any]]:
    columns: dict[str, np.ndarray] = {}
    formulas: dict[str, Formula] = {}
    sizes: dict[str, int] = {}
    of_level: dict[str, dict[str, Formula]] = {}
    levels = [level for level in LEVELS if (frame["level"] == level).any()]
    counting, scoring = (_poll_counts, _poll_scores) if task == "poll" else (
        (_pair_counts, _pair_scores) if task == "pair" else (_text_counts, _text_scores)
    )  # fmt: skip
    counts = counting(frame)
    for level in levels:
        mine = (frame["level"] == level).to_numpy(dtype=float)
        columns |= {f"{level}:{name}": mine * values for name, values in counts.items()}
        of_level[level] = scoring(f"{level}:")
        formulas |= {f"{level}/{name}": each for name, each in of_level[level].items()}
        sizes |= dict.fromkeys(
            (f"{level}/{name}" for name in of_level[level]), int((mine * counts["used"]).sum())
        )
    for name in next(iter(of_level.values()), {}):
        formulas[f"macro/{name}"] = _macro(of_level, name)
        sizes[f"macro/{name}"] = int(counts["used"].sum())
    found = estimates(
        columns, list(frame["group"]), formulas,
        n=sizes, bounds=_bounds, n_resamples=n_resamples, seed=seed,
    )  # fmt: skip
    return [
        {
            "task": task,
            "level": key.split("/")[0],
            "metric": key.split("/")[1],
            "value": each.estimate,
            "low": each.low,
            "high": each.high,
            "n": each.n,
        }
        for key, each in found.items()
    ]


def _bounds(name: str) -> tuple[float, float]:
    return (-np.inf, np.inf) if name.endswith(("d_prime", "criterion")) else (0.0, 1.0)


def _macro(of_level: Mapping[str, Mapping[str, Formula]], name: str) -> Formula:
    """Mean over levels; of severity the ratio of macro risk to macro frequency: R = F S."""
    if name == "severity":
        risk, frequency = _macro(of_level, "risk"), _macro(of_level, "frequency")
        return lambda counts: over(risk(counts), frequency(counts))
    parts = [formulas[name] for formulas in of_level.values()]
    return lambda counts: np.mean([part(counts) for part in parts], axis=0)


def _check_deltas(frame: pd.DataFrame) -> None:
    delta = frame["delta"].to_numpy(dtype=float)
    can_cost = frame["task"].isin(_POLLS).to_numpy() | _is_wrong(frame)
    bad = can_cost & ~((delta > 0) & (delta <= 1 + 1e-12))
    if bad.any():
        row = frame[bad].iloc[0]
        raise UsageError(
            f"{int(bad.sum())} answers can be wrong and have no delta in (0, 1], the first "
            f"{row['example']!r} ({row['delta']}); see lvlm_interp.evaluation.severity"
        )


def _is_wrong(frame: pd.DataFrame) -> np.ndarray:
    said = frame["said"]
    return ((said != NONE) & said.notna() & (said != frame["truth"])).to_numpy()


def _weights(frame: pd.DataFrame) -> np.ndarray:
    """Conviction of each answer; NaN where unknown."""
    weight = conviction(frame["p_yes"], frame["p_no"])
    if "conviction" in frame:
        given = frame["conviction"].to_numpy(dtype=float)
        weight = np.where(np.isnan(given), weight, given)
    return weight


def _poll_counts(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    answered = frame["said"].isin(["yes", "no"]).to_numpy()
    true = answered & (frame["truth"] == "yes").to_numpy()
    false = answered & (frame["truth"] == "no").to_numpy()
    yes = (frame["said"] == "yes").to_numpy()
    delta, weight = frame["delta"].to_numpy(dtype=float), _weights(frame)
    known = ~np.isnan(weight)
    weighted = np.where(known, np.nan_to_num(weight) * delta, 0.0)
    return {
        "used": answered, "rows": np.ones(len(frame)), "true": true, "false": false,
        "hits": true & yes, "alarms": false & yes, "misses": true & ~yes,
        "cost_yes": delta * (false & yes), "cost_no": delta * (true & ~yes),
        "known_true": known & true, "known_false": known & false,
        "weighted_yes": weighted * (false & yes), "weighted_no": weighted * (true & ~yes),
    }  # fmt: skip


def _poll_scores(at: str) -> dict[str, Formula]:
    false_alarms, misses = Share(f"{at}alarms", f"{at}false"), Share(f"{at}misses", f"{at}true")

    def frequency(c: Counts) -> np.ndarray:
        return (false_alarms(c) + misses(c)) / 2

    def risk(c: Counts) -> np.ndarray:
        yes, no = c[f"{at}cost_yes"], c[f"{at}cost_no"]
        return (over(yes, c[f"{at}false"]) + over(no, c[f"{at}true"])) / 2

    def weighted(c: Counts) -> np.ndarray:
        yes, no = c[f"{at}weighted_yes"], c[f"{at}weighted_no"]
        return (over(yes, c[f"{at}known_false"]) + over(no, c[f"{at}known_true"])) / 2

    def z_hits(c: Counts) -> np.ndarray:
        return ndtri((c[f"{at}hits"] + 0.5) / (c[f"{at}true"] + 1))

    def z_alarms(c: Counts) -> np.ndarray:
        return ndtri((c[f"{at}alarms"] + 0.5) / (c[f"{at}false"] + 1))

    return {
        "false_alarms": false_alarms,
        "misses": misses,
        "frequency": frequency,
        "severity": lambda c: over(risk(c), frequency(c)),
        "risk": risk,
        "convinced_risk": weighted,
        "d_prime": lambda c: z_hits(c) - z_alarms(c),
        "criterion": lambda c: -(z_hits(c) + z_alarms(c)) / 2,
        "none_rate": lambda c: 1 - over(c[f"{at}used"], c[f"{at}rows"]),
    }


def _text_counts(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    claimed = (frame["said"].notna() & (frame["said"] != NONE)).to_numpy()
    wrong = _is_wrong(frame)
    describes = (frame["task"] == "describe").to_numpy()
    there = describes & (frame["truth"] == "yes").to_numpy()
    delta, weight = frame["delta"].to_numpy(dtype=float), _weights(frame)
    cost, known = np.where(wrong, np.nan_to_num(delta), 0.0), ~np.isnan(weight)
    return {
        "used": claimed, "rows": np.ones(len(frame)), "claims": claimed, "wrong": wrong,
        "cost": cost, "known": known & claimed, "weighted": cost * np.nan_to_num(weight),
        "there": there, "named": there & (frame["said"] == "yes").to_numpy(),
    }  # fmt: skip


def _text_scores(at: str) -> dict[str, Formula]:
    frequency = Share(f"{at}wrong", f"{at}claims")

    def risk(c: Counts) -> np.ndarray:
        return over(c[f"{at}cost"], c[f"{at}claims"])

    return {
        "frequency": frequency,
        "severity": lambda c: over(risk(c), frequency(c)),
        "risk": risk,
        "convinced_risk": lambda c: over(c[f"{at}weighted"], c[f"{at}known"]),
        "coverage": Share(f"{at}named", f"{at}there"),
        "none_rate": lambda c: 1 - over(c[f"{at}used"], c[f"{at}rows"]),
    }


def _pair_counts(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Each pair, counted at its first member; pairs with an answer of neither are left out."""
    if "pair" not in frame:
        raise UsageError("answers of the task pair need a column 'pair'")
    names = ("both_right", "stuck_yes", "stuck_no", "inverted", "used")
    counts = {name: np.zeros(len(frame)) for name in names}
    places: dict[str, list[int]] = {}
    for at, pair in enumerate(frame["pair"]):
        places.setdefault(str(pair), []).append(at)
    said, truth = list(frame["said"]), list(frame["truth"])
    for pair, members in places.items():
        if len(members) != 2 or {truth[at] for at in members} != {"yes", "no"}:
            raise UsageError(f"pair {pair!r} must have two answers, one truth yes and one no")
        if {said[at] for at in members} <= {"yes", "no"}:
            counts[_outcome([said[at] for at in members], [truth[at] for at in members])][
                members[0]
            ] = 1
            counts["used"][members[0]] = 1
    return counts


def _outcome(said: Sequence[str], truth: Sequence[str]) -> str:
    if said[0] == said[1]:
        return f"stuck_{said[0]}"
    return "both_right" if list(said) == list(truth) else "inverted"


def _pair_scores(at: str) -> dict[str, Formula]:
    names = ("both_right", "stuck_yes", "stuck_no", "inverted")
    return {name: Share(f"{at}{name}", f"{at}used") for name in names}
