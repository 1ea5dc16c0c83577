"""More towers that lay the patches of all images on one axis, as that of Qwen2-VL does.

VideoLLaMA 3 and PaddleOCR-VL have SigLIP's blocks there, EXAONE 4.5 a fused projection with fewer
keys than queries, and the Omni thinkers of Qwen their own projections beside an audio tower.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from lvlm_interp.models.families import qwen_vl
from lvlm_interp.models.families.blocks import HYPERCLOVAX, ONLY_POST_NORMS
from lvlm_interp.models.families.geometry import (
    blocks_of_patches,
    grid_layout,
    random_pixels,
    stretched,
)
from lvlm_interp.models.family import CLIP_BLOCK, Block, ImageContext, Tower
from lvlm_interp.models.inputs.rows import RowContext, Rows, RowsByTower, images_of_rows
from lvlm_interp.tokens import ImageLayout

# -- VideoLLaMA 3 ----------------------------------------------------------------------------------


def merged_layout(context: ImageContext) -> list[ImageLayout]:
    """One token per squared `image_merge_sizes` patches, row by row over the resized image."""
    at = slice(context.first, context.first + len(context.sizes))
    grids, merges = (context.tensors[f"image_{name}"][at] for name in ("grid_thw", "merge_sizes"))
    side = context.config.vision_config.patch_size
    layouts = []
    for grid, merge, size in zip(grids.tolist(), merges.tolist(), context.sizes, strict=True):
        _, height, width = grid
        canvas = (width * side, height * side)
        place = stretched(size, canvas)
        plain = grid_layout(height // merge, width // merge, canvas, place, size)
        layouts.append(qwen_vl.merged(plain, merge**2))
    return layouts


def merged_rows(context: RowContext) -> RowsByTower:
    """Placeholders in order; the patches of each are as many as its image merges."""
    grids, merges = (context.tensors[f"image_{name}"] for name in ("grid_thw", "merge_sizes"))
    counts = (grids.prod(-1) // merges**2).tolist()
    of_row = images_of_rows(context.slots, counts)
    patches = grids.prod(-1).tolist()
    ends = torch.tensor([0, *of_row]).cumsum(0).tolist()
    vision = [sum(patches[a:b]) for a, b in pairwise(ends)]
    return {
        "vision": Rows.counted(vision, flat=True),
        "projector": Rows.counted(context.slots, flat=True),
    }


def merged_pixels(config: Any) -> dict[str, Any]:
    """One image of four by six patches, of which each is a token."""
    return {
        "pixel_values": random_pixels(24, 3 * config.vision_config.patch_size**2),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
        "image_merge_sizes": torch.tensor([1]),
    }


VIDEO_LLAMA_3 = replace(
    qwen_vl.FAMILY,
    name="video_llama_3",
    model_types=("video_llama_3",),
    towers=(
        Tower(
            "vision",
            "model.vision_model.encoder.layers",
            "vision_config",
            CLIP_BLOCK,
            flat=True,
            final_norm="model.vision_model.post_layernorm",
        ),
        qwen_vl.TEXT,
    ),
    layout=merged_layout,
    rows=merged_rows,
    pixels=merged_pixels,
    projector="model.projector",
    projector_field="",
    needs=("pixel_values", "image_grid_thw", "image_merge_sizes"),
    special="the images of a batch share one axis of patches; images merge none, videos two by two "
    "(videos are refused)",
)

# -- PaddleOCR-VL ----------------------------------------------------------------------------------


def paddle_layout(context: ImageContext) -> list[ImageLayout]:
    """As Qwen2-VL, but the tower has the patches row by row and the projector merges them."""
    grids = context.tensors["image_grid_thw"][context.first : context.first + len(context.sizes)]
    merge = context.config.vision_config.spatial_merge_size
    return [
        blocks_of_patches(layout, (width, height), merge)
        for layout, (_, height, width) in zip(qwen_vl.layout(context), grids.tolist(), strict=True)
    ]


def paddle_pixels(config: Any) -> dict[str, Any]:
    """One image of four by six patches."""
    side = config.vision_config.patch_size
    return {
        "pixel_values": random_pixels(24, 3, side, side),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
    }


PADDLEOCR_VL = replace(
    qwen_vl.FAMILY,
    name="paddleocr_vl",
    model_types=("paddleocr_vl",),
    towers=(
        replace(
            VIDEO_LLAMA_3.towers[0],
            layers="model.visual.vision_model.encoder.layers",
            final_norm="model.visual.vision_model.post_layernorm",
        ),
        qwen_vl.TEXT,
    ),
    layout=paddle_layout,
    pixels=paddle_pixels,
    projector="model.projector",
    projector_field="",
    special="the images of a batch share one axis of patches; M-RoPE; the projector merges two by "
    "two patches",
)

# -- EXAONE 4.5 ------------------------------------------------------------------------------------

EXAONE4_5 = replace(
    qwen_vl.QWEN2_5,
    name="exaone4_5",
    model_types=("exaone4_5",),
    towers=(qwen_vl.QWEN2_5.towers[0], replace(qwen_vl.TEXT, block=ONLY_POST_NORMS)),
    needs=("pixel_values", "image_grid_thw"),
    special="the images of a batch share one axis of patches; window attention; norms behind the "
    "branches of the language model",
)

# -- the thinkers of Qwen's Omni models ------------------------------------------------------------

_SEPARATE = Block(
    attn="attn",
    q="attn.q",
    k="attn.k",
    v="attn.v",
    o="attn.proj",
    attn_out="attn.proj",
    mlp_norm="norm2",
    down="mlp.down_proj",
)

QWEN2_5_OMNI = replace(
    qwen_vl.QWEN2_5,
    name="qwen2_5_omni_thinker",
    model_types=("qwen2_5_omni_thinker",),
    towers=(replace(qwen_vl.QWEN2_5.towers[0], block=_SEPARATE), qwen_vl.TEXT),
    needs=("pixel_values", "image_grid_thw"),
    special="images only, audio and videos are refused; window attention; M-RoPE",
)

QWEN3_OMNI = replace(
    qwen_vl.QWEN3_MOE,
    name="qwen3_omni_moe_thinker",
    model_types=("qwen3_omni_moe_thinker",),
    needs=("pixel_values", "image_grid_thw"),
    special="images only, audio and videos are refused; M-RoPE; deepstack; experts, so mlp_hidden "
    "is there only in blocks with a plain MLP",
)

# -- HyperCLOVA X ----------------------------------------------------------------------------------

HYPERCLOVAX_VISION = replace(
    qwen_vl.QWEN2_5,
    name="hyperclovax_vision_v2",
    model_types=("hyperclovax_vision_v2",),
    towers=(
        replace(qwen_vl.QWEN2_5.towers[0], layers="model.vision_model.blocks"),
        replace(qwen_vl.TEXT, block=HYPERCLOVAX),
    ),
    projector="model.projector",
    projector_field="",
    needs=("pixel_values", "image_grid_thw"),
    special="the images of a batch share one axis of patches; window attention; the language model "
    "multiplies what it adds",
)
