"""Llama 4: a tower with its class token last, pixel shuffle, experts in the language model."""

from __future__ import annotations

from typing import Any

from lvlm_interp.models.families.geometry import (
    blocks_of_patches,
    grid_layout,
    joined,
    square,
    stretched,
    without_boxes,
)
from lvlm_interp.models.families.llava import pixels
from lvlm_interp.models.family import Block, Family, ImageContext, Tower
from lvlm_interp.models.inputs.rows import RowContext, Rows, RowsByTower, entries_by_tokens
from lvlm_interp.tokens import ImageLayout

NOTE = "how the tiles of an image lie is not known from its inputs"


def layout(context: ImageContext) -> list[ImageLayout]:
    """Each tile is a grid of shuffled patches; of several only the order is known."""
    side, per_side = square(context.config.vision_config), _per_side(context.config)
    canvas = (side, side)
    tiles = _tiles(context, per_side**2)
    layouts = []
    for size in context.sizes:
        place = stretched(size, canvas)
        parts = [
            grid_layout(per_side, per_side, canvas, place, size, tile=tile) for tile in range(tiles)
        ]
        whole = parts[0] if tiles == 1 else without_boxes(joined(parts), NOTE)
        patches = side // context.config.vision_config.patch_size
        block = patches // per_side
        layouts.append(blocks_of_patches(whole, (patches, patches), block, trailing=1))
    return layouts


def rows(context: RowContext) -> RowsByTower:
    """One entry per tile in the tower; the projector gets the tokens of all of them on one axis."""
    projected = Rows.counted(context.slots, flat=True)
    return {**entries_by_tokens(context), "projector": projected}


def _per_side(config: Any) -> int:
    vision = config.vision_config
    return int(square(vision) // vision.patch_size * vision.pixel_shuffle_ratio)


def _tiles(context: ImageContext, per_tile: int) -> int:
    """Tiles of each image of a row, by its placeholders; one where the prompt is not known yet."""
    ids = context.tensors.get("input_ids")
    if ids is None or not ids.shape[1]:
        return 1
    slots = int((ids[context.row] == context.config.image_token_id).sum())
    return max(slots // per_tile // len(context.sizes), 1)


EXPERTS = Block(down="", mlp_out="feed_forward", flat_mlp=True)

FAMILY = Family(
    name="llama4",
    model_types=("llama4",),
    towers=(
        Tower(
            "vision",
            "vision_model.model.layers",
            "vision_config",
            Block(down="mlp.fc2"),
            final_norm="vision_model.layernorm_post",
        ),
        Tower(
            "text",
            "language_model.model.layers",
            "text_config",
            Block(
                down="feed_forward.down_proj",
                mlp_out="feed_forward",
                others={"feed_forward.experts": EXPERTS},
            ),
        ),
    ),
    layout=layout,
    rows=rows,
    pixels=pixels,
    projector="multi_modal_projector",
    embed=("language_model.model", "inputs_embeds"),
    final_norm="language_model.model.norm",
    lm_head="language_model.lm_head",
    special="experts, without mlp_hidden; the class token stands last and is dropped; of several "
    "tiles only the order is known",
)
