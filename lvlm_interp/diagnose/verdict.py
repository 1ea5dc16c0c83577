"""Step 6: from tables to `summary.json` and to words, by rules that are written down here.

No word says more than its interval carries: where a bound does not clear the line, the verdict says
"not shown".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lvlm_interp.diagnose.items import ACT, AGREEING, CONTROL, RANK, TRIGGERED
from lvlm_interp.results import ResultTable
from lvlm_interp.stats import Estimate, cluster_bootstrap, rate, ratio_of_means

FLAW_GAP = 0.05
"""A flaw is found when errors with the trigger exceed those without by more (lower bound)."""
PRESENT = 0.10
"""Evidence is present where the probe's lower bound exceeds chance by this."""
CARRIES = 0.05
"""A head carries the wrong answer when its recovery (lower bound, acting half) exceeds this."""
TOP = 10

RULES: tuple[str, ...] = (
    "A flaw is found where, over trigger pairs, the error rate with the trigger in sight exceeds "
    f"the one without it (same question, same truth) by more than {FLAW_GAP:.0%} (lower bound of "
    "the 95% interval of the paired difference, scenes resampled).",
    "Evidence is present at a site where the lower bound of the probe's balanced accuracy on "
    f"held-out scenes exceeds chance by {PRESENT:.0%}.",
    "A head carries the wrong answer where the lower bound of its recovery on trigger pairs, "
    f"measured on scenes that did not rank it, exceeds {CARRIES:.0%}.",
    "Acting on heads mends the flaw where the error after is below the error before (interval of "
    "the paired difference) and below that of every one of 20 draws of as many random heads.",
    "Cost is the largest loss of accuracy over all conditions in which the flaw does not show: "
    "trigger in sight but the flaw right, no trigger, and the questions of the other levels.",
)


@dataclass(frozen=True)
class LevelTables:
    """What the steps found at one level.

    Attributes:
        behaviour: Of all levels.
        probes: One row per site x position with estimates; None where no probe could be fitted.
        patching: Rows of pairs x sites x heads; None without trigger pairs.
        intervention: None without trigger pairs.
    """

    behaviour: ResultTable
    probes: ResultTable | None = None
    patching: ResultTable | None = None
    intervention: ResultTable | None = None


def summarise(level: str, tables: LevelTables, seed: int) -> dict[str, Any]:
    """The entry of a level in `summary.json`; what does not apply is null."""
    error = _errors(tables.behaviour.frame, level)
    triggered = error[error["source"] == "trigger/corrupt"]
    control = error[error["source"] == "trigger/clean"]
    quiet = error[error["condition"].str.startswith(CONTROL)]
    entry: dict[str, Any] = {
        "trigger_error": _rate(triggered),
        "control_error": _rate(quiet if control.empty else control),
        "agreeing_error": _rate(error[error["condition"] == AGREEING]),
        "gap": _paired(control, triggered, seed) if len(control) else None,
        "probe": probe_entry(tables.probes),
        "heads": heads_entry(tables.patching, seed),
        "intervention": intervention_entry(tables.intervention, seed),
    }
    gap = entry["gap"]
    entry["found"] = bool(gap and gap["low"] is not None and gap["low"] > FLAW_GAP)
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
    """Error before and after on the acting half, random draws, and what it costs where."""
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
    costs = _costs(frame, seed)
    worst = max(costs.values(), key=lambda cost: cost["estimate"], default=None)
    return {
        "heads": [[int(part) for part in name.split(".")] for name in chosen["heads"].split()],
        "mode": chosen["mode"],
        "strength": float(chosen["strength"]),
        "positions": chosen["positions"],
        "how": chosen["how"],
        "before": _rate(before),
        "after": _rate(after),
        "change": _paired(before, after, seed),
        "random": {
            **(_rate(mine[mine["arm"] == "random"]) or {}),
            "draws": [float(value) for value in draws],
        },
        "side_effect": None if worst is None else {**worst, "by_condition": costs},
        "beats_random": bool(after["value"].mean() < draws.min()) if len(draws) else None,
    }


def probe_entry(probes: ResultTable | None) -> dict[str, Any] | None:
    """The site and position chosen on training folds, scored on held-out scenes."""
    if probes is None:
        return None
    frame = probes.frame
    chosen = frame[frame["role"] == "selected"]
    accuracy = chosen[chosen["metric"] == "balanced_accuracy"].iloc[0]
    selectivity = chosen[chosen["metric"] == "selectivity"]
    known = chosen[chosen["metric"] == "known_but_not_said"]
    return {
        "site": accuracy["site"],
        "position": accuracy["position"],
        "accuracy": _entry(accuracy),
        "selectivity": _entry(selectivity.iloc[0]) if len(selectivity) else None,
        "known_but_not_said": _entry(known.iloc[0]) if len(known) else None,
        "chance": float(accuracy["chance"]),
        "stops": last_present(probes),
    }


def last_present(probes: ResultTable) -> dict[str, Any]:
    """Per position, the last site along the flow at which the evidence is present, or null."""
    frame = probes.frame
    flow = frame[(frame["role"] == "flow") & (frame["metric"] == "balanced_accuracy")]
    out: dict[str, Any] = {}
    for position, rows in flow.groupby("position", sort=False):
        present = rows[rows["low"] > rows["chance"] + PRESENT]
        out[str(position)] = None if present.empty else present["site"].iloc[-1]
    return out


