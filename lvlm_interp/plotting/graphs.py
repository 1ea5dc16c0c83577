"""Drawings of circuits."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from lvlm_interp.errors import UsageError
from lvlm_interp.plotting import style

_FILLS = {"head": "#dbe9f6", "mlp": "#fdebd0", "input": "#e3f3e6", "output": "#f4e1ec"}


def circuit(
    graph: nx.DiGraph,
    *,
    label: str = "edge score",
    title: str = "",
    venue: str = "neurips2024",
    width: str | float = "full",
) -> Figure:
    """A circuit from the input at the bottom to the logits at the top.

    Args:
        graph: Nodes with `layer` (an integer; inputs below 0, the logits above all) and, where
            given, `label` and `kind` (`head`, `mlp`, `input`, `output`); edges with `weight`.
            Negative edges are dashed; widths grow with |weight|.
        label: What a weight is, with its unit.
        title: Over the drawing.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: No node, a node without `layer`, or an edge without `weight`.
    """
    _check(graph)
    places = _places(graph)
    n_layers = len({y for _, y in places.values()})
    with style.sheet(venue, width=width, height=0.5 * n_layers + 0.5) as (figure, axes):
        axis = axes[0, 0]
        top = max((abs(w) for *_, w in graph.edges(data="weight")), default=1.0) or 1.0
        for source, target, weight in graph.edges(data="weight"):
            _edge(axis, places[source], places[target], float(weight), top)
        for name, data in graph.nodes(data=True):
            _node(
                axis,
                places[name],
                str(data.get("label", name)),
                _FILLS.get(data.get("kind", ""), "white"),
            )
        _layers(axis, graph, places)
        _legend(figure, label, top)
        axis.set_title(title, loc="left")
        style.note(axis, f"{graph.number_of_nodes()} nodes, {graph.number_of_edges()} edges")
    return figure


def _check(graph: nx.DiGraph) -> None:
    if graph.number_of_nodes() == 0:
        raise UsageError("circuit got a graph without nodes.")
    for name, data in graph.nodes(data=True):
        if "layer" not in data:
            raise UsageError(f"circuit needs 'layer' on every node; {name!r} has {sorted(data)}.")
    for source, target, data in graph.edges(data=True):
        if "weight" not in data:
            raise UsageError(
                f"circuit needs 'weight' on every edge; {source!r} to {target!r} has none."
            )


def _places(graph: nx.DiGraph) -> dict[Any, tuple[float, float]]:
    """Layers stand one above the other; in a layer, nodes stand near what they are joined to."""
    layers: dict[float, list[Any]] = defaultdict(list)
    for name, data in graph.nodes(data=True):
        layers[data["layer"]].append(name)
    heights = {layer: height for height, layer in enumerate(sorted(layers))}
    places: dict[Any, tuple[float, float]] = {}
    for layer in sorted(layers):
        below = {
            name: [places[other][0] for other in graph.predecessors(name) if other in places]
            for name in layers[layer]
        }
        names = sorted(
            layers[layer],
            key=lambda name: (
                sum(below[name]) / len(below[name]) if below[name] else 0.5,
                str(name),
            ),
        )
        for index, name in enumerate(names):
            places[name] = ((index + 0.5) / len(names), float(heights[layer]))
    return places


def _edge(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], weight: float, top: float
) -> None:
    share = abs(weight) / top
    bend = 0.0 if end[1] - start[1] <= 1 else 0.12
    axis.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=6,
            shrinkA=9,
            shrinkB=9,
            lw=0.4 + 2.2 * share,
            alpha=0.35 + 0.65 * share,
            zorder=1,
            color=style.COLOURS[0] if weight >= 0 else style.COLOURS[1],
            ls="-" if weight >= 0 else "--",
            connectionstyle=f"arc3,rad={bend}",
        )
    )


def _node(axis: Axes, place: tuple[float, float], text: str, fill: str) -> None:
    axis.text(
        *place,
        text,
        ha="center",
        va="center",
        fontsize=6.5,
        zorder=3,
        parse_math=False,
        bbox={"boxstyle": "round,pad=0.3", "fc": fill, "ec": "black", "lw": 0.6},
    )


def _layers(axis: Axes, graph: nx.DiGraph, places: dict[Any, tuple[float, float]]) -> None:
    names: dict[float, str] = {}
    for name, data in graph.nodes(data=True):
        inner = data.get("kind") not in ("input", "output")
        names[places[name][1]] = f"layer {data['layer']}" if inner else ""
    axis.set_yticks(list(names), list(names.values()))
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlim=(0, 1), ylim=(-0.5, max(names) + 0.5))


def _legend(figure: Figure, label: str, top: float) -> None:
    handles = [
        Line2D([], [], color=style.COLOURS[0], lw=2, label=f"positive {label}"),
        Line2D(
            [], [], color=style.COLOURS[1], lw=2, ls="--", label=f"negative (widest: {top:.2g})"
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
