"""Scenes: exact masks and boxes, one split per content, uniform draws."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lvlm_interp.organisms.scenes import (
    BACKGROUNDS,
    CELL,
    IMAGE_SIZE,
    Scene,
    SceneObject,
    cell_box,
    random_scene,
    related_pairs,
    relation,
)
from lvlm_interp.organisms.vocabulary import COLORS, SHAPES, SIZES


def _scenes(n: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(n)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_masks_are_the_pixels_that_the_object_changes(shape, size):
    for background in BACKGROUNDS:
        for dx in (-1, 0, 1):
            scene = Scene((SceneObject(shape, "red", size, 1, 2, dx, -dx),), background)
            painted = (scene.pixels() != np.array(BACKGROUNDS[background], np.uint8)).any(-1)
            assert (painted == scene.mask(0)).all()
            left, top, right, bottom = scene.box(0)
            inside = np.zeros_like(painted)
            inside[top:bottom, left:right] = True
            assert not painted[~inside].any()
            rows, cols = painted.any(1), painted.any(0)
            assert rows[top] and rows[bottom - 1] and cols[left] and cols[right - 1]
            cell_left, cell_top, cell_right, cell_bottom = scene.cell_box(0)
            assert cell_left <= left < right <= cell_right
            assert cell_top <= top < bottom <= cell_bottom


def test_the_middle_of_a_shape_has_its_colour_but_for_the_ring():
    for shape in SHAPES:
        scene = Scene((SceneObject(shape, "red", "large", 0, 0),), "light")
        is_red = tuple(scene.pixels()[8, 8]) == (220, 45, 45)
        assert is_red == (shape != "ring")


def test_shapes_look_different():
    seen = {
        Scene((SceneObject(s, "red", z, 0, 0),)).mask(0).tobytes() for s in SHAPES for z in SIZES
    }
    assert len(seen) == len(SHAPES) * len(SIZES)


def test_render_is_48_by_48_rgb():
    image = _scenes(1)[0].render()
    assert image.size == (IMAGE_SIZE, IMAGE_SIZE) and image.mode == "RGB"
    assert cell_box(5) == (2 * CELL, CELL, 3 * CELL, 2 * CELL)


def test_the_key_names_the_content_whatever_the_order_of_objects():
    first, second = (
        SceneObject("ring", "red", "small", 2, 2),
        SceneObject("star", "blue", "small", 0, 1),
    )
    assert Scene((first, second)).key == Scene((second, first)).key
    assert Scene((first, second)).key != Scene((replace(first, dx=1), second)).key
    assert Scene((first,), "dark").key != Scene((first,), "light").key


def test_no_seed_puts_a_scene_in_both_splits():
    split_of: dict[bytes, str] = {}
    for seed in range(3):
        for scene in _scenes(400, seed):
            image = scene.pixels().tobytes()
            assert split_of.setdefault(image, scene.split) == scene.split
    share = sum(split == "eval" for split in split_of.values()) / len(split_of)
    assert 0.07 < share < 0.13


def test_shapes_colours_and_cells_differ_within_a_scene():
    for scene in _scenes(150):
        for what in ("shape", "color", "cell"):
            values = [getattr(thing, what) for thing in scene.objects]
            assert len(set(values)) == len(values)
    with pytest.raises(ValueError, match="each color may appear once"):
        Scene(
            (SceneObject("ring", "red", "small", 0, 0), SceneObject("star", "red", "small", 1, 1))
        )


@pytest.mark.parametrize(("what", "n"), [("shape", 8), ("color", 6), ("cell", 9), ("size", 2)])
def test_draws_are_uniform(what, n):
    counts = Counter(getattr(thing, what) for scene in _scenes(1200) for thing in scene.objects)
    total = sum(counts.values())
    assert len(counts) == n
    assert all(abs(count / total * n - 1) < 0.2 for count in counts.values())
    assert set(COLORS) >= set(counts) or what != "color"


def test_relations_are_those_of_one_row_or_column():
    at = [SceneObject("ring", "red", "small", row, col) for row in range(3) for col in range(3)]
    assert relation(at[0], at[2]) == "left" and relation(at[2], at[0]) == "right"
    assert relation(at[1], at[7]) == "above" and relation(at[7], at[1]) == "below"
    assert relation(at[0], at[4]) is None and relation(at[3], at[3]) is None
    for scene in _scenes(100):
        for first, second, where in related_pairs(scene):
            assert relation(first, second) == where
