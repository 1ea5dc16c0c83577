"""From token grids to pixels of the image that the user gave: shared by the families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lvlm_interp.tokens import NONE, ImageLayout

Size = tuple[int, int]
"""(width, height)."""

FIELDS = ("kind", "row", "col", "tile", "box")
"""What an `ImageLayout` says of each token."""


@dataclass(frozen=True)
class Placement:
    """How an image was placed on the model's canvas: canvas = scale * image + offset, in pixels."""

    scale_x: float = 1.0
    scale_y: float = 1.0
    offset_x: float = 0.0
    offset_y: float = 0.0

    def to_image(self, box: np.ndarray, size: Size | None) -> np.ndarray:
        """Boxes on the canvas (`... 4`) as boxes in the image, clipped to it."""
        scale = np.array([self.scale_x, self.scale_y] * 2)
        out = (box - np.array([self.offset_x, self.offset_y] * 2)) / scale
        if size is not None:
            out = np.clip(out, 0, np.array(size * 2, dtype=float))
        return out


def stretched(size: Size | None, canvas: Size) -> Placement:
    """Placement of an image that is resized to the canvas, whatever its aspect ratio."""
    if size is None:
        return Placement()
    return Placement(canvas[0] / size[0], canvas[1] / size[1])


def placement(processor: Any, size: Size | None, canvas: Size) -> Placement:
    """Placement by a resize (exact, or of the shortest edge with a center crop), perhaps padded.

    Args:
        processor: The image processor, or None when only the canvas is known.
        size: (width, height) of the image, None when unknown: boxes are then canvas pixels.
        canvas: (width, height) that the vision tower sees.
    """
    if processor is None or size is None:
        return Placement()
    width, height = size
    pad_x = pad_y = 0
    # LLaVA as trained: a square of the longer side, with the image in the middle.
    if getattr(processor, "do_pad", False) and hasattr(processor, "pad_to_square"):
        side = max(size)
        pad_x, pad_y = (side - width) // 2, (side - height) // 2
        width = height = side
    resize = getattr(processor, "do_resize", False)
    target = dict(getattr(processor, "size", None) or {}) if resize else {}
    if edge := target.get("shortest_edge"):
        scale_x = scale_y = edge / min(width, height)
    elif "height" in target and "width" in target:
        scale_x, scale_y = target["width"] / width, target["height"] / height
    else:
        scale_x = scale_y = 1.0
    offset_x = offset_y = 0.0
    if getattr(processor, "do_center_crop", False):
        offset_x = (canvas[0] - round(width * scale_x)) / 2
        offset_y = (canvas[1] - round(height * scale_y)) / 2
    return Placement(scale_x, scale_y, offset_x + pad_x * scale_x, offset_y + pad_y * scale_y)


def grid_layout(
    rows: int,
    cols: int,
    canvas: Size,
    place: Placement,
    size: Size | None,
    tile: int = 0,
) -> ImageLayout:
    """A plain grid of `rows` x `cols` tokens over a canvas (width, height), row by row."""
    row, col = (axis.ravel() for axis in np.mgrid[:rows, :cols])
    step_x, step_y = canvas[0] / cols, canvas[1] / rows
    box = np.stack([col * step_x, row * step_y, (col + 1) * step_x, (row + 1) * step_y], -1)
    kind = np.full(rows * cols, "image", dtype=object)
    box = place.to_image(box.astype(float), size)
    # What shows padding alone has no place in the image.
    box[(box[:, 0] >= box[:, 2]) | (box[:, 1] >= box[:, 3])] = np.nan
    return ImageLayout(kind, row, col, np.full(rows * cols, tile), box)


def tiled_layout(
    tiles: Size, grid: Size, canvas: Size, size: Size | None, first: int = 0
) -> list[ImageLayout]:
    """Tiles of a stretched image, row by row, each with its own grid of tokens.

    Args:
        tiles: (columns, rows) of tiles over the image.
        grid: (columns, rows) of tokens in a tile.
        canvas: (width, height) of one tile.
        size: (width, height) of the image.
        first: Number of the first tile.
    """
    columns, rows = tiles
    whole = stretched(size, (canvas[0] * columns, canvas[1] * rows))
    return [
        grid_layout(
            grid[1],
            grid[0],
            canvas,
            replace(whole, offset_x=-column * canvas[0], offset_y=-row * canvas[1]),
            size,
            tile=first + row * columns + column,
        )
        for row in range(rows)
        for column in range(columns)
    ]


