"""Ovis 2: each group of patches is a distribution over visual words, which are embedded."""

from __future__ import annotations

from lvlm_interp.models.families.geometry import (
    blocks_of_patches,
    grid_layout,
    joined,
    stretched,
    without_boxes,
)
from lvlm_interp.models.families.llava import TEXT, pixels
from lvlm_interp.models.family import Block, Family, ImageContext, Tower
from lvlm_interp.tokens import ImageLayout

NOTE = "how the tiles of an image lie is not known from its inputs"


def layout(context: ImageContext) -> list[ImageLayout]:
    """A grid of `hidden_stride` squared patches per tile; of several tiles only the order."""
    vision = context.config.vision_config
    side, reach = vision.image_size, vision.patch_size * vision.hidden_stride
    per_side = -(-side // reach)
    # The tower pads the grid on the right and below to whole groups.
    canvas = (per_side * reach, per_side * reach)
    entries, rest = divmod(len(context.tensors["pixel_values"]), _n_images(context))
    tiles = 1 if rest else entries
    layouts = []
    for size in context.sizes:
        place = stretched(size, (side, side))
        parts = [
            grid_layout(per_side, per_side, canvas, place, size, tile=tile) for tile in range(tiles)
        ]
        whole = parts[0] if tiles == 1 else without_boxes(joined(parts), NOTE)
        patches = side // vision.patch_size
        if patches == per_side * vision.hidden_stride:  # else some groups are part padding
            whole = blocks_of_patches(whole, (patches, patches), vision.hidden_stride)
        layouts.append(whole)
    return layouts


def _n_images(context: ImageContext) -> int:
    ids = context.tensors.get("input_ids")
    return len(context.sizes) * (1 if ids is None else len(ids))


FAMILY = Family(
    name="ovis2",
    model_types=("ovis2",),
    towers=(
        Tower(
            "vision",
            "model.vision_tower.transformer.encoder.layers",
            "vision_config",
            Block(
                attn="attention",
                q="attention.q_proj",
                k="attention.k_proj",
                v="attention.v_proj",
                o="attention.out_proj",
                attn_out="attention.out_proj",
                mlp_norm="rms_norm2",
                down="ffn.down_proj",
                mlp_out="ffn",
                attn_norm="rms_norm1",
            ),
            final_norm="model.vision_tower.transformer.rms_norm",
        ),
        TEXT,
    ),
    layout=layout,
    pixels=pixels,
    projector="model.visual_embeddings_table",
    projector_ndim=3,
    special="projector.out embeds a distribution over visual words; indicator tokens are embedded "
    "beside it and stay text",
)
