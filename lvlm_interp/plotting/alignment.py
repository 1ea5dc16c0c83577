"""Alignment: layer against layer, and representation beside behaviour through training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lvlm_interp.alignment import Profile, Trajectory
from lvlm_interp.errors import UsageError
from lvlm_interp.plotting import style

__all__ = ["alignment_map", "trajectory"]

_NAMES = {
    "cka": "CKA (debiased)",
    "mutual_knn": "mutual kNN",
    "cosine": "raw cosine",
    "accuracy": "right answers",
    "text_accuracy": "words for the image",
}
_PRINTED = 100
"""Up to this many cells the numbers stand in the map."""


def alignment_map(
    profile: Profile,
    *,
    metric: str = "cka",
    column: str = "value",
    venue: str = "neurips2024",
    width: str | float = "half",
) -> Figure:
    """Layers of one side against layers of the other; the best pair is framed.

    Args:
        profile: What `alignment.profile` gave.
        metric: Which of its metrics.
        column: `value`, or `score`, which is 0 where the null is not passed.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: The metric was not measured.
    """
    values = profile.matrix(metric, column)
    best = profile.best.set_index("metric").loc[metric]
    table = values.to_numpy(dtype=float)
    with style.sheet(venue, width=width, ratio=0.9) as (figure, axes):
        axis = axes[0, 0]
        top = max(float(np.nanmax(np.abs(table))), 1e-9)
        shown = axis.imshow(
            table, cmap=style.SIGNED, vmin=-top, vmax=top, aspect="auto", origin="lower"
        )
        figure.colorbar(shown, ax=axis, label=_name(metric), fraction=0.05, pad=0.02)
        rows, columns = list(values.index), list(values.columns)
        _site_ticks(axis, columns, rows)
        axis.set(xlabel=_words(best["other_position"]), ylabel=_words(best["position"]))
        axis.spines[:].set_visible(False)
        if best["site"] in rows and best["other_site"] in columns:
            x, y = columns.index(str(best["other_site"])), rows.index(str(best["site"]))
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, lw=1.4, ec="black"))
        if table.size <= _PRINTED:
            for y, x in np.ndindex(table.shape):
                text = f"{table[y, x] + 0:.2f}".replace("0.", ".").replace("-", "\N{MINUS SIGN}")
                pick = "white" if abs(table[y, x]) > 0.55 * top else "black"
                axis.text(x, y, text, ha="center", va="center", fontsize=6, color=pick)
        style.note(axis, style.n_label([profile.n], "examples"))
    return figure


def trajectory(
    found: Trajectory,
    *,
    metrics: Sequence[str] = ("cka", "mutual_knn", "cosine"),
    condition: str = "all",
    behaviour: Sequence[str] = ("accuracy", "text_accuracy"),
    venue: str = "neurips2024",
    width: str | float = "full",
) -> Figure:
    """Representation on the left, behaviour on the right, over the same models in order.

    Similarities are those of the first site (filled) and of the last one (open markers), with their
    intervals; the small dotted line is the mean of each calibrated metric's null.

    Args:
        found: What `alignment.stages` or `compare` gave.
        metrics: Similarities to draw.
        condition: Which examples.
        behaviour: Of `accuracy` and `text_accuracy`.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: The condition was not measured.
    """
    frame = found.table.frame
    part = frame[(frame["condition"] == condition) & frame["level"].isna() & frame["head"].isna()]
    if part.empty:
        known = ", ".join(frame["condition"].dropna().unique())
        raise UsageError(f"no condition {condition!r} in these results: {known}")
    with style.sheet(venue, width=width, cols=2, ratio=0.75) as (figure, axes):
        left, right = axes[0]
        sites = list(part["site"].dropna().unique())
        for index, metric in enumerate(metrics):
            own = part[part["metric"] == metric]
            for site, filled in [(site, True) for site in sites[:1]] + [
                (site, False) for site in sites[1:][-1:]
            ]:
                _series(left, own[own["site"] == site], _name(metric), index, filled=filled)
        for index, metric in enumerate(behaviour):
            _series(right, part[part["metric"] == metric], _name(metric), index, filled=True)
        for axis, label in ((left, "similarity"), (right, "share right")):
            axis.set_xticks(range(len(found.models)), found.models, rotation=35, ha="right")
            axis.set(ylabel=label, xlim=(-0.4, len(found.models) - 0.6))
        right.set_ylim(-0.03, 1.03)
        for axis in (left, right):
            handles, texts = axis.get_legend_handles_labels()
            axis.legend(handles, texts, loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=2)
        style.note(left, f"filled: {sites[0]}, open: {sites[-1]}" if sites else "")
        style.note(right, style.n_label(part["n"].dropna(), "examples"))
    return figure


def _series(axis: Axes, part: pd.DataFrame, name: str, index: int, *, filled: bool) -> None:
    part = part.sort_values("order")
    colour, marker = style.COLOURS[index % len(style.COLOURS)], style.MARKERS[index]
    places, heights = part["order"].to_numpy(float), part["value"].to_numpy(float)
    axis.plot(
        places,
        heights,
        color=colour,
        ls="-" if filled else "--",
        marker=marker,
        mfc=colour if filled else "white",
        label=name if filled else None,
    )
    if "low" in part and part["low"].notna().any():
        low, high = part["low"].to_numpy(float), part["high"].to_numpy(float)
        axis.fill_between(places, low, high, color=colour, alpha=0.15, lw=0)
    if filled and "null" in part and part["null"].notna().any():
        axis.plot(places, part["null"].to_numpy(float), color=colour, ls=":", lw=0.8)


def _site_ticks(axis: Axes, x: Sequence[str], y: Sequence[str]) -> None:
    for names, place, turn in ((x, axis.set_xticks, 60), (y, axis.set_yticks, 0)):
        step = -(-len(names) // 24)
        short = [name.replace("text.", "").replace(".resid_post", "") for name in names]
        place(range(0, len(names), step), short[::step], rotation=turn)
    axis.tick_params(length=0)


def _name(metric: str) -> str:
    return _NAMES.get(metric, metric.replace("_", " "))


def _words(position: object) -> str:
    return str(position).replace("_", " ")
