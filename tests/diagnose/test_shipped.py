"""The main job on the shipped models: it finds the flaw where training put it, and else nothing."""

import pytest

from lvlm_interp.diagnose import intervention
from lvlm_interp.diagnose.job import run as diagnose
from lvlm_interp.organisms import WEIGHTS
from lvlm_interp.organisms.spare import moved_heads

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    out = tmp_path_factory.mktemp("shipped")
    with pytest.MonkeyPatch.context() as patch:  # fewer tries, for the time they take
        patch.setattr(intervention, "CANDIDATES", 3)
        patch.setattr(intervention, "DRAWS", 6)
        return {
            model: diagnose(model, out=out / model, n=150, seed=5).summary["levels"]
            for model in ("scenes", "scenes-balanced")
        }


def test_nothing_is_found_where_nothing_was_planted(levels):
    assert [entry["found"] for entry in levels["scenes-balanced"].values()] == [False] * 3


def test_the_flaw_is_found_in_heads_that_the_plant_moved(levels):
    moved = moved_heads(WEIGHTS / "stages" / "spatial", WEIGHTS / "scenes")
    assert 0 < len(moved) <= 6
    for level, entry in levels["scenes"].items():
        first = entry["heads"][0]
        assert entry["found"], level
        assert (first["layer"], first["head"]) in moved, level


def test_acting_on_a_tenth_of_the_heads_at_most_mends_the_object_level(levels):
    acted = levels["scenes"]["object"]["intervention"]
    assert len(acted["heads"]) <= 3
    assert acted["after"]["high"] < acted["before"]["low"] / 2
    assert acted["after"]["estimate"] < min(acted["random"]["draws"])
    assert acted["side_effect"]["low"] <= 0.02
