"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: images of any size on one flat axis, patches merged by four."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.vision_utils import get_vision_window_index

from lvlm_interp.models.families.blocks import EXPERTS
from lvlm_interp.models.families.geometry import grid_layout, made_of, random_pixels, stretched
from lvlm_interp.models.family import Block, Family, ImageContext, Tower
from lvlm_interp.models.hooks import Tap
from lvlm_interp.models.inputs.rows import FILL, RowContext, Rows, RowsByTower
from lvlm_interp.sites import Site
from lvlm_interp.tokens import ImageLayout


def layout(context: ImageContext) -> list[ImageLayout]:
    """One token per `spatial_merge_size` squared patches, row by row over the resized image."""
    vision = context.config.vision_config
    grids = context.tensors["image_grid_thw"][context.first : context.first + len(context.sizes)]
    merge, side = vision.spatial_merge_size, vision.patch_size
    layouts = []
    for (_, height, width), size in zip(grids.tolist(), context.sizes, strict=True):
        canvas = (width * side, height * side)
        rows, cols = height // merge, width // merge
        plain = grid_layout(rows, cols, canvas, stretched(size, canvas), size)
        layouts.append(merged(plain, merge**2))
    return layouts


def merged(layout: ImageLayout, n: int) -> ImageLayout:
    """The patches of a token follow each other."""
    token = np.arange(len(layout))
    parts = {"vision": token[:, None] * n + np.arange(n), "projector": token}
    return made_of(layout, parts, {"vision": n * len(token), "projector": len(token)})


def n_images(tensors: Mapping[str, Any]) -> int:
    """One grid per image."""
    return len(tensors["image_grid_thw"])


def rows(context: RowContext) -> RowsByTower:
    """The tower's tokens are the placeholders of the batch in order; each is of several patches.

    What deepstack adds stands at the placeholders' positions in the prompt.
    """
    slots, merge = context.slots, context.config.vision_config.spatial_merge_size
    places = context.placeholders
    added = torch.full(places.shape, FILL)
    added[places] = torch.arange(sum(slots))
    return {
        "vision": Rows.counted([slot * merge**2 for slot in slots], flat=True),
        "projector": Rows.counted(slots, flat=True),
        "deepstack": Rows(added, sum(slots), flat=True),
    }


def rows_in_windows(context: RowContext) -> RowsByTower:
    """The same where the tower's blocks see the patches in the order of attention windows."""
    vision = context.config.vision_config
    merge = vision.spatial_merge_size
    order, _ = get_vision_window_index(
        context.tensors["image_grid_thw"].cpu(), merge, vision.window_size, vision.patch_size
    )
    # order[i] is the token that stands at i; a site wants where each token stands, and its patches.
    place = order.argsort()[:, None] * merge**2 + torch.arange(merge**2)
    plain = rows(context)
    index = plain["vision"].index
    moved = torch.where(index == FILL, FILL, place.flatten()[index.clamp(min=0)])
    return {**plain, "vision": replace(plain["vision"], index=moved)}


def pixels(config: Any) -> dict[str, Any]:
    """One image of four by six patches."""
    vision = config.vision_config
    merge = vision.spatial_merge_size
    rows, cols = 2 * merge, 3 * merge
    channels = getattr(vision, "in_channels", 3)
    width = channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": random_pixels(rows * cols, width),
        "image_grid_thw": torch.tensor([[1, rows, cols]]),
    }


def deepstack_taps(hf: nn.Module) -> dict[Site, Tap]:
    """What each merger adds to the image positions behind its block of the language model."""
    mergers = hf.model.visual.deepstack_merger_list  # pyright: ignore[reportAttributeAccessIssue]
    return {
        Site("text", layer, "deepstack"): Tap(merger, "output")
        for layer, merger in enumerate(mergers)  # pyright: ignore[reportArgumentType]
    }


def _vision(block: Block, width: str = "hidden_size") -> Tower:
    return Tower("vision", "model.visual.blocks", "vision_config", block, flat=True, width=width)


FUSED = Block(
    attn="attn",
    qkv="attn.qkv",
    o="attn.proj",
    attn_out="attn.proj",
    mlp_norm="norm2",
    down="mlp.fc2",
)
TEXT = Tower("text", "model.language_model.layers", "text_config")

FAMILY = Family(
    name="qwen2_vl",
    model_types=("qwen2_vl",),
    towers=(_vision(FUSED, width="embed_dim"), TEXT),
    layout=layout,
    n_images=n_images,
    rows=rows,
    pixels=pixels,
    projector="model.visual",
    projector_field="pooler_output",
    needs=("pixel_values", "image_grid_thw", "mm_token_type_ids"),
    special="the images of a batch share one axis of patches; M-RoPE; fused q, k, v in the tower",
)

QWEN2_5 = replace(
    FAMILY,
    name="qwen2_5_vl",
    model_types=("qwen2_5_vl",),
    towers=(_vision(replace(FUSED, down="mlp.down_proj")), TEXT),
    rows=rows_in_windows,
    special=FAMILY.special + "; window attention (sites have the patches in the processor's order)",
)

QWEN3 = replace(
    FAMILY,
    name="qwen3_vl",
    model_types=("qwen3_vl",),
    towers=(_vision(replace(FUSED, down="mlp.linear_fc2")), TEXT),
    extra_taps=deepstack_taps,
    special=FAMILY.special + "; deepstack: features of inner vision blocks are added behind the "
    "first blocks of the language model (sites text.N.deepstack)",
)

QWEN3_MOE = replace(
    QWEN3,
    name="qwen3_vl_moe",
    model_types=("qwen3_vl_moe",),
    towers=(QWEN3.towers[0], replace(TEXT, block=EXPERTS)),
    special=QWEN3.special + "; experts: mlp_hidden is there only in blocks with a plain MLP",
)

COSMOS3_OMNI = replace(QWEN3, name="cosmos3_omni", model_types=("cosmos3_omni",))

LINEAR = Block(attn="", attn_out="linear_attn")
"""A block whose mixer is a linear recurrence (a gated delta net): it has no pattern."""

QWEN3_5 = replace(
    FAMILY,
    name="qwen3_5",
    model_types=("qwen3_5",),
    towers=(
        QWEN3.towers[0],
        replace(TEXT, block=Block(gated=True, others={"linear_attn": LINEAR})),
    ),
    special="the images of a batch share one axis of patches; M-RoPE; three of four text blocks "
    "are linear recurrences without heads (attn_out is what they add); a gate per head is part of "
    "z",
)

_GATED_EXPERTS = Block(
    gated=True,
    down="",
    others={"linear_attn": replace(LINEAR, down="")},
)
QWEN3_5_MOE = replace(
    QWEN3_5,
    name="qwen3_5_moe",
    model_types=("qwen3_5_moe",),
    towers=(QWEN3.towers[0], replace(TEXT, block=_GATED_EXPERTS)),
    special=QWEN3_5.special + "; experts, so no mlp_hidden",
)
