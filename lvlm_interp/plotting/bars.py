"""Rates side by side: behaviour, and what an intervention changes."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
        _percent(axes[0, 0], f"{label} (% of {unit})")
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
        _percent(axes[0, 0], f"{label} (% of {unit})")
        _shared_legend(figure, axes[0, 0], True)
    return figure


def forest(
    table: Table,
    *,
    rows: str = "method",
    panels: str = "metric",
    reference: float | None = None,
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
        reference: A vertical line, such as chance.
        unit: What n counts.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: A missing column, or several values for one mark.
    """
    frame = estimates(table, [rows, panels], "forest")
    names, metrics = order(frame[rows]), order(frame[panels])
    options = {"cols": len(metrics), "height": 0.7 + 0.22 * len(names), "sharey": True}
    with style.sheet(venue, width=width, **options) as (figure, axes):
        for axis, metric in zip(axes[0], metrics, strict=True):
            part = frame[frame[panels] == metric]
            places = [names.index(name) for name in part[rows]]
            axis.errorbar(
                part["estimate"],
                places,
                xerr=intervals(part),
                fmt="o",
                color=style.COLOURS[0],
                lw=1.0,
            )
            if reference is not None:
                axis.axvline(reference, color="black", ls=(0, (1, 2)), lw=0.8)
            axis.set_title(str(metric).replace("_", " "), loc="left")
            axis.grid(axis="x", lw=0.3, color="0.85")
            style.note(axis, style.n_label(part["n"], unit if len(metrics) < 3 else ""))
        texts = [str(name).replace("_", " ") for name in names]
        axes[0, 0].set_yticks(range(len(names)), texts)
        axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
        figure.supxlabel("estimate with 95% interval", fontsize=7)
    return figure


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
    axis.set_ylim(-0.03, 1.03)
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])


def _shared_legend(figure: Figure, axis: Axes, wanted: bool) -> None:
    handles, texts = axis.get_legend_handles_labels()
    if wanted and handles:
        # matplotlib lists dots before marks with intervals.
        places = sorted(range(len(texts)), key=lambda i: texts[i].startswith("random"))
        handles, texts = [handles[i] for i in places], [texts[i] for i in places]
        figure.legend(handles, texts, loc="outside upper center", ncols=len(texts))
