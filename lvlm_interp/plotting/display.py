"""What results show in Jupyter: a small table and its figure."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from lvlm_interp.lens import LensResult
from lvlm_interp.plotting.curves import layer_curve
from lvlm_interp.plotting.images import lens_grid
from lvlm_interp.plotting.style import to_png
from lvlm_interp.results import Result, register_display

_PANELS = 4


def register() -> None:
    """Tell `results` how each type shows itself; calling it again changes nothing."""
    register_display(LensResult, show_lens)


def show_lens(result: LensResult) -> str:
    """The top words over the image at a few layers; without an image, entropy by layer."""
    return _shown(result, lens_figure, "Top word of each image token, by layer")


def lens_figure(result: LensResult, row: int = 0) -> Figure:
    """Words over the image of one row, at up to four layers spread from first to last."""
    image = result.images[row] if row < len(result.images) else None
    if image is None or isinstance(image, list | tuple):
        return layer_curve(
            result.table.select(metric="entropy"), label="entropy (nats)", unit="tokens"
        )
    layers = result.layers
    step = max(1, -(-(len(layers) - 1) // (_PANELS - 1))) if len(layers) > 1 else 1
    picked = sorted({*layers[::step], layers[-1]})
    grids = {layer: result.word_grid(layer, row=row) for layer in picked}
    return lens_grid(
        image,
        {layer: words for layer, (words, _) in grids.items()},
        {layer: probs for layer, (_, probs) in grids.items()},
    )


def _shown(result: Result, draw: Callable[[Any], Figure], caption: str) -> str:
    picture = base64.b64encode(to_png(draw(result))).decode()
    return (
        f'<figure><img alt="{html.escape(caption)}" style="max-width:100%" '
        f'src="data:image/png;base64,{picture}"/><figcaption>{html.escape(caption)}</figcaption>'
        f"</figure>{result.table._repr_html_()}"
    )
