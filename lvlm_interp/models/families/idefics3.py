"""Idefics3 and SmolVLM: tiles and a global view, pixel-shuffled into fewer tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lvlm_interp.models.families.geometry import (
    Size,
    blocks_of_patches,
    grid_layout,
    joined,
    random_pixels,
    stretched,
    tiled_layout,
    without_boxes,
)
from lvlm_interp.models.family import CLIP_BLOCK, Family, ImageContext, Tower
from lvlm_interp.models.inputs.rows import RowContext, Rows, RowsByTower
from lvlm_interp.tokens import ImageLayout


def layout(context: ImageContext) -> list[ImageLayout]:
    """Tiles row by row, then the whole image (tile 0); each a grid of shuffled patches."""
    if context.sizes and context.sizes[0] is None:
        return [_unknown(context)]
    return [_image_layout(context, size) for size in context.sizes if size is not None]


def _grid(config: Any) -> tuple[int, int]:
    vision = config.vision_config
    return vision.image_size, vision.image_size // vision.patch_size // config.scale_factor


def _image_layout(context: ImageContext, size: Size) -> ImageLayout:
    side, per_side = _grid(context.config)
    count = context.image_processor.get_number_of_image_patches
    _, rows, cols = count(size[1], size[0], {})
    square, grid = (side, side), (per_side, per_side)
    whole = grid_layout(per_side, per_side, square, stretched(size, square), size)
    tiles = tiled_layout((cols, rows), grid, square, size, first=1) if rows * cols > 1 else []
    return _shuffled(context.config, joined([*tiles, whole]))


def _shuffled(config: Any, layout: ImageLayout) -> ImageLayout:
    patches = config.vision_config.image_size // config.vision_config.patch_size
    return blocks_of_patches(layout, (patches, patches), config.scale_factor)


def _unknown(context: ImageContext) -> ImageLayout:
    """Without the image's size the tiles are counted, but not how they lie."""
    side, per_side = _grid(context.config)
    pixels = context.tensors["pixel_values"][context.row]
    real = [tile for tile in range(len(pixels)) if bool((pixels[tile] != 0).any())]
    square = (side, side)
    parts = [
        grid_layout(per_side, per_side, square, stretched(None, square), None, tile=tile)
        for tile in real
    ]
    if len(parts) == 1:
        return _shuffled(context.config, parts[0])
    note = "how the tiles lie is known only for inputs made with prepare()"
    return _shuffled(context.config, joined([without_boxes(part, note) for part in parts]))


def rows(context: RowContext) -> RowsByTower:
    """The tiles of each row, without those that are all zero, as the model itself drops them."""
    tiles = context.tensors["pixel_values"]
    real = (tiles != 0).flatten(2).any(-1).sum(1).tolist()
    return dict.fromkeys(("vision", "projector"), Rows.counted(real))


def pixels(config: Any) -> dict[str, Any]:
    """One image in one tile."""
    side = config.vision_config.image_size
    return {"pixel_values": random_pixels(1, 1, 3, side, side)}


FAMILY = Family(
    name="idefics3",
    model_types=("idefics3",),
    towers=(
        Tower(
            "vision",
            "model.vision_model.encoder.layers",
            "vision_config",
            CLIP_BLOCK,
            final_norm="model.vision_model.post_layernorm",
        ),
        Tower("text", "model.text_model.layers", "text_config"),
    ),
    layout=layout,
    rows=rows,
    pixels=pixels,
    projector="model.connector",
    embed=("model.text_model", "inputs_embeds"),
    final_norm="model.text_model.norm",
    special="tiles between row and column marks, then the whole image; pixel shuffle",
)

SMOLVLM = replace(FAMILY, name="smolvlm", model_types=("smolvlm",))
