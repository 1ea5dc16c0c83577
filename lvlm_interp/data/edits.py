"""Edits of an image that make a row's other side, computed when the image is opened.

A data set of edited images is as small as its originals are: what is kept is the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from lvlm_interp.data.examples import Box
from lvlm_interp.models.inputs.images import ImageSource, open_image

__all__ = ["Edit", "EditedImage"]

Edit = Literal["mask", "blur", "mean", "exchange", "noise"]


@dataclass(frozen=True)
class EditedImage:
    """An image with one edit.

    Attributes:
        source: The original.
        edit: `mask` (black), `blur`, `mean` (the image's mean colour) or `exchange` (what stands
            there in the donor) inside the box; `noise` on the whole image.
        box: Where.
        donor: Of `exchange`; of the same size.
        noise: Standard deviation, in units of the full range of a pixel.
        seed: Of the noise.
    """

    source: ImageSource
    edit: Edit
    box: Box | None = None
    donor: ImageSource | None = None
    noise: float = 0.0
    seed: tuple[int, ...] = (0,)

    def open_image(self) -> Image.Image:
        """The edited image, the same at every call."""
        image = open_image(self.source)
        if self.edit == "noise":
            rng = np.random.default_rng(self.seed)
            pixels = np.asarray(image, float)
            pixels = pixels + rng.normal(0, 255 * self.noise, pixels.shape)
            return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        assert self.box is not None
        if self.edit == "exchange":
            assert self.donor is not None
            image.paste(open_image(self.donor).crop(self.box), self.box[:2])
        elif self.edit == "blur":
            left, top, right, bottom = self.box
            blurred = image.filter(ImageFilter.GaussianBlur(max(right - left, bottom - top) / 4))
            image.paste(blurred.crop(self.box), self.box[:2])
        else:
            mean = np.asarray(image, float).reshape(-1, 3).mean(0)
            color = (0, 0, 0) if self.edit == "mask" else tuple(int(c) for c in mean)
            image.paste(color, self.box)
        return image
