"""LLaVA: CLIP vision tower, MLP projector, patch tokens merged into the prompt."""

from __future__ import annotations

from typing import Any

from lvlm_interp.models.families.geometry import grid_layout, placement
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
    pixels = context.tensors["pixel_values"]
    height, width = pixels.shape[-2:]
    rows, cols = height // vision.patch_size, width // vision.patch_size
    images = getattr(context.processor, "image_processor", None)
    return [
        grid_layout(rows, cols, (width, height), placement(images, size, (width, height)), size)
        for size in context.sizes
    ]


FAMILY = Family(
    name="llava",
    model_types=("llava",),
    towers=(
        Tower(
            "vision",
            "model.vision_tower.encoder.layers",
            "vision_config",
            CLIP_BLOCK,
            n_read=n_read,
        ),
        Tower("text", "model.language_model.layers", "text_config"),
    ),
    layout=layout,
    special="reads the last but one vision block by default; the class token is dropped",
)
