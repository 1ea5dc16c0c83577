"""LLaVA as trained pads to a square: boxes say where the pixels of each token come from."""

import numpy as np
import pytest
import transformers as hf
from PIL import Image

import lvlm_interp as li
from tests.models import processors, zoo


@pytest.fixture(scope="module")
def model():
    processor = processors.BUILDERS["llava"]()
    side = {"height": 24, "width": 24}
    processor.image_processor = hf.LlavaImageProcessorPil(
        size={"shortest_edge": 24}, crop_size=side, resample=0, do_pad=True
    )
    return li.wrap(zoo.build("llava"), processor)


def noise(width, height):
    values = np.random.default_rng(0).integers(0, 100, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def test_the_padding_has_no_place_in_the_image(model):
    tokens = model.prepare([(noise(48, 24), "is there a dog ?")]).tokens[0]
    first = tokens.image[0]
    assert (tokens.within((0, 0, 12, 24)) - first).tolist() == [4, 8]
    assert (tokens.within((36, 0, 48, 24)) - first).tolist() == [7, 11]
    without = np.isnan(tokens.box[tokens.image]).all(1)
    assert without.tolist() == [True] * 4 + [False] * 8 + [True] * 4


@pytest.mark.parametrize("size", [(48, 24), (24, 48), (24, 24), (40, 30), (50, 20)])
def test_a_change_of_pixels_moves_the_tokens_whose_boxes_it_meets(model, size):
    plain = noise(*size)
    before = model.prepare([(plain, "is there a dog ?")])
    tokens, rng = before.tokens[0], np.random.default_rng(1)
    for _ in range(12):
        left, top = int(rng.integers(size[0] - 6)), int(rng.integers(size[1] - 6))
        box = (left, top, left + 6, top + 6)
        changed = plain.copy()
        changed.paste((255, 255, 255), box)
        after = model.prepare([(changed, "is there a dog ?")])
        moved = (before["pixel_values"] != after["pixel_values"])[0].any(0)
        patches = moved.unfold(0, 6, 6).unfold(1, 6, 6).flatten(2).any(-1).flatten()
        found = set(tokens.image[patches.numpy()])
        assert found and found <= set(tokens.within(box))
