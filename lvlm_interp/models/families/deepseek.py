"""DeepSeek-VL and Janus: a SigLIP tower read behind its last norm, and an aligner."""

from __future__ import annotations

from dataclasses import replace

from lvlm_interp.models.families.geometry import (
    Placement,
    Size,
    grid_layout,
    one_to_one,
    square,
)
from lvlm_interp.models.families.llava import TEXT, pixels
from lvlm_interp.models.family import CLIP_BLOCK, Family, ImageContext, Tower
from lvlm_interp.tokens import ImageLayout


def layout(context: ImageContext) -> list[ImageLayout]:
    """One token per patch of the image, which is padded to a square in the middle."""
    vision = context.config.vision_config
    side = square(vision)
    per_side = side // vision.patch_size
    return [
        one_to_one(grid_layout(per_side, per_side, (side, side), _padded(size, side), size))
        for size in context.sizes
    ]


def _padded(size: Size | None, side: int) -> Placement:
    if size is None:
        return Placement()
    scale = side / max(size)
    width, height = round(size[0] * scale), round(size[1] * scale)
    offset = ((side - width) // 2, (side - height) // 2)
    return Placement(width / size[0], height / size[1], *offset)


DEEPSEEK_VL = Family(
    name="deepseek_vl",
    model_types=("deepseek_vl",),
    towers=(
        Tower(
            "vision",
            "model.vision_model.encoder.layers",
            "vision_config",
            CLIP_BLOCK,
            final_norm="model.vision_model.post_layernorm",
        ),
        TEXT,
    ),
    layout=layout,
    pixels=pixels,
    projector="model.aligner",
    special="the image is padded to a square",
)

_PROJECTED = replace(
    CLIP_BLOCK, o="self_attn.projection_layer", attn_out="self_attn.projection_layer"
)

JANUS = replace(
    DEEPSEEK_VL,
    name="janus",
    model_types=("janus",),
    towers=(replace(DEEPSEEK_VL.towers[0], block=_PROJECTED), TEXT),
    special="the image is padded to a square; what draws images has no sites",
)
