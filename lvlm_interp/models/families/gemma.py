"""PaliGemma and Gemma3: SigLIP and a Gemma language model that attends both ways over the image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lvlm_interp.models.families.blocks import POST_NORMS
from lvlm_interp.models.families.geometry import (
    blocks_of_patches,
    grid_layout,
    random_pixels,
    stretched,
)
from lvlm_interp.models.family import CLIP_BLOCK, Family, ImageContext, Tower
from lvlm_interp.tokens import ImageLayout


def _layout(per_side: int, context: ImageContext) -> list[ImageLayout]:
    vision = context.config.vision_config
    side, patches = vision.image_size, vision.image_size // vision.patch_size
    square = (side, side)
    return [
        blocks_of_patches(
            grid_layout(per_side, per_side, square, stretched(size, square), size),
            (patches, patches),
            patches // per_side,
        )
        for size in context.sizes
    ]


def patches(context: ImageContext) -> list[ImageLayout]:
    """PaliGemma: one token per patch of the stretched image."""
    vision = context.config.vision_config
    return _layout(vision.image_size // vision.patch_size, context)


def pooled(context: ImageContext) -> list[ImageLayout]:
    """Gemma3: patches averaged into `mm_tokens_per_image` tokens."""
    return _layout(int(context.config.mm_tokens_per_image**0.5), context)


def pixels(config: Any) -> dict[str, Any]:
    """One image of the size that the vision tower takes."""
    side = config.vision_config.image_size
    return {"pixel_values": random_pixels(1, 3, side, side)}


VISION = Tower(
    "vision",
    "model.vision_tower.encoder.layers",
    "vision_config",
    CLIP_BLOCK,
    final_norm="model.vision_tower.post_layernorm",
)

PALIGEMMA = Family(
    name="paligemma",
    model_types=("paligemma",),
    towers=(VISION, Tower("text", "model.language_model.layers", "text_config")),
    layout=patches,
    pixels=pixels,
    embed_is_resid=False,
    needs=("pixel_values", "token_type_ids"),
    bidirectional="the whole prompt",
    special="the whole prompt attends both ways; embeddings are scaled before the first block",
)

GEMMA3 = Family(
    name="gemma3",
    model_types=("gemma3",),
    towers=(VISION, Tower("text", "model.language_model.layers", "text_config", POST_NORMS)),
    layout=pooled,
    pixels=pixels,
    needs=("pixel_values", "token_type_ids"),
    bidirectional="the tokens of one image",
    special="image tokens attend both ways; patches are averaged; norms behind each branch, so "
    "attn_out and mlp_out are what those norms give",
)

SHIELDGEMMA2 = replace(GEMMA3, name="shieldgemma2", model_types=("shieldgemma2",))
