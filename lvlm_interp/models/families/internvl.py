"""InternVL: LayerScale vision tower, tiles with a thumbnail, pixel shuffle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lvlm_interp.models.families.geometry import (
    Size,
    blocks_of_patches,
    grid_layout,
    joined,
    patch,
    random_pixels,
    square,
    stretched,
    tiled_layout,
)
from lvlm_interp.models.families.llava import TEXT, n_read
from lvlm_interp.models.family import Block, Family, ImageContext, Scale, Tower
from lvlm_interp.tokens import ImageLayout


def layout(context: ImageContext) -> list[ImageLayout]:
    """Tiles row by row, then the thumbnail (tile 0); each a grid of shuffled patches."""
    vision = context.config.vision_config
    per_side = int(square(vision) // patch(vision) * context.config.downsample_ratio)
    return tiles_then_thumbnail(context, per_side, canvas_of, leading=1)


def canvas_of(size: Size, side: int, processor: Any) -> Size:
    """(columns, rows) of the tiles into which GOT-OCR2's image processor cuts an image."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    limits = (processor.min_patches, processor.max_patches)
    return get_optimal_tiled_canvas((size[1], size[0]), (side, side), *limits)


def tiles_then_thumbnail(
    context: ImageContext,
    per_side: int,
    tiling: Callable[[Size, int, Any], Size],
    leading: int = 0,
) -> list[ImageLayout]:
    """Tiles row by row, then the thumbnail (tile 0).

    Args:
        context: The images of a row.
        per_side: Tokens along a side of a tile.
        tiling: (columns, rows) of tiles from (width, height), the side of a tile and the image
            processor.
        leading: Class tokens in front of each tile's patches.
    """
    side = square(context.config.vision_config)
    patches = side // patch(context.config.vision_config)
    canvas, grid = (side, side), (per_side, per_side)
    layouts = []
    for size in context.sizes:
        thumbnail = grid_layout(per_side, per_side, canvas, stretched(size, canvas), size)
        tiles = (1, 1)
        if size is not None and _crops(context, per_side**2):
            tiles = tiling(size, side, context.image_processor)
        parts = tiled_layout(tiles, grid, canvas, size, first=1) if tiles != (1, 1) else []
        layouts.append(
            blocks_of_patches(
                joined([*parts, thumbnail]), (patches, patches), patches // per_side, leading
            )
        )
    return layouts


def _crops(context: ImageContext, per_tile: int) -> bool:
    """Whether the row's images were cut: then they have more placeholders than one tile each."""
    ids = context.tensors["input_ids"][context.row]
    return int((ids == context.config.image_token_id).sum()) > per_tile * len(context.sizes)


def pixels(config: Any) -> dict[str, Any]:
    """One image in one tile."""
    side = square(config.vision_config)
    return {"pixel_values": random_pixels(1, 3, side, side)}


BLOCK = Block(
    attn="attention",
    q="attention.q_proj",
    k="attention.k_proj",
    v="attention.v_proj",
    o="attention.projection_layer",
    attn_out="attention.projection_layer",
    attn_scale=Scale("lambda_1"),
    mlp_norm="layernorm_after",
    down="mlp.fc2",
    mlp_scale=Scale("lambda_2"),
)

FAMILY = Family(
    name="internvl",
    model_types=("internvl",),
    towers=(
        Tower("vision", "model.vision_tower.encoder.layer", "vision_config", BLOCK, n_read=n_read),
        TEXT,
    ),
    layout=layout,
    pixels=pixels,
    special="LayerScale: attn_out and mlp_out are what is added after it; tiles, then a thumbnail; "
    "pixel shuffle",
)

QIANFAN_OCR = replace(
    FAMILY,
    name="qianfan_ocr",
    model_types=("qianfan_ocr",),
    towers=(replace(FAMILY.towers[0], layers="model.vision_tower.layers"), TEXT),
)
