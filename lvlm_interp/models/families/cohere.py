"""Aya Vision and Command A Vision: SigLIP, pixel shuffle, a language model of parallel blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lvlm_interp.models.families.blocks import PARALLEL, with_vision
from lvlm_interp.models.families.geometry import Size, square
from lvlm_interp.models.families.internvl import canvas_of, tiles_then_thumbnail
from lvlm_interp.models.families.llava import TEXT, VISION, pixels
from lvlm_interp.models.family import Family, ImageContext
from lvlm_interp.tokens import ImageLayout


def _per_side(config: Any) -> int:
    vision = config.vision_config
    return square(vision) // vision.patch_size // config.downsample_factor


def aya_layout(context: ImageContext) -> list[ImageLayout]:
    """Tiles as GOT-OCR2 cuts them, then the thumbnail; each a grid of shuffled patches."""
    return tiles_then_thumbnail(context, _per_side(context.config), canvas_of)


def command_layout(context: ImageContext) -> list[ImageLayout]:
    """Tiles of the canvas that is least upscaled, then the thumbnail."""
    return tiles_then_thumbnail(context, _per_side(context.config), least_upscaled)


def least_upscaled(size: Size, side: int, processor: Any) -> Size:
    """(columns, rows) of tiles: the canvas that needs least upscaling, else least downscaling.

    The rule of `transformers.models.cohere2_vision.image_processing_cohere2_vision`, whose module
    cannot be imported without torchvision.
    """
    most = processor.max_patches
    grids = [(w, h) for w in range(1, most + 1) for h in range(1, most + 1) if w * h <= most]
    grids.sort(key=lambda grid: grid[0] * grid[1])
    scales = np.min(np.array(grids) * side / np.array(size), axis=-1)
    if (scales < 1).all():
        return grids[int(np.argmax(scales))]
    return grids[int(np.argmin(np.where(scales < 1, np.inf, scales)))]


AYA = Family(
    name="aya_vision",
    model_types=("aya_vision",),
    towers=(VISION, replace(TEXT, block=PARALLEL)),
    layout=aya_layout,
    pixels=pixels,
    variant=lambda config: with_vision(AYA, config),
    special="parallel text blocks: no resid_mid; tiles, then a thumbnail; pixel shuffle",
)

COMMAND = replace(
    AYA,
    name="cohere2_vision",
    model_types=("cohere2_vision",),
    towers=(
        replace(
            VISION, n_read=lambda _config, n: n, final_norm="model.vision_tower.post_layernorm"
        ),
        replace(TEXT, block=PARALLEL),
    ),
    layout=command_layout,
    variant=lambda config: with_vision(COMMAND, config),
)
