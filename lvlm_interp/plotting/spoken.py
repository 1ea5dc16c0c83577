"""A sentence as a row of pictures: where each of its words was looked for in the image."""

from __future__ import annotations

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lvlm_interp.errors import UsageError
from lvlm_interp.lens import SpokenAttention
from lvlm_interp.models.inputs.images import open_image
from lvlm_interp.plotting import style
from lvlm_interp.plotting.images import bare, faded

__all__ = ["spoken"]


def spoken(
    result: SpokenAttention,
    *,
    row: int = 0,
    layer: int | None = None,
    head: int | None = None,
    columns: int = 4,
    most: int = 24,
    venue: str = "neurips2024",
    width: str | float = "full",
) -> Figure:
    """A panel per generated token: its attention over the image, all on one scale.

    Args:
        result: From `lens.spoken_attention`.
        row: Row of the batch.
        layer: Of the weights; the mean over all by default.
        head: Likewise.
        columns: Panels in a row.
        most: Tokens to show, from the first.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: The row said nothing, or its image is not known.
        InputError: The image's tokens have no grid.
    """
    image = result.images[row] if row < len(result.images) else None
    if image is None or isinstance(image, list | tuple):
        raise UsageError(f"Row {row} has no single image to draw on.")
    words = result.words[row][:most]
    if not words:
        raise UsageError(f"Row {row} said nothing: there is no step to draw.")
    picture = open_image(image)
    grids = [result.grid(step, layer=layer, head=head, row=row) for step in range(len(words))]
    top = max(float(np.nanmax(grid)) for grid in grids)
    shades = ScalarMappable(Normalize(0, top if top > 0 else 1.0), style.AMOUNT)
    columns = min(columns, len(words))
    rows = -(-len(words) // columns)
    # Room for a word over each panel, less what the colour bar takes.
    ratio = 0.9 * picture.height / picture.width + 0.12
    with style.sheet(venue, width=width, ratio=ratio, rows=rows, cols=columns) as (figure, axes):
        panels = axes.ravel()
        for axis, grid, word in zip(panels, grids, words, strict=False):
            axis.imshow(faded(picture))
            axis.imshow(
                np.ma.masked_invalid(grid),
                cmap=shades.cmap,
                norm=shades.norm,
                alpha=0.72,
                extent=(-0.5, picture.width - 0.5, picture.height - 0.5, -0.5),
            )
            # A dollar would begin a formula.
            bare(axis, word.replace("$", r"\$"))
        for axis in panels[len(words) :]:
            axis.set_axis_off()
        label = "attention" + ("" if head is not None else ", mean of heads")
        figure.colorbar(shades, ax=axes, label=label, fraction=0.03, pad=0.02)
    return figure
