"""TokenMap: positions by kind, cell, box and word, whatever the padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm_interp.errors import InputError
from lvlm_interp.models.families.geometry import (
    Placement,
    grid_layout,
    joined,
    tiled_layout,
    tokens_without_place,
)
from lvlm_interp.tokens import ImageLayout, TokenMap
from tests.models.processors import tokenizer

IMAGE = 4
PAD = 0
WORDS = tokenizer("<image>")


def layout(rows: int, cols: int, size: tuple[int, int] = (60, 40)) -> ImageLayout:
    return grid_layout(rows, cols, size, Placement(), size)


def build(
    layouts: list[ImageLayout], before: int = 2, after: int = 3, left: int = 0, right: int = 0
) -> TokenMap:
    slots = sum(len(each) for each in layouts)
    ids = np.array([PAD] * left + [9] * before + [IMAGE] * slots + [8] * after + [PAD] * right)
    mask = np.array([0] * left + [1] * (before + slots + after) + [0] * right)
    return TokenMap.build(ids, image_token=IMAGE, layouts=layouts, attention_mask=mask)


sizes = st.integers(1, 5)
pads = st.integers(0, 4)


@given(sizes, sizes, pads, pads)
def test_every_position_has_one_kind(rows: int, cols: int, left: int, right: int) -> None:
    tokens = build([layout(rows, cols)], left=left, right=right)
    assert len(tokens.image) == rows * cols and len(tokens.text()) == 5
    assert len(tokens.real) == len(tokens) - left - right
    parts = [tokens.image, tokens.text(), tokens.special, np.flatnonzero(tokens.kind == "pad")]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(tokens)))
    assert tokens.last == len(tokens) - right - 1


@given(sizes, sizes, pads)
def test_values_laid_on_the_grid_come_back_where_they_were(rows: int, cols: int, left: int) -> None:
    tokens = build([layout(rows, cols)], left=left)
    values = np.arange(len(tokens), dtype=float)
    grid = tokens.to_grid(values)
    assert grid.shape == (rows, cols)
    np.testing.assert_array_equal(grid, tokens.grid())
    np.testing.assert_array_equal(np.sort(grid.ravel()), tokens.image)


boxes = st.tuples(st.floats(0, 59), st.floats(0, 39), st.floats(0.1, 60), st.floats(0.1, 40))


@given(sizes, sizes, boxes)
def test_within_is_the_overlap_of_rectangles(rows: int, cols: int, box: Any) -> None:
    tokens = build([layout(rows, cols)])
    left, top, width, height = box
    asked = (left, top, left + width, top + height)
    found = set(tokens.within(asked).tolist())
    for position in tokens.image.tolist():
        own = tokens.box[position]
        overlap_x = min(own[2], asked[2]) - max(own[0], asked[0])
        overlap_y = min(own[3], asked[3]) - max(own[1], asked[1])
        assert (position in found) == (overlap_x > 0 and overlap_y > 0)


@given(sizes, sizes)
def test_boxes_tile_the_image_without_gap_or_overlap(rows: int, cols: int) -> None:
    box = layout(rows, cols).box
    areas = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    assert areas.sum() == pytest.approx(60 * 40)
    tiles = joined(tiled_layout((cols, rows), (2, 2), (10, 10), (60, 40)))
    areas = (tiles.box[:, 2] - tiles.box[:, 0]) * (tiles.box[:, 3] - tiles.box[:, 1])
    assert areas.sum() == pytest.approx(60 * 40) and (areas > 0).all()


@given(st.floats(0.5, 4), st.floats(0.5, 4), st.floats(-20, 20), st.floats(-20, 20))
def test_a_placement_is_undone(sx: float, sy: float, ox: float, oy: float) -> None:
    place = Placement(sx, sy, ox, oy)
    box = np.array([[5.0, 6.0, 20.0, 30.0]])
    canvas = box * [sx, sy, sx, sy] + [ox, oy, ox, oy]
    np.testing.assert_allclose(place.to_image(canvas, (60, 40)), box)
    inside = place.to_image(canvas * 100, (60, 40))
    assert (inside >= 0).all() and (inside <= [60, 40, 60, 40]).all()


def test_roles_divide_the_image() -> None:
    tokens = build([layout(4, 6)])
    named = {"object": (0, 0, 10, 10), "other_object": (50, 30, 60, 40)}
    own = tokens.positions("object", named)
    assert len(own) == 1
    rest = tokens.positions("other_image", named)
    np.testing.assert_array_equal(np.sort(np.concatenate([own, rest])), tokens.image)
    assert set(tokens.positions("background", named)) == set(rest) - set(
        tokens.positions("other_object", named)
    )
    with pytest.raises(InputError, match="needs a box of that name"):
        tokens.positions("object", {})
    with pytest.raises(InputError, match="Unknown position role 'subject'"):
        tokens.positions("subject")


def test_several_images_and_none() -> None:
    tokens = build([layout(1, 2), layout(2, 2)])
    assert tokens.n_images == 2
    assert tokens.grid(image=1).shape == (2, 2)
    assert set(tokens.within((0, 0, 60, 40), image=0)).isdisjoint(
        tokens.within((0, 0, 60, 40), image=1)
    )
    none = build([])
    assert none.n_images == 0 and len(none.image) == 0
    with pytest.raises(InputError, match="no such image"):
        none.within((0, 0, 1, 1))


def test_a_count_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"holds 3 image placeholders.*give 4 tokens"):
        TokenMap.build(
            np.array([9, IMAGE, IMAGE, IMAGE]), image_token=IMAGE, layouts=[layout(2, 2)]
        )


def test_separators_and_queries_have_no_place() -> None:
    mixed = joined([layout(1, 2), tokens_without_place(1, "separator", "")])
    tokens = build([mixed])
    assert len(tokens.image) == 2 and (tokens.kind == "separator").sum() == 1
    queries = build([tokens_without_place(3, "query", "they stand for the whole image")])
    assert len(queries.image) == 3
    with pytest.raises(InputError, match="stand for the whole image"):
        queries.within((0, 0, 1, 1))


letters = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)


@settings(max_examples=60)
@given(st.lists(letters, min_size=1, max_size=6), st.integers(0, 5), pads, pads)
def test_a_word_is_found_with_all_its_pieces_and_each_time(
    words: list[str], pick: int, left: int, right: int
) -> None:
    word = words[pick % len(words)]
    own = WORDS(" ".join(words), add_special_tokens=False).input_ids
    ids = np.array([PAD] * left + own + [PAD] * right)
    mask = np.array([0] * left + [1] * len(own) + [0] * right)
    tokens = TokenMap.build(
        ids, image_token=IMAGE, layouts=[], attention_mask=mask, tokenizer=WORDS
    )
    times = words.count(word)
    for index in range(times):
        found = tokens.text(word, occurrence=index)
        assert WORDS.decode(ids[found].tolist()).strip() == word
    with pytest.raises(InputError, match=f"occurs {times} time"):
        tokens.text(word, occurrence=times)
    together = np.concatenate([tokens.text(word, occurrence=i) for i in range(times)])
    np.testing.assert_array_equal(tokens.text(word), np.unique(together))


def test_a_word_inside_another_is_not_that_word() -> None:
    ids = np.array(WORDS("the cats are red", add_special_tokens=False).input_ids)
    tokens = TokenMap.build(ids, image_token=IMAGE, layouts=[], tokenizer=WORDS)
    with pytest.raises(InputError, match="'cat' is not in the prompt"):
        tokens.text("cat")
    assert WORDS.decode(ids[tokens.text("CATS")].tolist()).strip() == "cats"
    with pytest.raises(InputError, match="need a tokenizer"):
        TokenMap.build(ids, image_token=IMAGE, layouts=[]).text("cats")