# -- words ---------------------------------------------------------------------------------------


def words(level: str, entry: Mapping[str, Any]) -> str:
    """The verdict of a level in words, each sentence by its rule."""
    sentences = [_flaw_words(entry), _probe_words(entry["probe"])]
    if entry["found"]:
        sentences += [_head_words(entry["heads"]), _intervention_words(entry["intervention"])]
    return " ".join(sentence for sentence in sentences if sentence)


def headline(entry: Mapping[str, Any]) -> str:
    """The figure that a reader keeps."""
    trigger, control = entry["trigger_error"], entry["control_error"]
    if trigger is None:
        return "no trigger pairs"
    return f"{trigger['estimate']:.0%} wrong with the trigger, {control['estimate']:.0%} without"


def _flaw_words(entry: Mapping[str, Any]) -> str:
    trigger, control, gap = entry["trigger_error"], entry["control_error"], entry["gap"]
    if trigger is None:
        return f"Without trigger pairs only its errors are known: {share(control)}."
    if entry["found"]:
        return (
            f"With the trigger in sight it says what is not there in {share(trigger)} of scenes, "
            f"without it errs in {share(control)}."
        )
    return (
        f"No flaw is shown: {share(trigger)} wrong with the trigger, {share(control)} without "
        f"(difference {points(gap)})."
    )


def _probe_words(probe: Mapping[str, Any] | None) -> str:
    if probe is None:
        return ""
    accuracy = probe["accuracy"]
    if accuracy["low"] is None or accuracy["low"] <= probe["chance"] + PRESENT:
        return "That the truth is linearly there in its activations is not shown."
    text = (
        f"The truth is linearly there at {probe['site']} ({probe['position']}): balanced accuracy "
        f"{share(accuracy)} on held-out scenes"
    )
    last = probe["stops"].get("last")
    if "last" in probe["stops"]:
        text += (
            f", and reaches the answer's position by {last}"
            if last
            else (", and is not shown to reach the answer's position")
        )
    return text + "."


def _head_words(heads: list[dict[str, Any]] | None) -> str:
    if not heads:
        return ""
    carrying = [
        head
        for head in heads
        if head["recovery"]["low"] is not None and head["recovery"]["low"] > CARRIES
    ]
    if not carrying:
        return "That single heads carry the wrong answer is not shown."
    named = ", ".join(
        f"{head['layer']}.{head['head']} ({head['recovery']['estimate']:.0%})"
        for head in carrying[:4]
    )
    return f"Heads that carry the wrong answer, with the share of it that each recovers: {named}."


def _intervention_words(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    named = ", ".join(f"{layer}.{head}" for layer, head in entry["heads"])
    change = entry["change"]
    if change["high"] is None or change["high"] >= 0 or not entry["beats_random"]:
        return f"That acting on {named} mends it, better than random heads do, is not shown."
    cost = entry["side_effect"]
    price = "" if cost is None else f", at a cost of at most {100 * cost['estimate']:.1f} points"
    return (
        f"Acting on {named} ({entry['how']}) lowers the error from {share(entry['before'])} to "
        f"{share(entry['after'])}, lower than each of {len(entry['random']['draws'])} random "
        f"draws{price}."
    )


def share(entry: Mapping[str, Any] | None) -> str:
    """An estimate of a share in words: `43% [38%, 48%]`."""
    if entry is None or entry["estimate"] is None:
        return "not measured"
    if entry["low"] is None:
        return f"{entry['estimate']:.0%}"
    return f"{entry['estimate']:.0%} [{entry['low']:.0%}, {entry['high']:.0%}]"


def points(entry: Mapping[str, Any] | None) -> str:
    """A difference of shares in percentage points."""
    if entry is None or entry["low"] is None:
        return "not measured"
    estimate, low, high = (100 * entry[name] for name in ("estimate", "low", "high"))
    return f"{estimate:+.1f} points [{low:+.1f}, {high:+.1f}]"


# -- figures of a summary ------------------------------------------------------------------------


def _errors(frame: pd.DataFrame, level: str) -> pd.DataFrame:
    return frame[(frame["metric"] == "error") & (frame["level"] == level)]


def _rate(rows: pd.DataFrame) -> dict[str, Any] | None:
    if rows.empty:
        return None
    return rate(rows["value"].to_numpy(), rows["group"].to_numpy()).to_dict()


def _paired(before: pd.DataFrame, after: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Mean difference of two arms over the same pairs or items, which stand in the same order."""
    change = after["value"].to_numpy() - before["value"].to_numpy()
    return cluster_bootstrap(change, before["group"].to_numpy(), seed=seed).to_dict()


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
    moved = (rows["m_patched"] - rows["m_corrupt"]).to_numpy()
    whole = (rows["m_clean"] - rows["m_corrupt"]).to_numpy()
    if len(rows) == 0 or not np.isfinite(whole).all():
        return Estimate(float("nan"), float("nan"), float("nan"), 0).to_dict()
    return ratio_of_means(moved, whole, rows["group"].to_numpy(), seed=seed).to_dict()


def _entry(row: pd.Series) -> dict[str, Any]:
    return {
        "estimate": float(row["value"]),
        "low": None if pd.isna(row["low"]) else float(row["low"]),
        "high": None if pd.isna(row["high"]) else float(row["high"]),
        "n": int(row["n"]),
    }
