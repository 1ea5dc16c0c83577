"""Where a role is in each tower, proved by which positions move with the pixels of a box."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.errors import InputError
from lvlm_interp.models.inputs.positions import tower_positions
from lvlm_interp.patching.batches import batches
from tests.models import zoo
from tests.models.test_rows import FAST, NAMES, model_of, picture
from tests.models.test_token_maps import changed

PLACED = [name for name in NAMES if name not in ("mllama", "blip_2", "instructblip")]
QUESTION = "is it ?"
TOWERS = {"vision.0.resid_pre": "vision", "projector.out": "projector"}

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def moved(model: Any, before: Any, after: Any, site: str) -> np.ndarray:
    """Positions of a site that change, when attention moves nothing between patches."""
    with model.edit({"vision.*.attn_out": torch.zeros_like}):
        one, other = (model.run_with_cache(each, site)[1][site][0] for each in (before, after))
    return np.flatnonzero((one - other).abs().amax(-1).numpy() > 0)


@pytest.mark.parametrize("size", [(24, 24), (48, 24), (48, 48)], ids=str)
@pytest.mark.parametrize("name", zoo.tiered(PLACED, FAST))
def test_a_box_is_the_patches_behind_its_tokens(name: str, size: tuple[int, int]) -> None:
    """In either image of a row: all patches of every token of which a patch moves."""
    model = model_of(name)
    first, second = picture(*size), picture(24, 48, seed=5)
    box = (size[0] // 2 - 6, 0, size[0] // 2 + 6, 12)
    other = changed(first, box)
    rows = [([first, second], [other, second]), ([second, first], [second, other])]
    for index, sides in enumerate(rows):
        before, after = (model.prepare([(images, QUESTION)]) for images in sides)
        tokens = before.tokens[0]
        for site, tower in TOWERS.items():
            found = tower_positions(tokens, tower, "object", {"object": (*box, index)})
            at = moved(model, before, after, site)
            behind = tokens.towers[tower]
            whole = behind[np.isin(behind, at).any(-1)]
            np.testing.assert_array_equal(np.unique(whole[whole >= 0]), found)
            assert set(at) <= set(found)


@pytest.mark.parametrize("name", zoo.tiered(NAMES, FAST))
def test_the_whole_image_is_what_its_pixels_move(name: str) -> None:
    model = model_of(name)
    images = [picture(48, 24), picture(24, 24, 1)][: 1 if "blip" in name else 2]
    others = [changed(image, (0, 0, *image.size)) for image in images]
    before, after = (model.prepare([(side, QUESTION)]) for side in (images, others))
    tokens = before.tokens[0]
    at = moved(model, before, after, "vision.0.resid_pre")
    found = tower_positions(tokens, "vision", "image_all")
    # LLaVA-NeXT drops patches that hold nothing but padding of the canvas.
    inner, outer = (found, at) if name == "llava_next" else (at, found)
    assert set(inner) <= set(outer)
    n = model.run_with_cache(before, "vision.0.resid_pre")[1]["vision.0.resid_pre"].shape[1]
    assert tokens.lengths["vision"] == n == len(before.real(0, "vision", n))
    assert before.n_positions("vision") == n
    every = tower_positions(tokens, "vision", "all", real=before.real(0, "vision", n))
    np.testing.assert_array_equal(every, np.arange(n))
    assert tower_positions(tokens, "vision", "-1", real=every).tolist() == [n - 1]
    with pytest.raises(InputError, match=f"this row has {n}"):
        tower_positions(tokens, "vision", str(n), real=every)
    with pytest.raises(InputError, match="no patch in the vision"):
        tower_positions(tokens, "vision", "last")


def test_a_box_must_say_its_image_where_there_are_several() -> None:
    tokens = model_of("llava").prepare([([picture(), picture(seed=1)], QUESTION)]).tokens[0]
    with pytest.raises(InputError, match="2 images"):
        tokens.within((0, 0, 6, 6))
    first, second = tokens.within((0, 0, 6, 6, 0)), tokens.within((0, 0, 6, 6, 1))
    assert first.tolist() == [tokens.image[0]] and second.tolist() == [tokens.image[16]]
    np.testing.assert_array_equal(tokens.positions("object", {"object": (0, 0, 6, 6, 1)}), second)


def pair_of(clean: Any, corrupt: Any, box: Any = None) -> ContrastPair:
    sides = [Example(side, image, QUESTION) for side, image in (("a", clean), ("b", corrupt))]
    return ContrastPair("p", *sides, "yes", "no", "object", "evidence", "x", box, "g")


def prepared(name: str, pair: ContrastPair) -> Any:
    model = model_of(name)
    model.answer_id = {"yes": 300, "no": 301}.__getitem__
    return next(batches(model, [pair], 1))


@pytest.mark.parametrize("index", [0, 1])
def test_what_was_edited_is_looked_for_in_the_image_that_differs(index: int) -> None:
    images = [picture(), picture(seed=1)]
    others = list(images)
    others[index] = changed(images[index], (0, 0, 6, 6))
    batch = prepared("llava", pair_of(images, others, (0, 0, 6, 6)))
    assert batch.positions(0, "edited", "vision", 34).tolist() == [1 + 17 * index]
    said = replace(batch.pairs[0], box=(0, 0, 6, 6, 1 - index))
    assert prepared("llava", said).positions(0, "edited", "vision", 34).tolist() == [
        18 - 17 * index
    ]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_images_cut_into_other_grids_are_no_pair(name: str) -> None:
    wide, tall = picture(48, 24), picture(24, 48)
    with pytest.raises(InputError, match="other grids"):
        prepared(name, pair_of(wide, tall))
    assert len(prepared(name, pair_of(wide, picture(48, 24, seed=1)))) == 1
