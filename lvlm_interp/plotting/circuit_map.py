"""The drawing of a circuit: towers as columns, token roles as rows, edge weight as width.

An edge carries what its writer adds at the positions of one role, so it lies in the row of that
role. A head that reads keys and values in one row and writes in another stands in both, joined by
a dotted line: that is where attention moves something from one group of tokens to another. The
vision tower has no token roles and stands in the middle of its columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle

from lvlm_interp.circuits import Circuit
from lvlm_interp.errors import UsageError
from lvlm_interp.plotting import style

FILLS = {"head": "#dbe9f6", "mlp": "#fdebd0", "input": "#e3f3e6", "output": "#f4e1ec"}
VISION_ROW = "vision"
_LAST = 10**6
_STACK = 0.24
"""Inches between two nodes of one cell."""

Spot = tuple[str, str]
"""A node and the row that it stands in."""


@dataclass
class _Layout:
    """Where everything stands: `x` counts columns, `y` stacked nodes from the bottom."""

    places: dict[Spot, tuple[float, float]] = field(default_factory=dict)
    columns: list[tuple[str, int]] = field(default_factory=list)
    x: list[float] = field(default_factory=list)
    rows: dict[str, tuple[float, float]] = field(default_factory=dict)
    height: float = 1.0


def circuit_map(
    circuit: Circuit,
    *,
    most_edges: int = 60,
    label: str = "edge score",
    title: str = "",
    venue: str = "neurips2024",
    width: str | float = "full",
) -> Figure:
    """Draw a circuit from its inputs at the left to the logits at the right.

    Args:
        circuit: What to draw; edges of several parts (q, k, v) between the same nodes of one row
            are added up.
        most_edges: Only this many of the heaviest edges are drawn, and the note says so.
        label: What a weight is, with its unit.
        title: Over the drawing.
        venue: Size and fonts.
        width: `full`, `half` or inches.

    Raises:
        UsageError: The circuit has no edge.
    """
    edges = _edges(circuit)
    if edges.empty:
        raise UsageError("circuit got a circuit without edges: there is nothing to draw.")
    heavy = edges["weight"].abs().sort_values(ascending=False, kind="stable").index[:most_edges]
    drawn = edges.loc[sorted(heavy)]
    known = {str(row["node"]): row for row in circuit.node_table().to_dict("records")}
    layout = _layout(circuit, drawn, known)
    with style.sheet(venue, width=width, height=_STACK * layout.height + 1.05) as (figure, axes):
        axis = axes[0, 0]
        top = float(drawn["weight"].abs().max()) or 1.0
        for row in drawn.to_dict("records"):
            start, end = layout.places[row["start"]], layout.places[row["end"]]
            draw_edge(axis, start, end, float(row["weight"]), top, _bend(start, end))
        _same_node(axis, layout)
        for spot, place in layout.places.items():
            draw_node(axis, place, _text(spot), FILLS[_kind(spot[0])])
        _ticks(axis, layout)
        _legend(figure, label, top)
        of = "" if len(drawn) == len(edges) else f" (the heaviest of {len(edges)})"
        n_nodes = len({node for node, _ in layout.places})
        style.note(axis, f"{n_nodes} nodes, {len(drawn)} edges{of}")
        axis.set_title(title, loc="left", pad=16)
    return figure


def draw_edge(
    axis: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    weight: float,
    top: float,
    bend: float,
) -> None:
    """An arrow whose width is its share of the heaviest edge; dashed where it is negative."""
    share = abs(weight) / top
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


def draw_node(axis: Axes, place: tuple[float, float], text: str, fill: str) -> None:
    """A labelled box."""
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


def _edges(circuit: Circuit) -> pd.DataFrame:
    """One row per pair of spots that edges join, with their summed weight."""
    parts: dict[tuple[Spot, Spot], float] = defaultdict(float)
    towers = {each.name: each.tower for each in circuit.graph.senders}
    for row in circuit.edge_table().to_dict("records"):
        role = VISION_ROW if towers[row["sender"]] == "vision" else str(row["role"])
        for node in str(row["node"]).split(","):
            parts[(row["sender"], role), (node, role)] += float(row["weight"])
    rows = [(start, end, weight) for (start, end), weight in parts.items()]
    return pd.DataFrame(rows, columns=["start", "end", "weight"])


def _layout(circuit: Circuit, edges: pd.DataFrame, known: Mapping[str, dict]) -> _Layout:
    spots = list(dict.fromkeys([*edges["start"], *edges["end"]]))
    found = _Layout()
    at = {spot: _column(spot, known) for spot in spots}
    found.columns = sorted(set(at.values()))
    found.x = _across(found.columns)
    x = dict(zip(found.columns, found.x, strict=True))
    cells: dict[tuple[str, tuple[str, int]], list[Spot]] = defaultdict(list)
    for spot in sorted(spots, key=lambda spot: (at[spot], _head(spot[0], known))):
        cells[spot[1], at[spot]].append(spot)
    floor = 0.0
    # The first role stands on top, as it is named first.
    for role in reversed([each for each in circuit.graph.roles if _in_row(cells, each)]):
        tall = max(len(cell) for (row, _), cell in cells.items() if row == role)
        found.rows[role] = (floor, floor + tall + 0.6)
        floor += tall + 0.6
    tallest = max((len(c) for (row, _), c in cells.items() if row == VISION_ROW), default=0)
    found.height = max(floor, tallest + 0.6)
    for (row, column), cell in cells.items():
        low, high = found.rows.get(row, (0.0, found.height))
        middle = (low + high) / 2
        for i, spot in enumerate(cell):
            found.places[spot] = (x[column], middle + (len(cell) - 1) / 2 - i)
    return found


def _across(columns: Sequence[tuple[str, int]]) -> list[float]:
    """Where columns stand: what enters and leaves a tower has longer names and more room."""
    x = [0.0]
    for (_, before), (_, after) in pairwise(columns):
        ends = sum(order < 0 or order == _LAST for order in (before, after))
        x.append(x[-1] + 1 + 0.3 * ends)
    return x


def _in_row(cells: Mapping[tuple[str, tuple[str, int]], Sequence[Spot]], role: str) -> bool:
    return any(row == role for row, _ in cells)


def _column(spot: Spot, known: Mapping[str, dict]) -> tuple[str, int]:
    """Tower and place in it, so that columns sort in the order of the forward."""
    node, row = spot
    if row == VISION_ROW and node == "image":
        return "1 vision", _LAST  # what the projector reads
    if node == "logits":
        return "2 language model", _LAST
    data = known[node]
    return ("1 vision" if data["tower"] == "vision" else "2 language model"), int(data["order"])


def _head(node: str, known: Mapping[str, dict]) -> int:
    head = known[node]["head"] if node in known else None
    return -1 if head is None or pd.isna(head) else int(head)


def _kind(node: str) -> str:
    if node == "logits":
        return "output"
    return "mlp" if node.endswith(".mlp") else "head" if ".h" in node else "input"


def _text(spot: Spot) -> str:
    """Columns name the layer, so a node says only what it is in it."""
    node, row = spot
    if node == "image" and row == VISION_ROW:
        return "projector"
    return node.rpartition(".")[2].replace("mlp", "MLP")


def _bend(start: tuple[float, float], end: tuple[float, float]) -> float:
    """Edges along a row go around the nodes between."""
    if abs(end[1] - start[1]) > 0.5 or end[0] - start[0] < 1.5:
        return 0.0
    return -0.55 / (end[0] - start[0]) - 0.06


def _same_node(axis: Axes, layout: _Layout) -> None:
    """A dotted line between the rows in which one node stands."""
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (node, _), place in layout.places.items():
        rows[node].append(place)
    drawn: dict[float, int] = defaultdict(int)
    for node, places in rows.items():
        if _kind(node) != "head" and node != "image":
            continue
        for one, other in pairwise(sorted(places, key=lambda place: (place[0], -place[1]))):
            # Around what stands between, and apart from the other lines of the column.
            bend = 0.0 if one[0] != other[0] else 0.12 + 0.09 * drawn[one[0]]
            drawn[one[0]] += 1
            axis.add_patch(
                FancyArrowPatch(
                    one, other, arrowstyle="-", shrinkA=7, shrinkB=7, ls=":", lw=0.9, zorder=0.5,
                    color="#444444", connectionstyle=f"arc3,rad={bend}",
                )
            )  # fmt: skip


def _ticks(axis: Axes, layout: _Layout) -> None:
    names = []
    for _, order in layout.columns:
        end = order < 0 or order == _LAST
        names.append("" if end else f"{order // 2}\n{'MLP' if order % 2 else 'heads'}")
    axis.set_xticks(layout.x, names)
    axis.set_yticks(
        [(low + high) / 2 for low, high in layout.rows.values()],
        [role if role != "all" else "all positions" for role in layout.rows],
    )
    axis.yaxis.tick_right()
    towers: dict[str, list[float]] = defaultdict(list)
    for i, (tower, _) in enumerate(layout.columns):
        towers[tower].append(layout.x[i])
    for tower, at in towers.items():
        middle = (min(at) + max(at)) / 2
        axis.annotate(tower[2:], (middle, layout.height), xytext=(0, 3), ha="center", va="bottom",
                      textcoords="offset points", fontsize=7, annotation_clip=False)  # fmt: skip
        if min(at):
            axis.axvline(min(at) - 0.8, color="#888888", lw=0.6, zorder=0.6)
    right = layout.x[-1] + 0.7
    left = min(towers["2 language model"], default=0.0) - 0.8
    for number, (low, high) in enumerate(layout.rows.values()):
        if number % 2:
            size = right - left, high - low
            axis.add_patch(Rectangle((left, low), *size, color="#f4f4f4", zorder=0, lw=0))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set(xlim=(-0.8, right), ylim=(0, layout.height))


def _legend(figure: Figure, label: str, top: float) -> None:
    handles = [
        Line2D([], [], color=style.COLOURS[0], lw=2, label=f"positive {label}"),
        Line2D([], [], color=style.COLOURS[1], lw=2, ls="--", label=f"negative (most: {top:.2g})"),
        Line2D([], [], color="#444444", lw=0.9, ls=":", label="one node, several rows"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
