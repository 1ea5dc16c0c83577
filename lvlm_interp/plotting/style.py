"""How every figure looks: sizes by venue, colours, fonts, and files with reproducible bytes."""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tueplots import figsizes, fontsizes

from lvlm_interp.errors import UsageError
from lvlm_interp.files import atomic_path

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito (2008), dark ones first, told apart by colour-blind readers."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CONTROL_MARKERS = ("x", "+", "1", "2")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo")
"""Second code beside colour, so that a figure printed in grey can be read."""
GREY = "#8a8a8a"
SIGNED = "RdBu_r"
AMOUNT = "viridis"

_SMALLEST_FONT = 6.0
_DPI = 300
_FIXED = {
    "pdf": {"CreationDate": None, "ModDate": None},
    "png": {"Software": None},
    "svg": {"Date": None},
}


class Sheet(Figure):
    """A matplotlib figure that Jupyter shows without pyplot."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


def venues() -> list[str]:
    """Names that `venue=` takes, such as `neurips2024` or `icml2024`."""
    names = {name.removesuffix("_half").removesuffix("_full") for name in _venue_functions()}
    return sorted(name for name in names if hasattr(fontsizes, name))


@contextmanager
def sheet(
    venue: str,
    *,
    width: str | float = "full",
    ratio: float = 0.62,
    rows: int = 1,
    cols: int = 1,
    height: float | None = None,
    **subplots: Any,
) -> Iterator[tuple[Figure, np.ndarray]]:
    """An empty figure of a venue's size, and the style to draw in while the context is open.

    Args:
        venue: One of `venues()`.
        width: `full` text width, `half` of it (a column where the venue has two), or inches.
        ratio: Height of one panel over its width.
        rows: Of panels.
        cols: Of panels.
        height: Of the figure in inches; overrides `ratio`.
        subplots: For `Figure.subplots`.

    Yields:
        The figure and its axes, of shape `rows cols`.

    Raises:
        UsageError: An unknown venue or width.
    """
    wide = inches(venue, width)
    tall = height if height is not None else wide / cols * ratio * rows
    with mpl.rc_context(cast(Any, settings(venue))):
        figure = Sheet(figsize=(wide, tall), layout="constrained")
        yield figure, figure.subplots(rows, cols, squeeze=False, **subplots)


def inches(venue: str, width: str | float) -> float:
    """A width in inches: `full`, `half`, or a number as it is.

    Raises:
        UsageError: An unknown venue or width.
    """
    functions = _venue_functions()
    if isinstance(width, (int, float)):
        return float(width)
    if width not in ("full", "half"):
        raise UsageError(f"width must be 'full', 'half' or inches, got {width!r}.")
    if venue not in venues():
        raise UsageError(f"venue must be one of {', '.join(venues())}, got {venue!r}.")
    if f"{venue}_{width}" in functions:
        return float(functions[f"{venue}_{width}"]()["figure.figsize"][0])
    full = float(functions[venue]()["figure.figsize"][0])
    return full if width == "full" else full / 2


def settings(venue: str) -> dict[str, Any]:
    """Matplotlib settings of a venue.

    Raises:
        UsageError: An unknown venue.
    """
    if venue not in venues():
        raise UsageError(f"venue must be one of {', '.join(venues())}, got {venue!r}.")
    sizes = {
        key: max(float(size), _SMALLEST_FONT) for key, size in getattr(fontsizes, venue)().items()
    }
    return {
        **sizes,
        "font.family": "DejaVu Sans",
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "axes.axisbelow": True,
        "lines.linewidth": 1.2,
        "lines.markersize": 3.5,
        "legend.frameon": False,
        "hatch.linewidth": 0.5,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "image.interpolation": "nearest",
        **_FILES,
    }


_FILES = {
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "lvlm-interp",
    "svg.fonttype": "path",
    "savefig.dpi": _DPI,
}


def save(
    figure: Figure, path_stem: str | Path, formats: Sequence[str] = ("pdf", "png")
) -> list[Path]:
    """Write a figure beside each other in several formats; each file is whole or absent.

    Fonts are embedded, and the same figure gives the same bytes.

    Args:
        figure: What to write.
        path_stem: Path without a suffix.
        formats: Of `pdf`, `png`, `svg`.

    Returns:
        The paths written.

    Raises:
        UsageError: Another format.
    """
    unknown = [name for name in formats if name not in _FIXED]
    if unknown:
        raise UsageError(f"a figure is saved as {', '.join(_FIXED)}, not as {unknown[0]!r}.")
    paths = []
    with mpl.rc_context(cast(Any, _FILES)):
        for name in formats:
            path = Path(f"{path_stem}.{name}")
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=name, metadata=_FIXED[name])
            paths.append(path)
    return paths


def to_png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG bytes."""
    buffer = io.BytesIO()
    with mpl.rc_context(cast(Any, _FILES)):
        figure.savefig(buffer, format="png", dpi=dpi, metadata=_FIXED["png"])
    return buffer.getvalue()


def n_label(n: Any, what: str = "") -> str:
    """`n = 200 pairs`, or a range where the rows differ; empty where nothing is known."""
    values = sorted({int(value) for value in n if value == value})
    if not values:
        return ""
    many = str(values[0]) if len(values) == 1 else f"{values[0]}\N{EN DASH}{values[-1]}"
    return f"n = {many} {what}".strip()


def note(axes: Axes, text: str) -> None:
    """A small line over the right end of the axes, for n and the interval."""
    if text:
        axes.set_title(text, loc="right", fontsize=_SMALLEST_FONT, color="#444444")


def _venue_functions() -> dict[str, Any]:
    return {
        name: function
        for name, function in inspect.getmembers(figsizes, inspect.isfunction)
        if name[-1].isdigit() or name.endswith(("_full", "_half"))
    }
