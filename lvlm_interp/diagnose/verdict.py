"""Step 6: from tables to `summary.json`, by the rules of `conviction` and `phrases`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from lvlm_interp.diagnose.conviction import FLAW_GAP, convict
from lvlm_interp.diagnose.items import ACT, AGREEING, CONTROL, RANK, TRIGGERED
from lvlm_interp.diagnose.phrases import PRESENT, words
from lvlm_interp.patching.result import effect_and_gap
from lvlm_interp.results import ResultTable
from lvlm_interp.stats import difference, rate, ratio_of_means

__all__ = [
    "FLAW_GAP",
    "LevelTables",
    "heads_entry",
    "intervention_entry",
    "probe_entry",
    "ranked_heads",
    "summarise",
]

NO_FORM = "all questions"
"""Form of questions whose form is not known."""

TOP = 10


@dataclass(frozen=True)
class LevelTables:
    """What the steps found at one level.

    Attributes:
        behaviour: Of all levels.
        probes: One row per site x position with estimates; None where no probe could be fitted.
        patching: Rows of pairs x sites x heads; None without trigger pairs.
        intervention: None without trigger pairs.
        left_out: Steps that were left out, each with the reason, in words.
    """

    behaviour: ResultTable
    probes: ResultTable | None = None
    patching: ResultTable | None = None
    intervention: ResultTable | None = None
    left_out: tuple[str, ...] = ()


def summarise(level: str, tables: LevelTables, seed: int) -> dict[str, Any]:
    """The entry of a level in `summary.json`; what does not apply is null.

    `found` is null where a flaw could not be tested; `missing` says what it would take.
    """
    error = _errors(tables.behaviour.frame, level)
    triggered = error[error["source"] == "trigger/corrupt"]
    control = error[error["source"] == "trigger/clean"]
    quiet = error[error["condition"].str.startswith(CONTROL)]
    verdict = convict(control, triggered)
    entry: dict[str, Any] = {
        "trigger_error": _rate(triggered),
        "control_error": _rate(quiet if control.empty else control),
        "agreeing_error": _rate(error[error["condition"] == AGREEING]),
        "gap": None if verdict.gap is None else verdict.gap.to_dict(),
        "groups": verdict.groups,
        "pvalue": verdict.pvalue,
        "found": verdict.found,
        "missing": verdict.missing,
        "left_out": list(tables.left_out),
        "probe": probe_entry(tables.probes),
        "heads": heads_entry(tables.patching, seed),
        "intervention": intervention_entry(tables.intervention, seed),
    }
    entry["verdict"] = words(level, entry)
    return entry


def heads_entry(patching: ResultTable | None, seed: int) -> list[dict[str, Any]] | None:
    """The heads ranked first on the ranking half, each with its recovery on the acting half."""
    ranked = ranked_heads(patching)
    if not ranked or patching is None:
        return None
    frame = _heads(patching)
    act = frame[frame["half"] == ACT]
    return [
        {"layer": layer, "head": head, "recovery": _recovery(act, layer, head, seed)}
        for layer, head in ranked[:TOP]
    ]


def ranked_heads(patching: ResultTable | None) -> list[tuple[int, int]]:
    """Heads by recovery on the trigger pairs of the ranking half, highest first."""
    if patching is None:
        return []
    frame = _heads(patching)
    frame = frame[frame["half"] == RANK]
    moved = frame["m_patched"] - frame["m_corrupt"]
    sums = moved.groupby([frame["layer"], frame["head"]]).sum()
    return [(int(layer), int(head)) for layer, head in sums.sort_values(ascending=False).index]


def intervention_entry(table: ResultTable | None, seed: int) -> dict[str, Any] | None:
    """Error before and after on the acting half, random draws, and what it costs where.

    `by_form` has before, after and change of each form of the question; `mends` is true where the
    error falls (upper bound) in every form, and below that of every random draw.
    """
    if table is None:
        return None
    frame = table.frame
    level = frame["acted_on"].iloc[0]
    mine = frame[(frame["condition"] == TRIGGERED) & (frame["level"] == level)]
    before, after = mine[mine["arm"] == "before"], mine[mine["arm"] == "after"]
    draws = mine[mine["arm"] == "random"].groupby("draw", sort=True)["value"].mean()
    chosen = frame.loc[
        frame["arm"] == "after", ["heads", "mode", "strength", "positions", "how"]
    ].iloc[0]
    forms = _by_form(before, after, seed)
    beats = bool(after["value"].mean() < draws.min()) if len(draws) else None
    return {
        "heads": [[int(part) for part in name.split(".")] for name in chosen["heads"].split()],
        "mode": chosen["mode"],
        "strength": float(chosen["strength"]),
        "positions": chosen["positions"],
        "how": chosen["how"],
        "before": _rate(before),
        "after": _rate(after),
        "change": _paired(before, after, seed),
        "by_form": forms,
        "mends": bool(beats) and all(form["mended"] for form in forms.values()),
        "random": {
            **(_rate(mine[mine["arm"] == "random"]) or {}),
            "draws": [float(value) for value in draws],
        },
        "side_effect": _side_effect(frame, level, seed),
        "beats_random": beats,
    }


def _by_form(before: pd.DataFrame, after: pd.DataFrame, seed: int) -> dict[str, dict[str, Any]]:
    found = {}
    form = before["form"] if "form" in before else pd.Series(NO_FORM, before.index)
    form = form.fillna(NO_FORM)
    for name in dict.fromkeys(form):
        rows = (form == name).to_numpy()
        change = _paired(before[rows], after[rows], seed)
        found[str(name)] = {
            "before": _rate(before[rows]),
            "after": _rate(after[rows]),
            "change": change,
            "mended": change["high"] is not None and change["high"] < 0,
        }
    return found


def _side_effect(frame: pd.DataFrame, level: str, seed: int) -> dict[str, Any] | None:
    """The condition whose cost may be largest (upper bound), and what the data cannot show."""
    costs = _costs(frame, seed)
    lacking = [
        f"{level}: {condition}"
        for condition in (AGREEING, CONTROL)
        if not any(name.startswith(f"{level}: {condition}") for name in costs)
    ]
    measured = [cost for cost in costs.values() if cost["high"] is not None]
    if not measured:
        return None
    worst = max(measured, key=lambda cost: cost["high"])
    return {**worst, "by_condition": costs, "not_measured": lacking}


def probe_entry(probes: ResultTable | None) -> dict[str, Any] | None:
    """The site and position chosen on training folds, scored on held-out scenes."""
    if probes is None:
        return None
    frame = probes.frame
    chosen = frame[frame["role"] == "selected"]
    accuracy = chosen[chosen["metric"] == "balanced_accuracy"].iloc[0]
    selectivity = chosen[chosen["metric"] == "selectivity"]
    known = chosen[chosen["metric"] == "known_but_not_said"]
    base = chosen[chosen["metric"] == "known_base_rate"]
    return {
        "site": accuracy["site"],
        "position": accuracy["position"],
        "accuracy": _entry(accuracy),
        "selectivity": _entry(selectivity.iloc[0]) if len(selectivity) else None,
        "known_but_not_said": _entry(known.iloc[0]) if len(known) else None,
        "known_base_rate": float(base["value"].iloc[0]) if len(base) else None,
        "chance": float(accuracy["chance"]),
        "reaches": first_present(probes),
    }


def first_present(probes: ResultTable) -> dict[str, Any]:
    """Per position, the first site along the flow at which the evidence is present, or null."""
    frame = probes.frame
    flow = frame[(frame["role"] == "flow") & (frame["metric"] == "balanced_accuracy")]
    out: dict[str, Any] = {}
    for position, rows in flow.groupby("position", sort=False):
        present = rows[rows["low"] > rows["chance"] + PRESENT]
        out[str(position)] = None if present.empty else present["site"].iloc[0]
    return out


def _errors(frame: pd.DataFrame, level: str) -> pd.DataFrame:
    return frame[(frame["metric"] == "error") & (frame["level"] == level)]


def _rate(rows: pd.DataFrame) -> dict[str, Any] | None:
    if rows.empty:
        return None
    return rate(rows["value"].to_numpy(), rows["group"].to_numpy()).to_dict()


def _paired(before: pd.DataFrame, after: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Mean difference of two arms over the same pairs or items, which stand in the same order."""
    first, second = after["value"].to_numpy(), before["value"].to_numpy()
    return difference(first, second, before["group"].to_numpy(), seed=seed).to_dict()


