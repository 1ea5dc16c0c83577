"""Maps of values over layers: heads, and roles of tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lvlm_interp.plotting import style
from lvlm_interp.plotting.columns import Table, estimates, order

_PRINTED_CELLS = 96
"""Up to this many cells the numbers stand in the map."""


def head_map(
    table: Table,
    *,
    marked: Collection[tuple[int, int]] = (),
    label: str = "recovery (fraction)",
    limit: float | None = None,
    unit: str = "pairs",
    venue: str = "neurips2024",
    width: str | float = "full",
) -> Figure:
    """Layers x heads of a value, colours centred at 0.

    Args:
        table: Columns `layer`, `head`, and `estimate` (with `n`) or tidy values.
        marked: (layer, head) to frame.
        label: What the colour is, with its unit.
        limit: Value of the darkest colours; the largest one by default.
        unit: What n counts.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: A missing column, or several values for one head.
    """
    frame = estimates(table, ["layer", "head"], "head_map")
    frame = frame.dropna(subset=["layer", "head"])
    values = _matrix(frame, "layer", "head")
    cells = values.shape[0] / max(values.shape[1], 1)
    with style.sheet(venue, width=width, ratio=min(1.0, 0.75 * cells + 0.12)) as (figure, axes):
        axis = axes[0, 0]
        _draw(figure, axis, values.to_numpy(), label, limit)
        axis.set(xlabel="head", ylabel="layer")
        _ticks(axis, [str(int(h)) for h in values.columns], [str(int(x)) for x in values.index])
        heads, layers = list(map(int, values.columns)), list(map(int, values.index))
        for layer, head in marked:
            x, y = heads.index(head), layers.index(layer)
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, lw=1.6, ec="black"))
        style.note(axis, style.n_label(frame["n"], unit))
    return figure


def role_map(
    table: Table,
    *,
    role: str = "position",
    label: str = "recovery (fraction)",
    limit: float | None = None,
    roles: Sequence[str] | None = None,
    unit: str = "pairs",
    venue: str = "neurips2024",
    width: str | float = "full",
) -> Figure:
    """Roles of tokens x layers of a value, colours centred at 0.

    Args:
        table: Columns `layer`, the role's column, and `estimate` (with `n`) or tidy values.
        role: Column that holds the role.
        label: What the colour is, with its unit.
        limit: Value of the darkest colours; the largest one by default.
        roles: Which, and in which order from the top; all as they come by default.
        unit: What n counts.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: A missing column, or several values for one cell.
    """
    frame = estimates(table, ["layer", role], "role_map")
    names = list(roles) if roles is not None else order(frame[role])
    values = _matrix(frame, role, "layer").reindex(names)
    tall = 0.09 * len(names) + 0.22
    with style.sheet(venue, width=width, ratio=min(tall, 1.0)) as (figure, axes):
        axis = axes[0, 0]
        _draw(figure, axis, values.to_numpy(), label, limit)
        axis.set(xlabel="layer", ylabel="tokens")
        _ticks(axis, [str(int(x)) for x in values.columns], [_words(name) for name in names])
        axis.invert_yaxis()
        style.note(axis, style.n_label(frame["n"], unit))
    return figure


def _matrix(frame: pd.DataFrame, rows: str, cols: str) -> pd.DataFrame:
    return frame.pivot(index=rows, columns=cols, values="estimate").astype(float)


def _draw(figure: Figure, axis: Axes, values: np.ndarray, label: str, limit: float | None) -> None:
    finite = np.abs(values[np.isfinite(values)])
    top = limit if limit is not None else (finite.max() if finite.size else 1.0) or 1.0
    shown = axis.imshow(
        values, cmap=style.SIGNED, vmin=-top, vmax=top, aspect="auto", origin="lower"
    )
    figure.colorbar(shown, ax=axis, label=label, fraction=0.05, pad=0.02)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    for row, col in np.ndindex(values.shape):
        _print(axis, col, row, float(values[row, col]), top, values.size <= _PRINTED_CELLS)


def _print(axis: Axes, x: int, y: int, value: float, top: float, number: bool) -> None:
    """The number in its cell, or in large maps a minus sign, which the colours lose in grey."""
    colour = "white" if abs(value) > 0.55 * top else "black"
    if not np.isfinite(value):
        text, colour = "\N{MULTIPLICATION SIGN}", "0.5"
    elif number:
        # Adding 0 turns a rounded -0 into 0.
        text = f"{round(value, 2) + 0:.2f}".replace("-", "\N{MINUS SIGN}").replace("0.", ".")
    else:
        text = "\N{MINUS SIGN}" if value < -0.2 * top else ""
    if text:
        axis.text(x, y, text, ha="center", va="center", fontsize=6, color=colour)


def _ticks(axis: Axes, x: Sequence[str], y: Sequence[str]) -> None:
    for names, place, most in ((x, axis.set_xticks, 32), (y, axis.set_yticks, 20)):
        step = -(-len(names) // most)
        place(range(0, len(names), step), names[::step])


def _words(name: object) -> str:
    return str(name).replace("_", " ")
