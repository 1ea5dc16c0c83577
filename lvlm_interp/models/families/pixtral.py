"""Mistral 3 and LightOnOCR: Pixtral's tower over images of any size, patches merged into one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from lvlm_interp.models.families.geometry import (
    blocks_of_patches,
    grid_layout,
    random_pixels,
    stretched,
)
from lvlm_interp.models.families.llava import TEXT, n_read
from lvlm_interp.models.family import Block, Family, ImageContext, Tower
from lvlm_interp.models.inputs.rows import RowContext, Rows, RowsByTower
from lvlm_interp.tokens import ImageLayout

BLOCK = Block(
    attn="attention",
    q="attention.q_proj",
    k="attention.k_proj",
    v="attention.v_proj",
    o="attention.o_proj",
    attn_out="attention.o_proj",
    mlp_norm="ffn_norm",
    down="feed_forward.down_proj",
    mlp_out="feed_forward",
    attn_norm="attention_norm",
)


def layout(context: ImageContext) -> list[ImageLayout]:
    """One token per `spatial_merge_size` squared patches, row by row over the resized image."""
    config = context.config
    cell = config.vision_config.patch_size * config.spatial_merge_size
    sizes = context.tensors["image_sizes"][context.first : context.first + len(context.sizes)]
    layouts = []
    for (height, width), size in zip(sizes.tolist(), context.sizes, strict=True):
        canvas = (width, height)
        place = stretched(size, canvas)
        plain = grid_layout(height // cell, width // cell, canvas, place, size)
        side = config.vision_config.patch_size
        patches = (width // side, height // side)
        layouts.append(blocks_of_patches(plain, patches, config.spatial_merge_size))
    return layouts


def rows(context: RowContext) -> RowsByTower:
    """The tower's tokens are the placeholders of the batch in order; each is of several patches."""
    slots, merge = context.slots, context.config.spatial_merge_size
    return {
        "vision": Rows.counted([slot * merge**2 for slot in slots], flat=True),
        "projector": Rows.counted(slots, flat=True),
    }


def pixels(config: Any) -> dict[str, Any]:
    """One image of two by three tokens."""
    cell = config.vision_config.patch_size * config.spatial_merge_size
    height, width = 2 * cell, 3 * cell
    return {
        "pixel_values": random_pixels(1, 3, height, width),
        "image_sizes": torch.tensor([[height, width]]),
    }


MISTRAL3 = Family(
    name="mistral3",
    model_types=("mistral3",),
    towers=(
        Tower(
            "vision",
            "model.vision_tower.transformer.layers",
            "vision_config",
            BLOCK,
            n_read=n_read,
            packed=True,
        ),
        TEXT,
    ),
    layout=layout,
    rows=rows,
    pixels=pixels,
    needs=("pixel_values", "image_sizes"),
    special="the patches of all images of a batch stand on one axis and see their own image only; "
    "two by two patches are merged",
)

LIGHTON_OCR = replace(
    MISTRAL3,
    name="lighton_ocr",
    model_types=("lighton_ocr",),
    towers=(
        replace(
            MISTRAL3.towers[0],
            layers="model.vision_encoder.transformer.layers",
            n_read=lambda _config, n: n,
        ),
        TEXT,
    ),
    projector="model.vision_projection",
)