def tokens_without_place(n: int, kind: str, note: str) -> ImageLayout:
    """Tokens that stand for no place in the image (queries, separators, one placeholder)."""
    none = np.full(n, -1)
    return ImageLayout(
        np.full(n, kind, dtype=object), none, none, none, np.full((n, 4), np.nan), note
    )


def joined(parts: Sequence[ImageLayout]) -> ImageLayout:
    """Several parts of one image, one behind the other."""
    towers = sorted({tower for part in parts for tower in part.behind})
    return ImageLayout(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS),
        note="; ".join(sorted({part.note for part in parts if part.note})),
        behind={tower: _stacked([_parts_of(part, tower) for part in parts]) for tower in towers},
    )


def _parts_of(layout: ImageLayout, tower: str) -> np.ndarray:
    return layout.behind.get(tower, np.full((len(layout), 1), NONE))


def _stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    width = max(part.shape[1] for part in parts)
    fill = [np.full((len(part), width - part.shape[1]), NONE) for part in parts]
    return np.concatenate([np.hstack(pair) for pair in zip(parts, fill, strict=True)])


def taken(layout: ImageLayout, at: np.ndarray | slice) -> ImageLayout:
    """Some of an image's tokens."""
    behind = {tower: parts[at] for tower, parts in layout.behind.items()}
    return replace(layout, **{name: getattr(layout, name)[at] for name in FIELDS}, behind=behind)


def made_of(
    layout: ImageLayout, parts: Mapping[str, np.ndarray], lengths: Mapping[str, int]
) -> ImageLayout:
    """The same tokens with what is behind them.

    Args:
        layout: Tokens of one image.
        parts: By tower, positions counted within the image; `token` or `token part`.
        lengths: By tower, positions of the image there.
    """
    behind = {tower: at.reshape(len(layout), -1) for tower, at in parts.items()}
    return replace(layout, behind=behind, lengths=dict(lengths))


def one_to_one(layout: ImageLayout, dropped: int = 0) -> ImageLayout:
    """Each token is one position of the tower, of which the model drops the first ones."""
    token, n = np.arange(len(layout)), len(layout)
    parts = {"vision": token + dropped, "projector": token}
    return made_of(layout, parts, {"vision": n + dropped, "projector": n})


def blocks_of_patches(
    layout: ImageLayout, patches: Size, block: int, leading: int = 0, trailing: int = 0
) -> ImageLayout:
    """Each token is a square block of patches of its tile (pooled, or shuffled into its channels).

    Args:
        layout: Tokens of one image, the tiles in the order in which the tower has them.
        patches: (columns, rows) of patches in a tile.
        block: Side of a block.
        leading: Class and register tokens in front of each tile's patches.
        trailing: The same behind them.
    """
    _, first, tile = np.unique(layout.tile, return_index=True, return_inverse=True)
    entry = np.argsort(np.argsort(first))[tile]
    each = leading + patches[0] * patches[1] + trailing
    down, right = (axis.ravel() for axis in np.mgrid[:block, :block])
    row = layout.row[:, None] * block + down
    col = layout.col[:, None] * block + right
    vision = entry[:, None] * each + leading + row * patches[0] + col
    n_tiles, n = len(first), len(layout)
    lengths = {"vision": n_tiles * each, "projector": n}
    return made_of(layout, {"vision": vision, "projector": np.arange(n)}, lengths)


def without_boxes(layout: ImageLayout, note: str) -> ImageLayout:
    """The same tokens where only their order is known, not their place."""
    return replace(layout, box=np.full_like(layout.box, np.nan), note=note)


def random_pixels(*shape: int) -> torch.Tensor:
    """Pixels of the self-check's image."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def square(config: Any) -> int:
    """Side of the images that a vision tower takes."""
    side = config.image_size
    return side[0] if isinstance(side, list | tuple) else side


def patch(config: Any) -> int:
    """Side of a patch of a vision tower."""
    side = config.patch_size
    return side[0] if isinstance(side, list | tuple) else side
