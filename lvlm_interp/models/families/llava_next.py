"""LLaVA-NeXT and LLaVA-OneVision: a base view and the unpadded grid of any-resolution tiles."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import select_best_resolution

from lvlm_interp.models.families.blocks import vision_kind, with_vision
from lvlm_interp.models.families.geometry import (
    Placement,
    Size,
    grid_layout,
    joined,
    made_of,
    random_pixels,
    stretched,
    taken,
    tokens_without_place,
)
from lvlm_interp.models.families.llava import TEXT, VISION
from lvlm_interp.models.family import Family, ImageContext
from lvlm_interp.models.inputs.rows import RowContext, Rows, RowsByTower, images_of_rows
from lvlm_interp.tokens import NONE, ImageLayout


def layout(context: ImageContext) -> list[ImageLayout]:
    """Tile 0 is the whole image; tile 1 is the unpadded grid of all tiles with newline tokens."""
    sizes = context.tensors["image_sizes"][context.first : context.first + len(context.sizes)]
    counts = context.tensors.get("batch_num_images")
    tiled = counts is None or len(context.sizes) == 1
    return [
        image_layout(context.config, (int(width), int(height)), tiled=tiled)
        for height, width in sizes.tolist()
    ]


def image_layout(config: Any, size: Size, *, tiled: bool = True) -> ImageLayout:
    """Tokens of one image; one that is not tiled is padded to a square instead."""
    vision = config.vision_config
    side, per_side = vision.image_size, vision.image_size // vision.patch_size
    newline = tokens_without_place(1, "separator", "")
    if not tiled:
        edge = max(size)
        scale = side / edge
        square = Placement(
            scale, scale, (edge - size[0]) // 2 * scale, (edge - size[1]) // 2 * scale
        )
        whole = grid_layout(per_side, per_side, (side, side), square, size)
        return _finished(config, joined([_of_tiles(whole, per_side, 1, 0), newline]), 1)
    base = grid_layout(per_side, per_side, (side, side), stretched(size, (side, side)), size)
    parts = [_of_tiles(base, per_side, 1, 0), _unpadded(config, size, side, per_side)]
    return _finished(config, joined(parts), 1 + _n_tiles(config, size))


def _of_tiles(grid: ImageLayout, per_side: int, across: int, first: int) -> ImageLayout:
    """A grid over tiles, `across` of them in a row: which feature of which tile each token is."""
    tile = first + grid.row // per_side * across + grid.col // per_side
    feature = grid.row % per_side * per_side + grid.col % per_side
    return made_of(grid, {"projector": tile * per_side**2 + feature}, {})


def _finished(config: Any, layout: ImageLayout, n_tiles: int) -> ImageLayout:
    """With the tower's positions, which have class and register tokens in front of each tile."""
    features = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    leading = vision_kind(config).leading(config.vision_config)
    parts = layout.behind["projector"]
    vision = np.where(parts == NONE, NONE, parts + (parts // features + 1) * leading)
    lengths = {"vision": n_tiles * (features + leading), "projector": n_tiles * features}
    return made_of(layout, {"vision": vision, "projector": parts}, lengths)


def _unpadded(config: Any, size: Size, side: int, per_side: int) -> ImageLayout:
    """The grid over all tiles, cut to the rows and columns that hold image, a newline per row."""
    height, width = select_best_resolution((size[1], size[0]), config.image_grid_pinpoints)
    rows, cols = height // side * per_side, width // side * per_side
    cut_x, cut_y = _cut(size, cols, rows)
    whole = grid_layout(rows, cols, (width, height), _padded(size, (width, height)), size, tile=1)
    whole = _of_tiles(whole, per_side, width // side, 1)
    keep = (whole.row >= cut_y) & (whole.row < rows - cut_y)
    keep &= (whole.col >= cut_x) & (whole.col < cols - cut_x)
    kept = taken(whole, keep)
    kept = replace(kept, row=kept.row - cut_y, col=kept.col - cut_x)
    return _with_newlines(_thinned(config, kept, per_side))


def _cut(size: Size, cols: int, rows: int) -> tuple[int, int]:
    """Columns and rows of padding that the model drops on each side."""
    width, height = size
    if width / height > cols / rows:
        return 0, (rows - int(round(height * cols / width, 7))) // 2
    return (cols - int(round(width * rows / height, 7))) // 2, 0


def _padded(size: Size, canvas: Size) -> Placement:
    """Placement of an image that keeps its aspect ratio and is centered on the canvas."""
    width, height = size
    scale_x, scale_y = canvas[0] / width, canvas[1] / height
    if scale_x < scale_y:
        new = (canvas[0], min(math.ceil(height * scale_x), canvas[1]))
    else:
        new = (min(math.ceil(width * scale_y), canvas[0]), canvas[1])
    offset = ((canvas[0] - new[0]) // 2, (canvas[1] - new[1]) // 2)
    return Placement(new[0] / width, new[1] / height, *offset)


def _thinned(config: Any, grid: ImageLayout, per_side: int) -> ImageLayout:
    """OneVision resizes a grid of too many tokens bilinearly: each token then reads two by two."""
    mode = getattr(config, "vision_aspect_ratio", "")
    rows, cols = int(grid.row.max()) + 1, int(grid.col.max()) + 1
    limit = int(mode.removeprefix("anyres_max_")) if mode.startswith("anyres_max_") else None
    ratio = 0.0 if limit is None else math.sqrt(rows * cols / (limit * per_side**2))
    if ratio <= 1.1:
        return grid
    to_rows, to_cols = int(rows // ratio), int(cols // ratio)
    box = grid.box.reshape(rows, cols, 4)
    top, bottom = _sources(rows, to_rows)
    left, right = _sources(cols, to_cols)
    row, col = (axis.ravel() for axis in np.mgrid[:to_rows, :to_cols])
    first, last = box[top[row], left[col]], box[bottom[row], right[col]]
    feature = grid.behind["projector"].reshape(rows, cols)
    read = [feature[down[row], across[col]] for down in (top, bottom) for across in (left, right)]
    n = len(row)
    return ImageLayout(
        np.full(n, "image", dtype=object),
        row,
        col,
        np.full(n, 1),
        np.concatenate([first[:, :2], last[:, 2:]], -1),
        behind={"projector": np.stack(read, -1)},
    )


def _sources(n: int, to: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last cell that a bilinear resize from n to fewer cells reads."""
    center = np.clip((np.arange(to) + 0.5) * n / to - 0.5, 0, None)
    first = np.floor(center).astype(int)
    return first, np.minimum(first + (center > first), n - 1)


def _with_newlines(grid: ImageLayout) -> ImageLayout:
    newline = tokens_without_place(1, "separator", "")
    cols = int(grid.col.max()) + 1
    parts: list[ImageLayout] = []
    for start in range(0, len(grid), cols):
        parts += [taken(grid, slice(start, start + cols)), newline]
    return joined(parts)


def rows(context: RowContext) -> RowsByTower:
    """One entry per tile: the base view of an image, then its tiles."""
    config = context.config
    sizes = [(width, height) for height, width in context.tensors["image_sizes"].tolist()]
    tiled = [True] * len(sizes)
    groups = context.tensors.get("batch_num_images")
    if groups is not None:
        tiled = [count == 1 for count in groups.tolist() for _ in range(count)]
    known = list(zip(sizes, tiled, strict=True))
    lengths = [len(image_layout(config, size, tiled=cut)) for size, cut in known]
    entries = [1 + _n_tiles(config, size) if cut else 1 for size, cut in known]
    counts, first = [], 0
    for count in images_of_rows(context.slots, lengths):
        counts.append(sum(entries[first : first + count]))
        first += count
    return dict.fromkeys(("vision", "projector"), Rows.counted(counts))


def _n_tiles(config: Any, size: Size) -> int:
    side = config.vision_config.image_size
    height, width = select_best_resolution((size[1], size[0]), config.image_grid_pinpoints)
    return (height // side) * (width // side)


def pixels(config: Any) -> dict[str, Any]:
    """One image of the vision tower's size, with as many tiles as the model cuts it into."""
    side = config.vision_config.image_size
    height, width = select_best_resolution((side, side), config.image_grid_pinpoints)
    n = 1 + (height // side) * (width // side)
    return {
        "pixel_values": random_pixels(1, n, 3, side, side),
        "image_sizes": torch.tensor([[side, side]]),
    }


FAMILY = Family(
    name="llava_next",
    model_types=("llava_next",),
    towers=(VISION, TEXT),
    layout=layout,
    rows=rows,
    pixels=pixels,
    variant=lambda config: with_vision(FAMILY, config),
    needs=("pixel_values", "image_sizes"),
    special="a base view, then the unpadded grid of the tiles with a newline token per row",
)

ONEVISION = replace(
    FAMILY,
    name="llava_onevision",
    model_types=("llava_onevision",),
    variant=lambda config: with_vision(ONEVISION, config),
    special="as LLaVA-NeXT with SigLIP; too many tokens are resized bilinearly; several images of "
    "a row are not tiled",
)

VIDEO = replace(
    FAMILY,
    name="llava_next_video",
    model_types=("llava_next_video",),
    variant=lambda config: with_vision(VIDEO, config),
    special="images as in LLaVA-NeXT; videos are refused",
)