def _costs(frame: pd.DataFrame, seed: int) -> dict[str, dict[str, Any]]:
    quiet = frame[frame["condition"] != TRIGGERED]
    costs = {}
    for (level, condition), rows in quiet.groupby(["level", "condition"], sort=True):
        before, after = rows[rows["arm"] == "before"], rows[rows["arm"] == "after"]
        costs[f"{level}: {condition}"] = _paired(before, after, seed)
    return costs


def _heads(patching: ResultTable) -> pd.DataFrame:
    frame = patching.frame
    head = (frame["tower"] == "text") & frame["head"].notna()
    return frame[head & (frame["kind"] == "trigger") & frame["value"].notna()]


def _recovery(frame: pd.DataFrame, layer: int, head: int, seed: int) -> dict[str, Any]:
    rows = frame[(frame["layer"] == layer) & (frame["head"] == head)]
    if "direction" not in rows:
        rows = rows.assign(direction="denoise")  # which is what `localise` does
    effect, gap = effect_and_gap(rows)
    groups = rows["group"].to_numpy()
    return ratio_of_means(effect.to_numpy(), gap.to_numpy(), groups, seed=seed).to_dict()


def _entry(row: pd.Series) -> dict[str, Any]:
    return {
        "estimate": float(row["value"]),
        "low": None if pd.isna(row["low"]) else float(row["low"]),
        "high": None if pd.isna(row["high"]) else float(row["high"]),
        "n": int(row["n"]),
    }
