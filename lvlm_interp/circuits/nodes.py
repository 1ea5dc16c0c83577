"""Scores of nodes: exact patching, AtP and AtP*; one row per pair and node.

A node is a writer of the graph. Exact: m with all its edges counterfactual, minus m, which is
activation patching of what it writes. AtP (Nanda 2023): (u' - u) . dm/du. What a node writes is
read by everything behind it, so dm/du is the sum of the gradients at its readers, and AtP of a node
is the sum of EAP over its edges. AtP* (Kramar et al. 2024, arXiv 2403.00745): GradDrop over the
layers of the sites `z` and `mlp_out`; its QK fix is for queries and keys, which are no nodes here.
It has no sign, and what enters the streams (`tokens`, `image`, `vision.input`) has no score by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.circuits.evaluation import circuit_metric
from lvlm_interp.circuits.graph import Circuit, Graph
from lvlm_interp.circuits.scores import score_edges
from lvlm_interp.circuits.selection import top_nodes
from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.patching.attribution import attribution_patch
from lvlm_interp.patching.metrics import UNITS, Metric, name_of
from lvlm_interp.results import Result, ResultTable, provenance

NodeMethod = Literal["exact", "atp", "atp_star"]
Direction = Literal["denoise", "noise"]


@dataclass(frozen=True, repr=False)
class NodeScores(Result):
    """Scores of every node for every pair.

    Attributes:
        graph: The graph.
        values: m(patched) - m(run), or its estimate; `pair sender`, NaN where there is none.
        method: Of the scores.
        direction: `noise` (clean run patched) or `denoise`.
        n_forwards: Cost in full forwards over one pair; a backward counts as two.
    """

    graph: Graph
    values: Float[Tensor, "pair sender"]
    method: str = "atp"
    direction: str = "noise"
    n_forwards: float = 0.0

    @property
    def importance(self) -> Float[Tensor, " sender"]:
        """How much a node matters: the size of its mean effect; inputs without one come first."""
        return self.values.mean(0).abs().nan_to_num(torch.inf)

    def circuit(self, n: int) -> Circuit:
        """The circuit of all edges of the n most important nodes.

        Raises:
            UsageError: More nodes than there are.
        """
        if not 0 <= n <= len(self.graph.senders):
            raise UsageError(f"n={n}: expected 0 to {len(self.graph.senders)}, the graph's nodes.")
        note = {"strategy": "top nodes", "method": self.method, "n": n}
        return Circuit(self.graph, top_nodes(self.graph, self.importance, n), None, note)


def score_nodes(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    graph: Graph | None = None,
    *,
    method: NodeMethod = "atp",
    metric: str | Metric = "logit_diff",
    direction: Direction = "noise",
    batch_size: int = 8,
    progress: bool = True,
) -> NodeScores:
    """Score every node.

    Args:
        model: The model.
        pairs: Aligned pairs.
        graph: The whole model by default.
        method: `exact` (one run per node), `atp` or `atp_star`.
        metric: As in `activation_patch`.
        direction: `noise` patches the clean run, `denoise` the corrupt run.
        batch_size: Pairs at once.
        progress: Show a progress bar.

    Raises:
        UsageError: An unknown option.
        ModelError: As in `score_edges`.
        InputError: As in `activation_patch`.
    """
    graph = Graph.of(model) if graph is None else graph
    if method not in get_args(NodeMethod) or direction not in get_args(Direction):
        raise UsageError(
            f"method={method!r}, direction={direction!r}: expected a method of "
            f"{', '.join(get_args(NodeMethod))} and 'noise' or 'denoise'."
        )
    shared = {"metric": metric, "direction": direction, "batch_size": batch_size}
    if method == "exact":
        without = [
            Circuit(graph, graph.valid & ~graph.edges_from_nodes([name])) for name in graph.nodes
        ]
        inside, run, _ = circuit_metric(model, without, pairs, **shared)
        values = torch.from_numpy(inside - run).T.float()
        cost = len(pairs) * (2.0 + len(without))
    elif method == "atp":
        edges = score_edges(model, pairs, graph, method="eap", progress=progress, **shared)
        values, cost = edges.values.sum((2, 3)), edges.n_forwards
    else:
        values, cost = _graddrop(model, pairs, graph, progress, shared)
    facts = provenance(model=model.name, method=method, of=name_of(metric), direction=direction)
    table = ResultTable(_frame(pairs, graph, values, metric, direction), facts)
    return NodeScores(table, graph, values, method, direction, cost)


def _graddrop(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    graph: Graph,
    progress: bool,
    shared: dict,
) -> tuple[Tensor, float]:
    towers = dict.fromkeys(each.tower for each in graph.senders if each.layer is not None)
    sites = [f"{tower}.*.{name}" for tower in towers for name in ("z", "mlp_out")]
    found = attribution_patch(
        model, pairs, sites, "all", graddrop=True, progress=progress, **shared
    )
    frame = found.table.frame
    nodes = [
        f"{tower}.{layer}.{'mlp' if pd.isna(head) else f'h{head}'}"
        for tower, layer, head in zip(frame.tower, frame.layer, frame["head"], strict=True)
    ]
    by_pair = frame.assign(node=nodes).pivot(index="pair", columns="node", values="value")
    wide = by_pair.reindex(index=[pair.id for pair in pairs], columns=graph.nodes)
    return torch.from_numpy(wide.to_numpy(np.float32)), found.n_forwards


def _frame(
    pairs: Sequence[ContrastPair],
    graph: Graph,
    values: Tensor,
    metric: str | Metric,
    direction: str,
) -> pd.DataFrame:
    rows = [
        {
            "example": pair.clean.id if direction == "noise" else pair.corrupt.id,
            "pair": pair.id,
            "tower": sender.tower,
            "layer": sender.layer,
            "site": sender.name,
            "head": sender.head,
            "position": "all",
            "metric": "node effect",
            "value": float(values[i, j]),
            "unit": UNITS.get(name_of(metric), "metric"),
            "direction": direction,
            "group": pair.group if pair.group is not None else pair.id,
        }
        for i, pair in enumerate(pairs)
        for j, sender in enumerate(graph.senders)
    ]
    frame = pd.DataFrame(rows)
    return frame.astype({"layer": "Int64", "head": "Int64"})
