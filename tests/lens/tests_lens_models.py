"""Small LLaVAs with random weights large enough that layers differ, and pictures for them."""

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


def picture(seed=0):
    image = Image.new("RGB", (48, 48), (240, 240, 240))
    draw = ImageDraw.Draw(image)
    left = 4 + 7 * (seed % 4)
    draw.rectangle((left, 6, left + 12, 18), fill=(200, 30, 30))
    draw.ellipse((26, 28, 40, 42), fill=(30, 30, 200))
    return image


def scenes(n, first=0, answers=True):
    """Examples with one square on a 3 x 3 layout and its cell as the box `object`."""
    made = []
    for index in range(first, first + n):
        row, col = divmod(index * 5 % 9, 3)
        image = Image.new("RGB", (48, 48), (240, 240, 240))
        colour = (40 + 37 * index % 200, 30, 255 - 51 * index % 200)
        image.paste(colour, (16 * col + 2, 16 * row + 2, 16 * col + 14, 16 * row + 14))
        given = {"answer": "yes", "foil": "no"} if answers else {}
        made.append(
            Example(
                id=f"s{index}",
                image=image,
                prompt=("is there a ring ?", "what color is the square ?")[index % 2],
                group=f"g{index}",
                boxes={"object": (16 * col, 16 * row, 16 * col + 16, 16 * row + 16)},
                **given,
            )
        )
    return made
