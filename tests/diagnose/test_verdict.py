"""The verdict says no more than its intervals carry: tables with a known answer in, words out."""

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest

from lvlm_interp.diagnose.conviction import convict
from lvlm_interp.diagnose.items import ACT, AGREEING, RANK, TRIGGERED
from lvlm_interp.diagnose.verdict import (
    LevelTables,
    first_present,
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
    assert entry["found"] is None and entry["missing"] == "there are no trigger pairs"
    assert "Not tested" in entry["verdict"] and "no finding of innocence" in entry["verdict"]
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
    assert entry["side_effect"]["not_measured"] == ["object: no trigger"]
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


def flips(control, trigger, level="object", groups=None):
    """Errors of both sides of trigger pairs, pair by pair."""
    rows = [
        {"example": f"{i}/{source}", "group": str(i if groups is None else groups[i]),
         "level": level, "condition": condition, "source": source, "half": RANK,
         "metric": "error", "value": float(value), "unit": "share"}
        for i, sides in enumerate(zip(control, trigger, strict=True))
        for value, source, condition in zip(
            sides, ("trigger/clean", "trigger/corrupt"), ("no trigger", TRIGGERED), strict=True
        )
    ]  # fmt: skip
    return LevelTables(ResultTable(rows))


@cache
def verdict_of(up, down, both, n):
    """Of independent pairs only the counts matter: `up` err with the trigger alone, ..."""
    trigger = np.repeat([1.0, 0.0, 1.0, 0.0], [up, down, both, n - up - down - both])
    control = np.repeat([0.0, 1.0, 1.0, 0.0], [up, down, both, n - up - down - both])
    sides = (pd.DataFrame({"value": side, "group": np.arange(n)}) for side in (control, trigger))
    return convict(*sides).found


def convicted(rng, n, before, after):
    cells = [after * (1 - before), before * (1 - after), before * after]
    up, down, both, _ = rng.multinomial(n, [*cells, 1 - sum(cells)])
    return verdict_of(up, down, both, n) is True


@pytest.mark.parametrize(("n", "errs"), [(2, 0.5), (8, 0.5), (12, 0.2), (20, 0.5)])
def test_a_model_without_a_flaw_is_rarely_convicted_at_any_of_three_levels(n, errs):
    rng = np.random.default_rng(n)
    found = sum(any(convicted(rng, n, errs, errs) for _ in range(3)) for _ in range(400))
    assert found <= 16


@pytest.mark.parametrize(
    ("n", "before", "after", "power"),
    [(40, 0.25, 0.75, 0.9), (40, 0.5, 1.0, 0.9), (200, 0.4, 0.6, 0.8), (200, 0.5, 0.7, 0.8)],
)
def test_a_gap_is_convicted_at_a_size_that_shows_it(n, before, after, power):
    rng = np.random.default_rng(1)
    assert np.mean([convicted(rng, n, before, after) for _ in range(200)]) >= power


def test_copies_of_a_pair_are_one_scene():
    tables = flips([0] * 60, [1] * 60, groups=[i % 3 for i in range(60)])
    entry = summarise("object", tables, 0)
    assert entry["found"] is None and "3 scenes, and 8 are needed" in entry["verdict"]


def test_few_pairs_are_not_tested_and_do_not_name_a_cost():
    entry = summarise("object", flips([0, 0], [1, 1]), 0)
    assert entry["found"] is None and "2 scenes, and 8 are needed" in entry["verdict"]
    assert entry["gap"]["low"] < 0.05 and entry["gap"]["high"] == 1


def test_what_errs_throughout_is_not_called_innocent():
    entry = summarise("object", flips([1] * 30, [1] * 30), 0)
    assert entry["found"] is None and "errs throughout" in entry["verdict"]


def test_ten_scenes_can_convict_and_say_on_how_few_it_rests():
    entry = summarise("object", flips([0] * 10, [1] * 10), 0)
    assert entry["found"] is True and "It rests on 10 scenes" in entry["verdict"]


def test_the_cost_is_said_by_its_upper_bound():
    tables = LevelTables(behaviour(0.9, 0.05), None, patching(), intervention())
    entry = summarise("object", tables, 0)
    high = entry["intervention"]["side_effect"]["high"]
    assert high > 0.05
    assert f"at a cost of at most {100 * high:.1f} points" in entry["verdict"]
    assert "not measured: object: no trigger" in entry["verdict"]


def test_mended_means_mended_in_every_form_of_the_question():
    table = intervention(after=0.5)
    frame = table.frame.copy()
    number = frame["example"].str.extract(r"(\d+)$")[0].astype(int)
    frame["form"] = np.where(number % 2 == 0, "color_at", "color_of")
    triggered = frame["condition"] == TRIGGERED
    of = triggered & (frame["form"] == "color_of")
    frame.loc[of & frame["arm"].isin(["before", "after"]), "value"] = 1.0
    at = triggered & (frame["form"] == "color_at") & (frame["arm"] == "after")
    frame.loc[at, "value"] = 0.0
    tables = LevelTables(behaviour(0.9, 0.05), None, patching(), ResultTable(frame))
    entry = summarise("object", tables, 0)
    acted = entry["intervention"]
    assert acted["mends"] is False
    assert acted["by_form"]["color_at"]["mended"] and not acted["by_form"]["color_of"]["mended"]
    assert "mends some forms of the question and not others" in entry["verdict"]
    assert "color_of 100% [88%, 100%] to 100% [88%, 100%] (not mended)" in entry["verdict"]


def test_evidence_reaches_a_position_at_the_first_site_where_it_is_present():
    rows = [
        {"role": "flow", "site": f"text.{layer}.resid_post", "position": "last", "chance": 0.5,
         "metric": "balanced_accuracy", "value": low + 0.05, "low": low, "high": 1.0, "n": 100}
        for layer, low in enumerate((0.5, 0.7, 0.9, 0.9))
    ]  # fmt: skip
    assert first_present(ResultTable(rows)) == {"last": "text.1.resid_post"}


def test_what_was_left_out_is_said():
    tables = replace(flips([0] * 10, [1] * 10), left_out=("probes: there are no evidence pairs",))
    assert (
        "Left out: probes: there are no evidence pairs."
        in summarise("object", tables, 0)["verdict"]
    )
