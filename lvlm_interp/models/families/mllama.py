"""Mllama (Llama 3.2 Vision): the image enters through gated cross-attention blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lvlm_interp.models.families.geometry import made_of, random_pixels, tokens_without_place
from lvlm_interp.models.family import Block, Branch, Family, ImageContext, Scale, Tower
from lvlm_interp.models.inputs.rows import FILL, RowContext, Rows, RowsByTower
from lvlm_interp.models.views import FLAT_POSITIONS
from lvlm_interp.tokens import ImageLayout

NOTE = (
    "the image enters by cross-attention: no position of the prompt stands for a place in it (the "
    "keys of cross_pattern run over tiles and their patches, the class token first in each tile)"
)


MULTIPLE = 8
"""The tower pads the patches of a tile to a multiple of this."""


def layout(context: ImageContext) -> list[ImageLayout]:
    """The one placeholder of each image."""
    plain = tokens_without_place(1, "special", NOTE)
    mask = context.tensors["aspect_ratio_mask"][context.row, : len(context.sizes)]
    return [_in_tiles(context.config, plain, int(tiles.sum()), len(tiles)) for tiles in mask]


def _in_tiles(config: Any, plain: ImageLayout, real: int, tiles: int) -> ImageLayout:
    """The patches of the real tiles; each tile has a class token in front, padding behind."""
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    each, patch = patches + 1, np.arange(1, patches + 1)
    padded = each + -each % MULTIPLE
    tile = np.arange(real)[:, None]
    parts = {"vision": tile * padded + patch, "projector": tile * each + patch}
    lengths = {"vision": tiles * padded, "projector": tiles * each}
    return made_of(plain, {name: at.reshape(1, -1) for name, at in parts.items()}, lengths)


def n_images(tensors: Mapping[str, Any]) -> int:
    """Images of all rows."""
    return tensors["pixel_values"].shape[0] * tensors["pixel_values"].shape[1]


def rows(context: RowContext) -> RowsByTower:
    """One entry per image, all its tiles in it; rows with fewer images have padding for the rest.

    Padding inside of an image (tiles and patches) counts as a position: the tower computes it and
    other positions read it.
    """
    held = context.tensors["pixel_values"].shape[1]
    counts = torch.tensor(context.slots)
    image = torch.arange(int(counts.max()) if len(counts) else 0)
    index = torch.arange(len(counts))[:, None] * held + image
    index[image >= counts[:, None]] = FILL
    tiles, vision = context.tensors["pixel_values"].shape[2], context.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    seen = torch.arange(held) < counts[:, None]
    real = seen.repeat_interleave(tiles * patches, dim=1)
    whole = Rows(torch.arange(len(counts))[:, None], len(counts), real=real)
    return {"vision": Rows(index, len(counts) * held), "projector": whole}


def pixels(config: Any) -> dict[str, Any]:
    """One image in one tile of those that the tower takes."""
    vision = config.vision_config
    tiles = vision.max_num_tiles
    values = random_pixels(1, 1, tiles, 3, vision.image_size, vision.image_size)
    mask = torch.zeros(1, 1, tiles, dtype=torch.long)
    values[:, :, 1:], mask[:, :, 0] = 0, 1
    return {
        "pixel_values": values,
        "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
        "aspect_ratio_mask": mask,
    }


VISION_BLOCK = Block(down="mlp.fc2")
GATED = replace(
    VISION_BLOCK, attn_scale=Scale("gate_attn", tanh=True), mlp_scale=Scale("gate_ffn", tanh=True)
)
CROSS = Branch(
    attn="cross_attn",
    q="cross_attn.q_proj",
    k="cross_attn.k_proj",
    v="cross_attn.v_proj",
    o="cross_attn.o_proj",
    out="cross_attn.o_proj",
    scale=Scale("cross_attn_attn_gate", tanh=True),
    tiled_keys=True,
)
TEXT_BLOCK = Block(
    cross=CROSS,
    others={
        "cross_attn": Block(
            attn="",
            attn_out="",
            mlp_scale=Scale(
                "cross_attn_mlp_gate", tanh=True, row_mask="full_text_row_masked_out_mask"
            ),
        )
    },
)

FAMILY = Family(
    name="mllama",
    model_types=("mllama",),
    towers=(
        Tower(
            "vision",
            "model.vision_model.transformer.layers",
            "vision_config",
            VISION_BLOCK,
            then=("model.vision_model.global_transformer.layers", GATED),
        ),
        Tower("text", "model.language_model.layers", "text_config", TEXT_BLOCK),
    ),
    layout=layout,
    n_images=n_images,
    rows=rows,
    pixels=pixels,
    projector_view=FLAT_POSITIONS,
    embed=("model.language_model.embed_tokens", ""),
    merged=False,
    needs=("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask"),
    enters="gated cross-attention in blocks of its own (sites text.N.cross_*)",
    special="one placeholder, nothing merged; gates are part of attn_out and mlp_out; two stacks "
    "of vision blocks, counted through",
)
