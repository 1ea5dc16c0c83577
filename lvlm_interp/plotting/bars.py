"""Rates side by side: behaviour, and what an intervention changes."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lvlm_interp.errors import UsageError
from lvlm_interp.plotting import style
from lvlm_interp.plotting.columns import Table, estimates, intervals, order

STAGES = ("before", "after", "random")


def behaviour(
    table: Table,
    *,
    label: str = "error rate",
    unit: str = "questions",
    venue: str = "neurips2024",
    width: str | float = "full",
) -> Figure:
    """Rates per level and condition, models side by side.

    Args:
        table: Columns `level`, `condition`, and `estimate, low, high, n` or tidy values, as
            fractions; `model` where there are several.
        label: What the rate is.
        unit: What n counts.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: A missing column, or several values for one bar.
    """
    frame = estimates(table, ["level", "condition"], "behaviour", optional=["model"])
    levels = order(frame["level"])
    options = {"cols": len(levels), "height": 2.2, "sharey": True}
    with style.sheet(venue, width=width, **options) as (figure, axes):
        for axis, level in zip(axes[0], levels, strict=True):
            _bar_groups(axis, frame[frame["level"] == level])
            axis.set_title(str(level), loc="left")
            style.note(axis, style.n_label(frame.loc[frame["level"] == level, "n"]))
        _percent(axes[0, 0], f"{label} (% of {unit})\nbars: 95% interval")
        _shared_legend(figure, axes[0, 0], "model" in frame)
    return figure


def intervention(
    table: Table,
    *,
    label: str = "error rate",
    unit: str = "questions",
    venue: str = "neurips2024",
    width: str | float = "full",
) -> Figure:
    """Before and after acting on the model, with a dot for each random control.

    Args:
        table: Columns `condition`, `stage` (`before`, `after` or `random`), and
            `estimate, low, high, n`, as fractions; a `random` row for each draw, told apart by
            `draw`; `level` gives a panel each.
        label: What the rate is.
        unit: What n counts.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: A missing column, an unknown stage, or several values for one mark.
    """
    frame = estimates(table, ["condition", "stage"], "intervention", optional=["level", "draw"])
    unknown = sorted(set(frame["stage"]) - set(STAGES))
    if unknown:
        raise UsageError(f"intervention knows the stages {', '.join(STAGES)}, got {unknown[0]!r}.")
    levels = order(frame["level"]) if "level" in frame else [None]
    options = {"cols": len(levels), "height": 2.4, "sharey": True}
    with style.sheet(venue, width=width, **options) as (figure, axes):
        for axis, level in zip(axes[0], levels, strict=True):
            part = frame if level is None else frame[frame["level"] == level]
            _before_after(axis, part)
            axis.set_title("" if level is None else str(level), loc="left")
            style.note(axis, style.n_label(part["n"]))
        _percent(axes[0, 0], f"{label} (% of {unit})\nbars: 95% interval")
        _shared_legend(figure, axes[0, 0], True)
    return figure


def forest(
    table: Table,
    *,
    rows: str = "method",
    panels: str = "metric",
    hue: str | None = None,
    reference: float | None = None,
    limits: tuple[float, float] | None = None,
    label: str = "estimate",
    unit: str = "examples",
    venue: str = "neurips2024",
    width: str | float = "full",
) -> Figure:
    """Estimates with their intervals, one under the other; a panel per metric.

    Args:
        table: The columns named by `rows` and `panels`, and `estimate, low, high, n` or tidy
            values.
        rows: Column whose values stand one under the other.
        panels: Column whose values are panels.
        hue: Column that tells marks of one row apart, by colour and shape.
        reference: A vertical line, such as chance.
        limits: Ends of every horizontal axis; each panel's own by default.
        label: What is estimated, with its unit.
        unit: What n counts.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: A missing column, or several values for one mark.
    """
    keys = [rows, panels] if hue is None else [rows, panels, hue]
    frame = estimates(table, keys, "forest")
    names, metrics = order(frame[rows]), order(frame[panels])
    series = [None] if hue is None else order(frame[hue])
    tall = 0.7 + (0.22 + 0.12 * (len(series) - 1)) * len(names) + 0.25 * (hue is not None)
    options = {"cols": len(metrics), "height": tall, "sharey": True}
    with style.sheet(venue, width=width, **options) as (figure, axes):
        for axis, metric in zip(axes[0], metrics, strict=True):
            part = frame[frame[panels] == metric]
            for index, name in enumerate(series):
                mine = part if name is None else part[part[hue] == name]
                _marks(axis, mine, [names.index(row) for row in mine[rows]], index, len(series))
            _say_empty(axis, part, names, rows)
            if reference is not None:
                axis.axvline(reference, color="black", ls=(0, (1, 2)), lw=0.8)
            axis.set_title(str(metric).replace("_", " "), loc="left")
            axis.grid(axis="x", lw=0.3, color="0.85")
            if limits is not None:
                axis.set_xlim(limits)
            style.note(axis, style.n_label(part["n"], unit if len(metrics) < 3 else ""))
        texts = [str(name).replace("_", " ") for name in names]
        axes[0, 0].set_yticks(range(len(names)), texts)
        axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
        figure.supxlabel(f"{label}, 95% interval", fontsize=7)
        if hue is not None:
            handles = [
                Line2D([], [], color=style.COLOURS[i], marker=style.MARKERS[i], label=str(name))
                for i, name in enumerate(series)
            ]
            figure.legend(handles=handles, loc="outside upper center", ncols=len(series))
    return figure


def _marks(axis: Axes, part: pd.DataFrame, rows: list[int], index: int, of: int) -> None:
    """Estimates of one series, side by side with the others in their rows."""
    shift = (index - (of - 1) / 2) * 0.56 / of
    axis.errorbar(
        part["estimate"],
        [row + shift for row in rows],
        xerr=intervals(part),
        fmt=style.MARKERS[index % len(style.MARKERS)],
        color=style.COLOURS[index % len(style.COLOURS)],
        lw=1.0,
    )


def _say_empty(axis: Axes, part: pd.DataFrame, names: list, rows: str) -> None:
    """A dash in rows that have an estimate in other panels only."""
    for place, name in enumerate(names):
        if name not in set(part[rows]):
            axis.text(
                0.5,
                place,
                "\N{EM DASH}",
                ha="center",
                va="center",
                color="0.5",
                transform=axis.get_yaxis_transform(),
            )


def _bar_groups(axis: Axes, frame: pd.DataFrame) -> None:
    conditions = order(frame["condition"])
    models = order(frame["model"]) if "model" in frame else [None]
    wide = 0.8 / len(models)
    for index, model in enumerate(models):
        part = frame if model is None else frame[frame["model"] == model]
        places = [
            conditions.index(name) + (index - (len(models) - 1) / 2) * wide
            for name in part["condition"]
        ]
        axis.bar(
            places,
            part["estimate"],
            0.92 * wide,
            label=model,
            color=style.COLOURS[index],
            alpha=0.85,
            hatch=style.HATCHES[index],
            edgecolor="white",
            linewidth=0,
        )
        axis.errorbar(places, part["estimate"], intervals(part), fmt="none", ecolor="black", lw=0.8)
    _condition_ticks(axis, conditions)


def _before_after(axis: Axes, frame: pd.DataFrame) -> None:
    conditions = order(frame["condition"])
    marks = {"before": (-0.22, "o", style.COLOURS[1]), "after": (0.22, "s", style.COLOURS[0])}
    for stage, (shift, marker, colour) in marks.items():
        part = frame[frame["stage"] == stage]
        places = [conditions.index(name) + shift for name in part["condition"]]
        axis.errorbar(
            places,
            part["estimate"],
            intervals(part),
            fmt=marker,
            color=colour,
            lw=1.0,
            label=stage,
            markersize=4.5,
            markerfacecolor="white" if stage == "before" else colour,
        )
    draws = frame[frame["stage"] == "random"]
    for index, name in enumerate(conditions):
        values = draws.loc[draws["condition"] == name, "estimate"].to_numpy(float)
        # Spread by rank and not at random: the same table gives the same picture.
        spread = np.argsort(np.argsort(values, kind="stable")) % 5 / 4 - 0.5
        axis.scatter(
            index + 0.16 * spread,
            values,
            s=5,
            color=style.GREY,
            alpha=0.8,
            lw=0,
            label="random heads, one dot a draw" if index == 0 and len(values) else None,
            zorder=1,
        )
    _condition_ticks(axis, conditions)


def _condition_ticks(axis: Axes, names: list) -> None:
    # Narrow panels (several levels, many conditions) break the words earlier.
    figure = axis.get_figure()
    n_panels = len(figure.axes) if figure is not None else 1
    letters = max(8, int(100 / (n_panels * max(len(names), 1))))
    texts = [
        "\n".join(textwrap.wrap(str(name).replace("_", " "), letters, break_long_words=False))
        for name in names
    ]
    axis.set_xticks(range(len(names)), texts, fontsize=6)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.grid(axis="y", lw=0.3, color="0.85")


def _percent(axis: Axes, label: str) -> None:
    axis.set_ylabel(label)
    axis.set_ylim(-0.05, 1.05)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])


def _shared_legend(figure: Figure, axis: Axes, wanted: bool) -> None:
    handles, texts = axis.get_legend_handles_labels()
    if wanted and handles:
        # matplotlib lists dots before marks with intervals.
        places = sorted(range(len(texts)), key=lambda i: texts[i].startswith("random"))
        handles, texts = [handles[i] for i in places], [texts[i] for i in places]
        figure.legend(handles, texts, loc="outside upper center", ncols=len(texts))
