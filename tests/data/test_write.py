"""Pairs that were written are the same when they are read again."""

import json

import numpy as np
import pytest

import lvlm_interp as li
from lvlm_interp.errors import DataError


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return [
        {
            "id": str(i),
            "image": rng.integers(0, 255, (30, 40, 3), np.uint8),
            "prompt": "is there a caf\u00e9 ?",
            "answer": "yes",
            "level": "object",
            "boxes": {"object": [2, 3, 20, 21], "lure": [22, 1, 38, 12]},
        }
        for i in range(4)
    ]


def pixels(example):
    return [np.asarray(image).tobytes() for image in example.open_images()]


@pytest.mark.parametrize("corrupt", ["mask", "noise", "image"])
def test_written_pairs_are_read_again(rows, tmp_path, corrupt):
    pairs = li.build_pairs(rows, corrupt)
    path = li.write_pairs(iter(pairs), tmp_path / "out")
    again = li.load_pairs(path)
    for old, new in zip(pairs, again, strict=True):
        for name in ("id", "answer", "foil", "level", "kind", "group", "edit", "box", "labels"):
            assert getattr(old, name) == getattr(new, name)
        for side in ("clean", "corrupt"):
            first, second = getattr(old, side), getattr(new, side)
            assert pixels(first) == pixels(second) and first.prompt == second.prompt
            assert first.boxes == second.boxes and first.reply == second.reply
    assert len(list((tmp_path / "out" / "images").iterdir())) <= 8
    with pytest.raises(DataError, match="is there already"):
        li.write_pairs(pairs, tmp_path / "out")


def test_generated_pairs_and_several_images_are_written(tmp_path):
    pairs = li.scenes.pairs("relation", 3, seed=0)
    again = li.load_pairs(li.write_pairs(pairs, tmp_path))
    assert [pixels(pair.corrupt) for pair in again] == [pixels(pair.corrupt) for pair in pairs]
    assert [pair.labels for pair in again] == [
        json.loads(json.dumps(dict(pair.labels))) for pair in pairs
    ]


def test_a_trigger_pair_takes_away_what_misleads_and_keeps_the_truth(rows):
    for pair in li.build_pairs(rows, "mask", kind="trigger", box="lure"):
        assert (pair.kind, pair.box) == ("trigger", (22, 1, 38, 12))
        assert pair.clean.answer == pair.corrupt.answer == pair.answer == "yes"
        assert pair.corrupt.labels["trigger"] and not pair.clean.labels.get("trigger")
        first, second = (np.asarray(side.open_image()) for side in (pair.clean, pair.corrupt))
        assert (first[1:12, 22:38] == 0).all() and (first != second).any()
        np.testing.assert_array_equal(first[12:], second[12:])
    with pytest.raises(DataError, match="expected one of evidence, trigger"):
        li.build_pairs(rows, "mask", kind="other")
