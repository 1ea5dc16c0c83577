"""Pictures over the image: heat, and the words of its patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from lvlm_interp.errors import UsageError
from lvlm_interp.models.inputs.images import open_image
from lvlm_interp.plotting import style

_WORD_FONT = 6.0
_LONGEST_WORD = 12
_LETTER = 0.0094 * _WORD_FONT
"""Inches that a letter of a word takes."""
_LABELS = "Blues"


def overlay(
    image: Any,
    grid: np.ndarray,
    *,
    label: str = "value",
    box: Sequence[float] | None = None,
    limits: tuple[float, float] | None = None,
    signed: bool = False,
    title: str = "",
    venue: str = "neurips2024",
    width: str | float = "full",
) -> Figure:
    """An image, and beside it the same under a heat map of its token grid.

    Args:
        image: A PIL image or a path.
        grid: One value per token; shape `row col`; NaN stays clear.
        label: What the colour is, with its unit.
        box: Left, top, right, bottom in pixels of something to frame.
        limits: Values of the ends of the colour bar; the range of the grid by default.
        signed: Centre the colours at 0.
        title: Over the heat map.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: The grid is not two-dimensional or holds no number.
        InputError: The image cannot be read.
    """
    picture, values = open_image(image), _grid(grid, "overlay")
    low, high = limits or (float(np.nanmin(values)), float(np.nanmax(values)))
    if signed and limits is None:
        high = max(abs(low), abs(high)) or 1.0
        low = -high
    cmap = style.SIGNED if signed else style.AMOUNT
    ratio = picture.height / picture.width
    with style.sheet(venue, width=width, ratio=0.84 * ratio, cols=2) as (figure, axes):
        left, right = axes[0]
        left.imshow(picture)
        right.imshow(faded(picture))
        norm = Normalize(low, high if high > low else low + 1)
        shown = right.imshow(
            np.ma.masked_invalid(values),
            cmap=cmap,
            norm=norm,
            alpha=0.72,
            extent=(-0.5, picture.width - 0.5, picture.height - 0.5, -0.5),
        )
        right.set(xlim=left.get_xlim(), ylim=left.get_ylim())
        for axis, name in ((left, "image"), (right, title)):
            bare(axis, name)
            if box is not None:
                _frame(axis, box)
        figure.colorbar(shown, ax=right, label=label, fraction=0.046, pad=0.03)
    return figure


def lens_grid(
    image: Any,
    words: Mapping[int, np.ndarray] | np.ndarray,
    probs: Mapping[int, np.ndarray] | np.ndarray,
    *,
    layers: Sequence[int] | None = None,
    box: Sequence[float] | None = None,
    columns: int = 2,
    venue: str = "neurips2024",
    width: str | float | None = None,
) -> Figure:
    """The top word of each patch printed over the image, a panel per layer.

    Args:
        image: A PIL image or a path.
        words: Words by layer, each of shape `row col`; or one array of shape `[layer] row col`.
        probs: Their probabilities, likewise; a darker label is a higher probability.
        layers: Names of the layers of an array.
        box: Left, top, right, bottom in pixels of something to frame.
        columns: Panels in a row.
        venue: Fonts, and what `width` means.
        width: `full`, `half` or inches, with words cut to what fits; None is as wide as the words
            need, which for a grid of 24 x 24 is a screen or a poster.

    Raises:
        UsageError: Words and probabilities differ in layers or shape.
        InputError: The image cannot be read.
    """
    picture = open_image(image)
    words, probs = _by_layer(words, layers), _by_layer(probs, layers)
    shapes = {grid.shape for grid in (*words.values(), *probs.values())}
    if list(words) != list(probs) or len(shapes) != 1:
        raise UsageError(
            f"lens_grid needs words and probabilities of the same layers and shape, got layers "
            f"{list(words)} and {list(probs)}, shapes {sorted(shapes)}."
        )
    n_rows, n_cols = shapes.pop()
    columns = min(columns, len(words))
    rows = -(-len(words) // columns)
    letters = _longest(words)
    if width is not None:
        room = (style.inches(venue, width) - 0.7) / (columns * n_cols)
        letters = max(3, min(letters, int(0.9 * room / _LETTER)))
    cell = _LETTER * letters if width is None else room
    wide = columns * n_cols * cell + 0.7
    tall = rows * (n_rows * cell * picture.height / picture.width * n_cols / n_rows + 0.3)
    options = {"width": wide, "height": tall, "rows": rows, "cols": columns}
    with style.sheet(venue, **options) as (figure, axes):
        for axis in axes.ravel()[len(words) :]:
            axis.set_axis_off()
        top = max(float(np.nanmax(grid)) for grid in probs.values())
        shades = ScalarMappable(Normalize(0, max(top, 1e-9)), _LABELS)
        for axis, layer in zip(axes.ravel(), words, strict=False):
            _word_panel(axis, picture, words[layer], probs[layer], shades, letters)
            bare(axis, f"layer {layer}" if layer >= 0 else "input of layer 0")
            if box is not None:
                _frame(axis, box)
        figure.colorbar(
            shades, ax=axes, label="probability of the top word", fraction=0.03, pad=0.02
        )
    return figure


def _word_panel(
    axis: Axes,
    picture: Image.Image,
    words: np.ndarray,
    probs: np.ndarray,
    shades: ScalarMappable,
    letters: int,
) -> None:
    extent = (-0.5, picture.width - 0.5, picture.height - 0.5, -0.5)
    axis.imshow(picture, extent=extent)
    n_rows, n_cols = words.shape
    wide, tall = picture.width / n_cols, picture.height / n_rows
    tints = shades.to_rgba(np.nan_to_num(probs))
    for row, col in np.ndindex(words.shape):
        word = str(words[row, col])
        if not word:
            continue
        word = word if len(word) <= letters else word[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}"
        shade = tints[row, col]
        light = sum(share * part for share, part in zip((0.3, 0.59, 0.11), shade, strict=False))
        axis.text(
            (col + 0.5) * wide - 0.5,
            (row + 0.5) * tall - 0.5,
            word,
            ha="center",
            va="center",
            fontsize=_WORD_FONT,
            parse_math=False,
            color="white" if light < 0.55 else "black",
            bbox={"boxstyle": "round,pad=0.15", "fc": shade, "ec": "0.35", "lw": 0.3},
        )
    axis.set(xlim=extent[:2], ylim=extent[2:])


def _longest(words: Mapping[int, np.ndarray]) -> int:
    longest = max(len(str(word)) for grid in words.values() for word in grid.ravel())
    return min(max(longest, 5), _LONGEST_WORD)


def _by_layer(grids: Any, layers: Sequence[int] | None) -> dict[int, np.ndarray]:
    if isinstance(grids, Mapping):
        return {int(layer): np.asarray(grid) for layer, grid in grids.items()}
    stacked = np.asarray(grids)
    stacked = stacked[None] if stacked.ndim == 2 else stacked
    names = range(len(stacked)) if layers is None else layers
    return dict(zip(names, stacked, strict=True))


def _grid(grid: np.ndarray, figure: str) -> np.ndarray:
    values = np.asarray(grid, dtype=float)
    if values.ndim != 2 or not np.isfinite(values).any():
        raise UsageError(
            f"{figure} needs one value per token of shape (row, col), got shape {values.shape} "
            f"with {int(np.isfinite(values).sum())} numbers."
        )
    return values


def faded(picture: Image.Image) -> Image.Image:
    """Grey and lighter, so that the only colours are those of the heat."""
    grey = picture.convert("L").convert("RGB")
    return Image.blend(grey, Image.new("RGB", grey.size, "white"), 0.35)


def bare(axis: Axes, title: str) -> None:
    """A panel without ticks and frame, with its title on the left."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_title(title, loc="left")


def _frame(axis: Axes, box: Sequence[float]) -> None:
    left, top, right, bottom = box
    size = (right - left, bottom - top)
    for colour, wide in (("white", 2.4), ("black", 1.0)):
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), *size, fill=False, ec=colour, lw=wide))
