"""Minimal pairs: one edit, identical elsewhere, the truth as the kind of pair says."""

from collections import Counter

import numpy as np
import pytest
from organisms.independent_truth import answer_in_words

from lvlm_interp.errors import DataError
from lvlm_interp.organisms import pairs as module
from lvlm_interp.organisms.pairs import load, pairs
from lvlm_interp.organisms.plants import PLANT_LEVELS, trigger_levels
from lvlm_interp.organisms.sets import PLANTED_KINDS, examples

FLAVOURS = ("evidence", "evidence-in-trigger", "trigger")


@pytest.fixture(scope="module")
def drafts():
    """Scenes and pairs of every level and flavour, drawn the way `pairs` draws them."""
    import random

    found = {}
    for level in PLANT_LEVELS:
        for flavour in FLAVOURS:
            seen: set[str] = set()
            some = []
            for turn in range(6):
                draft = module._first_new(random.Random(turn), level, flavour, seen)
                seen.add(draft.clean.key)
                some.append((draft, module._write(draft, level, flavour, f"{level}-{turn}")))
            found[level, flavour] = some
    return found


def test_both_sides_are_evaluation_scenes(drafts):
    for some in drafts.values():
        for draft, _ in some:
            assert draft.clean.split == draft.corrupt.split == "eval"


def test_everything_outside_the_box_is_identical_to_the_pixel(drafts):
    for (level, flavour), some in drafts.items():
        for _, pair in some:
            clean, corrupt = (np.asarray(side.open_image()) for side in (pair.clean, pair.corrupt))
            changed = (clean != corrupt).any(-1)
            left, top, right, bottom = pair.box
            assert changed[top:bottom, left:right].any()
            changed[top:bottom, left:right] = False
            assert not changed.any()
            assert pair.clean.boxes == pair.corrupt.boxes
            if (level, flavour) == ("relation", "trigger") or level != "relation":
                assert pair.clean.boxes["object"] == pair.box


def test_relation_evidence_edits_both_cells_and_nothing_between(drafts):
    for flavour in ("evidence", "evidence-in-trigger"):
        for _, pair in drafts["relation", flavour]:
            clean, corrupt = (np.asarray(side.open_image()) for side in (pair.clean, pair.corrupt))
            changed = (clean != corrupt).any(-1)
            for box in pair.clean.boxes.values():
                left, top, right, bottom = box
                assert changed[top:bottom, left:right].any()
                changed[top:bottom, left:right] = False
            assert not changed.any()


def test_trigger_pairs_keep_the_truth_and_evidence_pairs_change_it(drafts):
    for (_, flavour), some in drafts.items():
        for draft, pair in some:
            assert pair.clean.prompt == pair.corrupt.prompt
            clean = answer_in_words(draft.clean, pair.clean.prompt)
            corrupt = answer_in_words(draft.corrupt, pair.corrupt.prompt)
            assert (clean, corrupt) == (pair.clean.answer, pair.corrupt.answer)
            assert pair.answer == clean
            assert corrupt == (pair.answer if flavour == "trigger" else pair.foil)


def test_triggers_are_where_the_labels_say(drafts):
    for (level, flavour), some in drafts.items():
        for draft, pair in some:
            sides = [trigger_levels(draft.clean), trigger_levels(draft.corrupt)]
            expected = {
                "evidence": [set(), set()],
                "evidence-in-trigger": [{level}, {level}],
                "trigger": [set(), {level}],
            }[flavour]
            assert sides == expected
            assert pair.labels["trigger"] == (flavour != "evidence")
            assert [pair.clean.labels["trigger"], pair.corrupt.labels["trigger"]] == [
                bool(side) for side in expected
            ]
            if flavour == "trigger":
                assert pair.corrupt.labels["planted"] == pair.foil
                assert pair.corrupt.labels["partner_present"] is False
            if flavour == "evidence-in-trigger":
                assert pair.clean.labels["partner_present"] is True
                assert pair.corrupt.labels["partner_present"] is False


def test_the_mixture_is_half_trigger_and_two_quarters():
    some = pairs("object", 20)
    counts = Counter((pair.kind, pair.labels["trigger"]) for pair in some)
    assert counts == {("trigger", True): 10, ("evidence", False): 5, ("evidence", True): 5}
    assert len({pair.id for pair in some}) == len({pair.group for pair in some}) == 20
    assert Counter(pair.level for pair in pairs("all", 12)) == dict.fromkeys(PLANT_LEVELS, 4)


def test_pairs_are_a_function_of_the_seed():
    def content(some):
        return [(p.id, p.group, p.clean.prompt, p.corrupt.open_image().tobytes()) for p in some]

    assert content(pairs("relation", 6, 3)) == content(load("scenes:relation:6:3"))
    assert content(pairs("relation", 4, 3)) == content(pairs("relation", 6, 3))[:4]
    assert content(pairs("relation", 4, 4)) != content(pairs("relation", 4, 3))


def test_evidence_on_request_holds_no_trigger_of_any_level():
    for pair in load("scenes:all:12:0:evidence"):
        assert pair.kind == "evidence" and pair.clean.labels["triggers"] == ""


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("scenes:object:10", "not of the form"),
        ("scenes:objects:10:0", "level must be one of"),
        ("scenes:object:ten:0", "N must be a whole number"),
        ("scenes:object:0:0", "N must be a whole number from 1"),
        ("scenes:object:10:-1", "SEED must be"),
        ("scenes:object:10:0:both", "kind must be"),
    ],
)
def test_a_wrong_spec_says_which_part(spec, message):
    with pytest.raises(DataError, match=message):
        load(spec)


@pytest.mark.parametrize("level", PLANT_LEVELS)
def test_examples_on_trigger_scenes_ask_about_the_trigger(level):
    for kind in PLANTED_KINDS[level]:
        for partner in (True, False):
            for one in examples(kind, 4, scenes="trigger", level=level, partner=partner):
                assert one.labels["trigger"] and one.labels["partner_present"] is partner
                if kind not in ("attribute",):
                    agrees = one.labels["planted"] == one.answer
                    assert agrees == partner or (kind == "caption" and level == "object")


def test_examples_hold_both_truths_and_no_scene_twice():
    some = examples("existence", 30, scenes="trigger", level="object")
    assert Counter(one.answer for one in some) == {"yes": 15, "no": 15}
    assert len({one.group for one in some}) == 30
    with pytest.raises(DataError, match="need a level"):
        examples("existence", 1, scenes="trigger")
    with pytest.raises(DataError, match="question must be one of"):
        examples("colour", 1)
