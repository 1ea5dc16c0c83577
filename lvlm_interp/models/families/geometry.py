"""From token grids to pixels of the image that the user gave: shared by the families."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lvlm_interp.tokens import ImageLayout


@dataclass(frozen=True)
class Placement:
    """How an image was placed on the model's canvas: canvas = scale * image + offset, in pixels."""

    scale_x: float = 1.0
    scale_y: float = 1.0
    offset_x: float = 0.0
    offset_y: float = 0.0

    def to_image(self, box: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
        """Boxes on the canvas (`... 4`) as boxes in the image, clipped to it."""
        scale = np.array([self.scale_x, self.scale_y] * 2)
        out = (box - np.array([self.offset_x, self.offset_y] * 2)) / scale
        if size is not None:
            out = np.clip(out, 0, np.array(size * 2, dtype=float))
        return out


def placement(processor: Any, size: tuple[int, int] | None, canvas: tuple[int, int]) -> Placement:
    """Placement by a resize (exact, or of the shortest edge with a center crop).

    Args:
        processor: The image processor, or None when only the canvas is known.
        size: (width, height) of the image, None when unknown: boxes are then canvas pixels.
        canvas: (width, height) that the vision tower sees.
    """
    if processor is None or size is None:
        return Placement()
    width, height = size
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
    return Placement(scale_x, scale_y, offset_x, offset_y)


def grid_layout(
    rows: int,
    cols: int,
    canvas: tuple[int, int],
    place: Placement,
    size: tuple[int, int] | None,
    tile: int = 0,
) -> ImageLayout:
    """A plain grid of `rows` x `cols` tokens over a canvas (width, height), row by row."""
    row, col = (axis.ravel() for axis in np.mgrid[:rows, :cols])
    step_x, step_y = canvas[0] / cols, canvas[1] / rows
    box = np.stack([col * step_x, row * step_y, (col + 1) * step_x, (row + 1) * step_y], -1)
    kind = np.full(rows * cols, "image", dtype=object)
    return ImageLayout(
        kind, row, col, np.full(rows * cols, tile), place.to_image(box.astype(float), size)
    )
