"""Pairs from rows in the manner of POPE: every edit touches its box and nothing else."""

import numpy as np
import pytest
from PIL import Image

from lvlm_interp.data.build_pairs import answers_changed, build_pairs
from lvlm_interp.errors import DataError
from lvlm_interp.models.loading import wrap
from tests.models import processors, zoo

BOX = (4, 6, 14, 18)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    found = []
    for i in range(3):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
        text = "is there a dog left of the cat ?"
        row = {"question_id": i, "image": str(path), "text": text, "label": "yes"}
        found.append({**row, "box": list(BOX)})
    return found


def changed(pair):
    first, second = (np.asarray(side.open_image(), int) for side in (pair.clean, pair.corrupt))
    return np.abs(first - second).sum(-1) > 0


@pytest.mark.parametrize("corrupt", ["mask", "blur", "mean", "exchange"])
def test_an_edit_of_the_box_changes_the_box_alone(rows, corrupt):
    for pair in build_pairs(rows, corrupt):
        outside = changed(pair)
        left, top, right, bottom = BOX
        assert outside[top:bottom, left:right].mean() > 0.9
        outside[top:bottom, left:right] = False
        assert not outside.any()
        assert (pair.answer, pair.foil, pair.box) == ("yes", "no", BOX)
        assert pair.labels == {"made": corrupt, "corruption": "image", "control": False}


def test_the_control_edits_as_much_elsewhere(rows):
    for pair in build_pairs(rows, "mask", control=True):
        spot = changed(pair)
        left, top, right, bottom = BOX
        assert not spot[top:bottom, left:right].any()
        a, b, c, d = pair.box
        assert (c - a, d - b) == (right - left, bottom - top) and pair.labels["control"]


def test_words_are_exchanged_both_ways(rows):
    pair = build_pairs(rows, "prompt", words={"dog": "cat"})[0]
    assert pair.corrupt.prompt == "is there a cat left of the dog ?"
    assert pair.labels["corruption"] == "prompt" and not changed(pair).any()


def test_images_are_swapped_and_noise_is_seeded(rows):
    swapped = build_pairs(rows, "image")
    np.testing.assert_array_equal(
        np.asarray(swapped[0].corrupt.open_image()), np.asarray(swapped[1].clean.open_image())
    )
    first, again, other = (
        np.asarray(build_pairs(rows, "noise", seed=seed)[0].corrupt.open_image())
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_table_says_how_often_the_answer_changed(rows):
    model = wrap(zoo.build("llava"), processors.build("llava"))
    pairs = build_pairs(rows, "image")
    table = answers_changed(model, pairs)
    for pair in pairs:
        sides = (pair.clean, pair.corrupt)
        tokens = [int(model.last_logits(model.prepare(side)).argmax()) for side in sides]
        value = table.select(pair=pair.id, metric="answer changed").frame.value.item()
        assert value == float(tokens[0] != tokens[1])


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"box": None}, {}, "Row '0': expected a box named 'object'"),
        ({"label": None}, {}, "Row '0': expected an answer"),
        ({"label": "red"}, {}, "Row '0': expected a foil"),
        ({"box": [9, 9, 3, 3]}, {}, "Row '0'.*left < right"),
        ({}, {"corrupt": "prompt"}, "which words"),
        ({}, {"corrupt": "prompt", "words": {"ring": "star"}}, "none of the words"),
        ({}, {"corrupt": "noise", "control": True}, "for the edits of a box"),
        ({"box": [0, 0, 40, 40]}, {"control": True}, "too large"),
    ],
)
def test_bad_rows_are_named(rows, change, options, message):
    with pytest.raises(DataError, match=message):
        build_pairs([{**rows[0], **change}], **options)


def test_ids_that_occur_twice_are_refused(rows):
    named = [{**row, "id": "x"} for row in rows[:2]]
    with pytest.raises(DataError, match=r"Rows 0 and 1 \(from 0\) have the same id 'x'"):
        build_pairs(named)
