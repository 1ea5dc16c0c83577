"""LLaVA: a vision tower of any kind, MLP projector, patch tokens merged into the prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lvlm_interp.models.families.blocks import vision_kind, with_vision
from lvlm_interp.models.families.geometry import (
    grid_layout,
    joined,
    one_to_one,
    placement,
    random_pixels,
    taken,
    tokens_without_place,
)
from lvlm_interp.models.family import CLIP_BLOCK, Family, ImageContext, Tower
from lvlm_interp.tokens import ImageLayout

LEADING = "the first tokens of an image are the tower's class and register tokens"


def n_read(config: Any, n_layers: int) -> int:
    """Blocks of the vision tower up to the deepest one that the projector reads."""
    layers = config.vision_feature_layer
    indices = [layers] if isinstance(layers, int) else list(layers)
    # hidden_states has the embeddings first, so index i is the output of block i - 1.
    return max(index if index >= 0 else n_layers + 1 + index for index in indices)


def layout(context: ImageContext) -> list[ImageLayout]:
    """One token per patch, row by row, behind the class and register tokens that are kept."""
    vision = context.config.vision_config
    height, width = context.tensors["pixel_values"].shape[-2:]
    rows, cols = height // vision.patch_size, width // vision.patch_size
    canvas = (width, height)
    return [
        _with_leading(
            context.config,
            grid_layout(rows, cols, canvas, placement(context.image_processor, size, canvas), size),
        )
        for size in context.sizes
    ]


def _with_leading(config: Any, patches: ImageLayout) -> ImageLayout:
    """With `default` the model drops the first token, whatever it is; with `full` it keeps all."""
    leading = vision_kind(config).leading(config.vision_config)
    strategy = getattr(config, "vision_feature_select_strategy", "default")
    dropped = int(strategy == "default")
    kept = leading - dropped
    if kept > 0:
        patches = joined([tokens_without_place(kept, "query", LEADING), patches])
    return one_to_one(patches if kept >= 0 else taken(patches, slice(1, None)), dropped)


def pixels(config: Any) -> dict[str, Any]:
    """One image of the size that the vision tower takes."""
    side = config.vision_config.image_size
    return {"pixel_values": random_pixels(1, 3, side, side)}


VISION = Tower(
    "vision", "model.vision_tower.encoder.layers", "vision_config", CLIP_BLOCK, n_read=n_read
)
TEXT = Tower("text", "model.language_model.layers", "text_config")

FAMILY = Family(
    name="llava",
    model_types=("llava",),
    towers=(VISION, TEXT),
    layout=layout,
    pixels=pixels,
    variant=lambda config: with_vision(FAMILY, config),
    special="reads the last but one vision block by default; the class token is dropped; the "
    "vision tower is CLIP, SigLIP, ViT, DINOv2 (with registers) or DINOv3",
)

VIPLLAVA = replace(
    FAMILY,
    name="vipllava",
    model_types=("vipllava",),
    variant=lambda config: with_vision(VIPLLAVA, config),
    special="the outputs of several vision blocks are put side by side; the class token is dropped",
)
