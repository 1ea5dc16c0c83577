"""Drawings of circuits."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lvlm_interp.circuits import Circuit
from lvlm_interp.errors import UsageError
from lvlm_interp.plotting import style
from lvlm_interp.plotting.circuit_map import FILLS, circuit_map, draw_edge, draw_node


def circuit(
    graph: nx.DiGraph | Circuit,
    *,
    most_edges: int = 60,
    label: str = "edge score",
    title: str = "",
    venue: str = "neurips2024",
    width: str | float = "full",
) -> Figure:
    """A circuit, by towers and token roles; or any graph, from the input up to the output.

    Args:
        graph: A `Circuit`, which is drawn as `circuit_map` says; or a networkx graph: nodes with
            `layer` (an integer; inputs below 0, the logits above all) and, where given, `label`,
            `kind` (`head`, `mlp`, `input`, `output`) and `row` (name of that height); edges with
            `weight`. Negative edges are dashed; widths grow with |weight|.
        most_edges: Only this many of the heaviest edges are drawn, and the note says so.
        label: What a weight is, with its unit.
        title: Over the drawing.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: No node, a node without `layer`, or an edge without `weight`.
    """
    if isinstance(graph, Circuit):
        return circuit_map(
            graph, most_edges=most_edges, label=label, title=title, venue=venue, width=width
        )
    drawn = nx.DiGraph(graph)
    _check(drawn)
    n_edges = drawn.number_of_edges()
    drawn = _heaviest(drawn, most_edges)
    places = _places(drawn)
    n_layers = len({y for _, y in places.values()})
    with style.sheet(venue, width=width, height=0.42 * n_layers + 0.6) as (figure, axes):
        axis = axes[0, 0]
        top = max((abs(w) for *_, w in drawn.edges(data="weight")), default=1.0) or 1.0
        for source, target, weight in drawn.edges(data="weight"):
            start, end = places[source], places[target]
            bend = 0.0 if end[1] - start[1] <= 1 else 0.12
            draw_edge(axis, start, end, float(weight), top, bend)
        for name, data in drawn.nodes(data=True):
            fill = FILLS.get(data.get("kind", ""), "white")
            draw_node(axis, places[name], str(data.get("label", name)), fill)
        _layers(axis, drawn, places)
        _legend(figure, label, top)
        axis.set_title(title, loc="left")
        shown = drawn.number_of_edges()
        of = "" if shown == n_edges else f" (the heaviest of {n_edges})"
        style.note(axis, f"{drawn.number_of_nodes()} nodes, {shown} edges{of}")
    return figure


def _heaviest(graph: nx.DiGraph, most: int) -> nx.DiGraph:
    if graph.number_of_edges() <= most:
        return graph
    ordered = sorted(graph.edges(data="weight"), key=lambda edge: -abs(edge[2]))
    kept = graph.edge_subgraph([(source, target) for source, target, _ in ordered[:most]])
    return nx.DiGraph(kept)


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


def _layers(axis: Axes, graph: nx.DiGraph, places: dict[Any, tuple[float, float]]) -> None:
    names: dict[float, str] = {}
    for name, data in graph.nodes(data=True):
        inner = data.get("kind") not in ("input", "output")
        plain = f"layer {data['layer']}" if inner else ""
        names[places[name][1]] = str(data.get("row", plain))
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
