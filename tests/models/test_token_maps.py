"""TokenMap is proved by perturbation: which tokens change when pixels of a box change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_interp.errors import InputError
from lvlm_interp.models.loading import wrap
from tests.models import processors, zoo

WITH_GRID = [name for name in zoo.BUILDERS if name not in ("mllama", "blip_2", "instructblip")]
ANYRES = ("llava_next", "qwen2_5_vl", "internvl")
"""Tiles with newline columns, window order, and tiles with pixel shuffle."""
WITHOUT_GRID = ["mllama", "blip_2", "instructblip"]
SIZES = [(48, 48), (48, 24), (24, 48)]
QUESTION = "is there a dog in the image? a red dog is there"

# PaliGemma builds labels from tensors in a way that numpy is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

_models: dict[str, Any] = {}


def model_of(name: str) -> Any:
    if name not in _models:
        _models[name] = wrap(zoo.build(name), processors.build(name))
    return _models[name]


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(60, 200, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def changed(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    pixels = np.array(image)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = 255 - pixels[top:bottom, left:right]
    return Image.fromarray(pixels)


def merged(model: Any, image: Image.Image) -> torch.Tensor:
    """Embeddings of the prompt when no attention of the tower moves anything between patches."""
    inputs = model.prepare([(image, QUESTION)])
    with model.edit({"vision.*.attn_out": torch.zeros_like}):
        return model.run_with_cache(inputs, "text.embed")[1]["text.embed"][0]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", zoo.tiered(WITH_GRID, ANYRES))
def test_exactly_the_tokens_of_a_box_change_with_its_pixels(name: str, size: Any) -> None:
    model = model_of(name)
    image = picture(size)
    tokens = model.prepare([(image, QUESTION)]).tokens[0]
    before = merged(model, image)
    width, height = size
    boxes = [
        (0, 0, 6, 6),
        (width - 6, height - 6, width, height),
        (width // 2 - 4, height // 2 - 4, width // 2 + 4, height // 2 + 4),
        (width // 4 + 1, height // 2 + 1, width // 4 + 3, height // 2 + 3),
    ]
    for box in boxes:
        moved = (merged(model, changed(image, box)) - before).abs().amax(-1).numpy() > 0
        expected = tokens.within(box)
        assert len(expected) > 0
        np.testing.assert_array_equal(np.flatnonzero(moved), expected)


@pytest.mark.parametrize("name", zoo.tiered(WITH_GRID, ANYRES))
def test_the_grid_covers_every_image_token_once(name: str) -> None:
    tokens = model_of(name).prepare([(picture((48, 48)), QUESTION)]).tokens[0]
    tiles = [int(tile) for tile in np.unique(tokens.tile[tokens.image])]
    cells = np.concatenate([tokens.grid(tile=tile).ravel() for tile in tiles])
    np.testing.assert_array_equal(np.sort(cells[cells >= 0]), tokens.image)
    for tile in tiles:
        box = tokens.box[tokens.grid(tile=tile)]
        assert (np.diff(box[..., 0], axis=1) > 0).all() and (np.diff(box[..., 1], axis=0) > 0).all()


@pytest.mark.parametrize("name", WITHOUT_GRID)
def test_without_a_grid_the_map_says_what_holds(name: str) -> None:
    tokens = model_of(name).prepare([(picture((24, 24)), QUESTION)]).tokens[0]
    assert tokens.notes and "cross_pattern" in tokens.notes[0]
    with pytest.raises(InputError, match=r"cross_pattern"):
        tokens.within((0, 0, 6, 6))
    with pytest.raises(InputError, match=r"no token grid"):
        tokens.grid()


@pytest.mark.parametrize("name", zoo.tiered(zoo.BUILDERS))
@pytest.mark.parametrize("side", ["left", "right"])
def test_words_are_found_in_every_row(name: str, side: str) -> None:
    model = model_of(name)
    rows = [(picture((48, 48)), QUESTION), (picture((24, 24), 1), "the dog")]
    inputs = model.prepare(rows, padding_side=side)
    decode = model.tokenizer.decode
    for tokens, times in zip(inputs.tokens, (2, 1), strict=True):
        for index in range(times):
            found = tokens.text("dog", occurrence=index)
            assert decode(tokens.ids[found]).strip() == "dog"
        with pytest.raises(InputError, match=f"occurs {times} time"):
            tokens.text("dog", occurrence=times)
        with pytest.raises(InputError, match="not in the prompt"):
            tokens.text("zebra")
        assert (tokens.kind[: tokens.last + 1] != "pad")[tokens.real[0] :].any()
    pads = inputs.tokens[1].kind == "pad"
    np.testing.assert_array_equal(pads, inputs["attention_mask"][1].numpy() == 0)


def test_a_word_of_several_pieces_is_found_whole() -> None:
    model = model_of("llava")
    tokens = model.prepare([(picture((24, 24)), "is a zebra there?")]).tokens[0]
    found = tokens.text("zebra")
    assert len(found) > 1
    assert model.tokenizer.decode(tokens.ids[found]).strip() == "zebra"


SEVERAL = ["llava", "llava_next", "llava_onevision", "qwen2_5_vl", "idefics3", "internvl", "gemma3"]


@pytest.mark.parametrize("name", zoo.tiered(SEVERAL, ANYRES))
def test_two_images_of_a_row_keep_their_places(name: str) -> None:
    model = model_of(name)
    first, second = picture((48, 24)), picture((24, 24), 1)

    def embeds(a: Image.Image, b: Image.Image) -> torch.Tensor:
        inputs = model.prepare([([a, b], QUESTION)])
        with model.edit({"vision.*.attn_out": torch.zeros_like}):
            return model.run_with_cache(inputs, "text.embed")[1]["text.embed"][0]

    tokens = model.prepare([([first, second], QUESTION)]).tokens[0]
    assert tokens.n_images == 2
    before, box = embeds(first, second), (0, 0, 6, 6)
    for index, pair in enumerate([(changed(first, box), second), (first, changed(second, box))]):
        moved = (embeds(*pair) - before).abs().amax(-1).numpy() > 0
        np.testing.assert_array_equal(np.flatnonzero(moved), tokens.within(box, image=index))


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "mllama", "idefics3"])
def test_a_row_without_an_image_has_no_image_tokens(name: str) -> None:
    tokens = model_of(name).prepare([(None, QUESTION)]).tokens[0]
    assert len(tokens.image) == 0 and tokens.n_images == 0
    assert model_of(name)(model_of(name).prepare([(None, QUESTION)])).shape[1] == len(tokens)
