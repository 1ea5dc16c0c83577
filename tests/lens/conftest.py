"""A small LLaVA with random weights large enough that layers differ, and its processor."""

import pytest
import torch
from PIL import Image, ImageDraw

from lvlm_interp.data.examples import Example
from lvlm_interp.models.loading import wrap
from lvlm_interp.organisms.architecture import Sizes, build_model, build_processor


def random_model(seed=0, **sizes):
    hf = build_model(Sizes(**sizes), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 2.0 * parameter.shape[-1] ** -0.5)
    return wrap(hf.eval(), build_processor())


@pytest.fixture(scope="session")
def model():
    return random_model()


def picture(seed=0):
    image = Image.new("RGB", (48, 48), (240, 240, 240))
    draw = ImageDraw.Draw(image)
    left = 4 + 7 * (seed % 4)
    draw.rectangle((left, 6, left + 12, 18), fill=(200, 30, 30))
    draw.ellipse((26, 28, 40, 42), fill=(30, 30, 200))
    return image


@pytest.fixture(scope="session")
def examples():
    prompts = ["is there a ring ?", "what color is the circle ?", "where is the square ?"]
    return [
        Example(
            id=f"e{i}",
            image=picture(i),
            prompt=prompt,
            boxes={"object": (4, 6, 17, 19)},
            group=f"s{i}",
        )
        for i, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="session")
def inputs(model, examples):
    return model.prepare(examples)
