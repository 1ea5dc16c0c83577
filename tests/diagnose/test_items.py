from collections import Counter

import pytest

from lvlm_interp.diagnose.items import ACT, AGREEING, RANK, TRIGGERED, halves_of, items_of
from lvlm_interp.organisms.pairs import pairs

LEVELS = ("object", "attribute", "relation")


@pytest.fixture(scope="module", params=LEVELS)
def made(request):
    return request.param, pairs(request.param, 40, 3)


def test_the_truth_of_an_item_is_the_truth_of_its_scene(made):
    _, rows = made
    for item in items_of(rows, 0):
        assert item.truth == item.example.labels["truth"]
        assert item.truth != item.foil


def test_where_the_flaw_shows_the_foil_is_what_it_says(made):
    level, rows = made
    shown = [item for item in items_of(rows, 0) if item.condition == TRIGGERED]
    agreeing = [item for item in items_of(rows, 0) if item.condition == AGREEING]
    assert shown and agreeing
    assert all(item.foil == item.example.labels["planted"] for item in shown), level
    assert all(item.truth == item.example.labels["planted"] for item in agreeing), level


def test_no_scene_is_in_both_halves_and_each_kind_is_split_evenly(made):
    _, rows = made
    items = items_of(rows, 0)
    halves = {(item.group, item.half) for item in items}
    assert len(halves) == len({group for group, _ in halves})
    counts = Counter((item.source, item.condition, item.half) for item in items)
    for source, condition, half in list(counts):
        other = RANK if half == ACT else ACT
        assert abs(counts[source, condition, half] - counts[source, condition, other]) <= 2


def test_halves_follow_from_the_seed(made):
    _, rows = made
    assert halves_of(rows, 0) == halves_of(rows, 0)
    assert halves_of(rows, 0) != halves_of(rows, 1)
