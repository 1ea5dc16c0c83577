"""Values along layers, with bands for their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lvlm_interp.plotting import style
from lvlm_interp.plotting.columns import Table, estimates, order
from lvlm_interp.probing import ProbeSweep
from lvlm_interp.sites import Site

_TOWERS = {
    "vision": "vision tower",
    "qformer": "queries",
    "projector": "",
    "text": "language model",
}


def layer_curve(
    table: Table,
    *,
    hue: str | None = None,
    x: str = "layer",
    label: str = "value",
    baseline: float | None = None,
    baseline_label: str = "chance",
    unit: str = "",
    venue: str = "neurips2024",
    width: str | float = "half",
) -> Figure:
    """A value by layer, one line per value of `hue`, with a band for its interval.

    Args:
        table: Columns `layer` (or `x`), `hue`, and `estimate, low, high, n` or tidy values.
        hue: Column that tells lines apart.
        x: Column of the horizontal axis.
        label: What the value is, with its unit.
        baseline: Height of a dotted line, such as chance.
        baseline_label: What that line is.
        unit: What n counts.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: A missing column, or several values for one point.
    """
    frame = estimates(table, [x] if hue is None else [x, hue], "layer_curve").dropna(subset=[x])
    with style.sheet(venue, width=width, ratio=0.5 if width == "full" else 0.72) as (figure, axes):
        axis = axes[0, 0]
        names = [None] if hue is None else order(frame[hue])
        for index, name in enumerate(names):
            part = frame if name is None else frame[frame[hue] == name]
            _line(axis, part.sort_values(x), x, None if name is None else str(name), index)
        if baseline is not None:
            _baseline(axis, baseline, baseline_label)
        axis.set(xlabel=x, ylabel=label)
        _whole_ticks(axis, frame[x])
        _legend(figure, axis)
        style.note(axis, _with_interval(frame, unit))
    return figure


def probe_flow(
    table: Table | ProbeSweep,
    *,
    series: str = "series",
    chance: float | None = 0.5,
    label: str = "balanced accuracy",
    unit: str = "examples",
    venue: str = "neurips2024",
    width: str | float = "full",
) -> Figure:
    """What probes read from the vision tower over projector and language model to the answer.

    Args:
        table: A `ProbeSweep`; or columns `site` (site names, and `answer` for what the model
            says), `series` (such as `object`, `last`, `shuffled labels`), and `estimate, low,
            high, n` or tidy values. A series whose name begins with `shuffled` or `control` is
            drawn in grey.
        series: Column that tells lines apart; a table without it is one line.
        chance: Height of the line of chance; None for none.
        label: What the value is.
        unit: What n counts.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: A missing column, or several values for one point.
    """
    if isinstance(table, ProbeSweep):
        chance = float(table.summary["chance"].iloc[0])
        table = _of_sweep(table.summary, series)
    frame = estimates(table, ["site"], "probe_flow", optional=[series])
    sites = _forward_order(order(frame["site"]))
    frame = frame.assign(at=[sites.index(site) for site in frame["site"]])
    lines = order(frame[series]) if series in frame else [None]
    with style.sheet(venue, width=width, ratio=0.45) as (figure, axes):
        axis = axes[0, 0]
        _bands(axis, sites)
        coloured = controls = 0
        for name in lines:
            part = (frame if name is None else frame[frame[series] == name]).sort_values("at")
            control = str(name).lower().startswith(("shuffled", "control"))
            text = None if name is None else str(name)
            _line(axis, part, "at", text, controls if control else coloured, grey=control)
            coloured, controls = coloured + (not control), controls + control
        if chance is not None:
            _baseline(axis, chance, "chance")
        axis.set_xticks(range(len(sites)), [_short(site) for site in sites])
        axis.set(xlabel="layer", ylabel=label, xlim=(-0.5, len(sites) - 0.5))
        low, high = axis.get_ylim()
        # Room under the curves for the names of the towers.
        axis.set_ylim(low - 0.1 * (high - low), max(1.02, high))
        _outside_legend(axis)
        style.note(axis, _with_interval(frame, unit))
    return figure


def _of_sweep(summary: pd.DataFrame, series: str) -> pd.DataFrame:
    """A series per position, and in grey the same with shuffled labels."""
    main = summary[summary["control"] == "none"]
    kinds = [("balanced_accuracy", ""), ("shuffled", "shuffled labels, ")]
    parts = [
        pd.DataFrame(
            {
                "site": main["site"],
                series: prefix + main["position"].astype(str),
                "estimate": main[name],
                "low": main[f"{name}_low"],
                "high": main[f"{name}_high"],
                "n": main["n"],
            }
        )
        for name, prefix in kinds
        if name in main
    ]
    return pd.concat(parts, ignore_index=True).dropna(subset=["estimate"])


def _line(
    axis: Axes, part: pd.DataFrame, x: str, name: str | None, index: int, *, grey: bool = False
) -> None:
    pick = style.GREY if grey else style.COLOURS[index % len(style.COLOURS)]
    dash = ":" if grey else style.DASHES[index % len(style.DASHES)]
    markers = style.CONTROL_MARKERS if grey else style.MARKERS
    marker = markers[index % len(markers)]
    places = part[x].astype(float).to_numpy()
    heights = part["estimate"].to_numpy(float)
    axis.plot(places, heights, color=pick, ls=dash, marker=marker, label=name)
    low, high = part["low"].to_numpy(float), part["high"].to_numpy(float)
    if len(part) == 1:
        axis.vlines(places, low, high, color=pick, lw=0.8)
    axis.fill_between(places, low, high, color=pick, alpha=0.1 if grey else 0.18, lw=0)


def _baseline(axis: Axes, height: float, text: str) -> None:
    axis.axhline(height, color="black", ls=(0, (1, 2)), lw=0.8, label=text)


def _whole_ticks(axis: Axes, values: pd.Series) -> None:
    places = np.unique(values.to_numpy(float))
    step = -(-len(places) // 12)
    axis.set_xticks(places[::step], [f"{place:g}" for place in places[::step]])


def _legend(figure: Figure, axis: Axes) -> None:
    handles, texts = axis.get_legend_handles_labels()
    if handles:
        texts = [text.replace("_", " ") for text in texts]
        longest = max(len(text) for text in texts)
        columns = max(1, int(figure.get_figwidth() * 14 / (longest + 7)))
        figure.legend(
            handles,
            texts,
            loc="outside upper center",
            ncols=min(columns, len(texts)),
            handlelength=2.2,
            columnspacing=1.0,
        )


def _outside_legend(axis: Axes) -> None:
    handles, _ = axis.get_legend_handles_labels()
    if handles:
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), handlelength=2.6)


def _with_interval(frame: pd.DataFrame, unit: str) -> str:
    parts = [style.n_label(frame["n"], unit)]
    if frame["low"].notna().any():
        parts.append("band: 95% interval")
    return ", ".join(part for part in parts if part)


def _forward_order(sites: list[str]) -> list[str]:
    """Vision tower, projector, language model by layer, then what is no site (the answer)."""

    def key(name: str) -> tuple[int, float, int]:
        parts = name.split(".")
        if parts[0] not in _TOWERS:
            return (len(_TOWERS), 0, sites.index(name))
        site = Site.parse(name)
        inside = {"embed": -1.0, "final_norm": float("inf")}.get(site.name, site.layer or 0)
        return (list(_TOWERS).index(site.tower), inside, sites.index(name))

    return sorted(sites, key=key)


def _tower_of(site: str) -> str:
    head = site.split(".")[0]
    return head if head in _TOWERS else ""


def _short(site: str) -> str:
    parts = site.split(".")
    if parts[0] == "projector":
        return "proj."
    if len(parts) == 3:
        return parts[1]
    return parts[-1].replace("_", " ")


def _bands(axis: Axes, sites: list[str]) -> None:
    """A light band and a name for each tower."""
    towers = [_tower_of(site) for site in sites]
    for tower, text in _TOWERS.items():
        at = [index for index, name in enumerate(towers) if name == tower]
        if at and text:
            shade = "#eef3f8" if tower == "vision" else "#f8f4ea"
            axis.axvspan(at[0] - 0.5, at[-1] + 0.5, color=shade, lw=0, zorder=0)
            axis.text(
                (at[0] + at[-1]) / 2,
                0.02,
                text,
                ha="center",
                va="bottom",
                color="#555555",
                fontsize=6.5,
                transform=axis.get_xaxis_transform(),
            )
