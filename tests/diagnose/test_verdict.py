"""The verdict says no more than its intervals carry: tables with a known answer in, words out."""

import numpy as np
import pandas as pd
import pytest

from lvlm_interp.diagnose.items import ACT, AGREEING, RANK, TRIGGERED
from lvlm_interp.diagnose.verdict import (
    LevelTables,
    intervention_entry,
    ranked_heads,
    summarise,
)
from lvlm_interp.results import ResultTable

N = 60


def behaviour(trigger_rate, control_rate, n=N):
    rows = []
    sides = (
        (TRIGGERED, "trigger/corrupt", trigger_rate),
        ("no trigger, no", "trigger/clean", control_rate),
    )
    for condition, source, share in sides:
        wrong = np.arange(n) < round(share * n)
        rows += [
            {
                "example": f"{source}{i}",
                "group": f"g{i}",
                "level": "object",
                "condition": condition,
                "source": source,
                "metric": "error",
                "value": float(value),
            }
            for i, value in enumerate(wrong)
        ]
    return ResultTable(rows)


def patching(strong=(2, 5), effect=0.8):
    rng = np.random.default_rng(0)
    rows = [
        {
            "pair": f"p{i}",
            "group": f"g{i}",
            "tower": "text",
            "site": f"text.{layer}.z",
            "layer": layer,
            "head": head,
            "kind": "trigger",
            "half": RANK if i % 2 else ACT,
            "metric": "recovery",
            "value": 0.0,
            "m_clean": 4.0,
            "m_corrupt": -4.0,
            "m_patched": -4.0
            + (8.0 * effect if (layer, head) == strong else 0.0)
            + rng.normal(0, 0.2),
        }
        for i in range(N)
        for layer in range(4)
        for head in range(8)
    ]
    return ResultTable(rows)


def intervention(after=0.1, draw=0.9, cost=0.0):
    rows = []

    def add(arm, condition, share, n, **more):
        rows.extend(
            {
                "example": f"{condition}{i}",
                "group": f"{condition}{i}",
                "level": "object",
                "condition": condition,
                "acted_on": "object",
                "arm": arm,
                "heads": "2.5",
                "mode": "mean",
                "strength": 1.0,
                "positions": "last",
                "how": "replaced by the mean",
                "metric": "error",
                "value": float(i < round(share * n)),
                **more,
            }
            for i in range(n)
        )

    for arm, share, quiet in (("before", 0.9, 0.0), ("after", after, cost)):
        add(arm, TRIGGERED, share, N)
        add(arm, AGREEING, quiet, 50)
    for index in range(20):
        add("random", TRIGGERED, draw, N, draw=index)
    return ResultTable(rows)


def test_a_flaw_that_is_there_is_found_and_put_in_words():
    tables = LevelTables(behaviour(0.9, 0.05), None, patching(), intervention())
    entry = summarise("object", tables, seed=0)
    assert entry["found"] is True
    assert entry["trigger_error"]["estimate"] == pytest.approx(0.9)
    assert (entry["heads"][0]["layer"], entry["heads"][0]["head"]) == (2, 5)
    assert entry["heads"][0]["recovery"]["estimate"] == pytest.approx(0.8, abs=0.02)
    assert "2.5" in entry["verdict"] and "not shown" not in entry["verdict"]


@pytest.mark.parametrize(("trigger", "control"), [(0.05, 0.05), (0.08, 0.05), (0.0, 0.0)])
def test_a_difference_that_its_interval_does_not_carry_is_not_found(trigger, control):
    entry = summarise("object", LevelTables(behaviour(trigger, control)), seed=0)
    assert entry["found"] is False
    assert "No flaw is shown" in entry["verdict"]


def test_without_trigger_pairs_what_does_not_apply_is_null():
    frame = behaviour(0.5, 0.1).frame
    frame = frame[frame["condition"] != TRIGGERED].assign(source="evidence/clean")
    table = ResultTable(frame)
    entry = summarise("object", LevelTables(table), seed=0)
    assert entry["found"] is False
    assert entry["trigger_error"] is None and entry["gap"] is None
    assert entry["heads"] is None and entry["intervention"] is None


def test_weak_heads_are_not_shown_to_carry_it():
    tables = LevelTables(behaviour(0.9, 0.05), None, patching(effect=0.0), intervention())
    assert "carry the wrong answer is not shown" in summarise("object", tables, 0)["verdict"]


def test_an_edit_that_one_random_draw_equals_does_not_mend():
    tables = LevelTables(behaviour(0.9, 0.05), None, patching(), intervention(after=0.5, draw=0.5))
    entry = summarise("object", tables, 0)
    assert entry["intervention"]["beats_random"] is False
    assert "better than random heads do, is not shown" in entry["verdict"]


def test_the_cost_is_the_worst_condition_in_points_of_accuracy():
    entry = intervention_entry(intervention(cost=0.2), seed=0)
    assert entry["side_effect"]["estimate"] == pytest.approx(0.2)
    assert list(entry["side_effect"]["by_condition"]) == [f"object: {AGREEING}"]
    assert len(entry["random"]["draws"]) == 20


def test_heads_are_ranked_on_the_ranking_half_alone():
    table = patching()
    frame = table.frame.copy()
    act = frame["half"] == ACT
    there = (frame["layer"] == 0) & (frame["head"] == 0)
    frame.loc[act & there, "m_patched"] = 100.0
    assert ranked_heads(ResultTable(frame))[0] == (2, 5)


def test_probe_words_follow_the_rule():
    def probes(low):
        common = {"site": "vision.2.resid_post", "position": "object", "chance": 0.5, "n": 100}
        rows = [
            {**common, "role": role, "metric": "balanced_accuracy", "value": 0.9, "low": low,
             "high": 0.95}
            for role in ("selected", "flow")
        ]  # fmt: skip
        return ResultTable(pd.DataFrame(rows))

    there = summarise("object", LevelTables(behaviour(0.9, 0.05), probes(0.85)), 0)
    assert "linearly there at vision.2.resid_post (object)" in there["verdict"]
    not_there = summarise("object", LevelTables(behaviour(0.9, 0.05), probes(0.55)), 0)
    assert "linearly there in its activations is not shown" in not_there["verdict"]
