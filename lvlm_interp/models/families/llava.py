"""LLaVA: CLIP vision tower, MLP projector, patch tokens merged into the prompt."""

from __future__ import annotations

from typing import Any

from lvlm_interp.models.families.geometry import grid_layout, placement, random_pixels
from lvlm_interp.models.family import CLIP_BLOCK, Family, ImageContext, Tower
from lvlm_interp.tokens import ImageLayout


def n_read(config: Any, n_layers: int) -> int:
    """Blocks of the vision tower up to the deepest one that the projector reads."""
    layers = config.vision_feature_layer
    indices = [layers] if isinstance(layers, int) else list(layers)
    # hidden_states has the embeddings first, so index i is the output of block i - 1.
    return max(index if index >= 0 else n_layers + 1 + index for index in indices)


def layout(context: ImageContext) -> list[ImageLayout]:
    """One token per patch, row by row; the class token is dropped by the model."""
    vision = context.config.vision_config
    height, width = context.tensors["pixel_values"].shape[-2:]
    rows, cols = height // vision.patch_size, width // vision.patch_size
    canvas = (width, height)
    return [
        grid_layout(rows, cols, canvas, placement(context.image_processor, size, canvas), size)
        for size in context.sizes
    ]


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
    special="reads the last but one vision block by default; the class token is dropped",
)
