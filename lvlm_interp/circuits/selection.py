"""From scores to a circuit: by threshold, by number, or grown from the logits."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.circuits.graph import Circuit, Graph
from lvlm_interp.circuits.scores import EdgeScores
from lvlm_interp.errors import UsageError

Strategy = Literal["threshold", "top", "greedy"]


def select_circuit(
    scores: EdgeScores,
    strategy: Strategy = "greedy",
    *,
    n: int | None = None,
    threshold: float | None = None,
    signed: bool = False,
) -> Circuit:
    """Choose edges by their mean score.

    Args:
        scores: Of every edge.
        strategy: `threshold` keeps edges of at least that importance; `top` the n most important;
            `greedy` grows from the logits: of all edges into what is already connected it adds the
            most important one, n times, so that every edge lies on a path to the logits.
        n: Number of edges, for `top` and `greedy`.
        threshold: For `threshold`.
        signed: See `EdgeScores.importance`.

    Raises:
        UsageError: An unknown strategy, or its number is missing or out of range.
    """
    if strategy not in get_args(Strategy):
        raise UsageError(f"strategy={strategy!r}: expected {', '.join(get_args(Strategy))}.")
    graph, importance = scores.graph, scores.importance(signed=signed)
    if strategy == "threshold":
        if threshold is None:
            raise UsageError("strategy='threshold' needs a threshold.")
        kept = (importance >= threshold) & graph.valid
    elif n is None or not 0 <= n <= graph.n_edges:
        raise UsageError(f"n={n}: expected 0 to {graph.n_edges}, the graph's edges.")
    elif strategy == "top":
        kept = top_edges(graph, importance, n)
    else:
        kept = grow(graph, importance, n)
    note = {"strategy": strategy, "method": scores.method, "n": n, "threshold": threshold}
    return Circuit(graph, kept, scores.mean, note)


def top_edges(graph: Graph, importance: Tensor, n: int) -> Tensor:
    """The n most important edges."""
    flat = importance.masked_fill(~graph.valid, -torch.inf).flatten()
    kept = torch.zeros_like(graph.valid).flatten()
    kept[flat.argsort(descending=True, stable=True)[:n]] = True
    return kept.reshape(graph.valid.shape)


def top_nodes(
    graph: Graph, importance: Float[Tensor, " sender"] | Mapping[str, float], n: int
) -> Tensor:
    """All edges of the n most important senders.

    Raises:
        UsageError: A name is no sender.
    """
    if isinstance(importance, Mapping):
        values = torch.full((len(graph.senders),), -torch.inf)
        for name, value in importance.items():
            values[graph.sender(name)] = value
        importance = values
    names = graph.nodes
    order = importance.argsort(descending=True, stable=True)[:n].tolist()
    return graph.edges_from_nodes([names[i] for i in order])


def grow(graph: Graph, importance: Tensor, n: int) -> Tensor:
    """Greedy growth from the logits; stops early when nothing more is connected."""
    kept = torch.zeros_like(graph.valid)
    reads: dict[str, list[int]] = {}
    for j, receiver in enumerate(graph.receivers):
        for node in receiver.node:
            reads.setdefault(node, []).append(j)
    queue: list[tuple[float, int, int, int]] = []
    open_receivers: set[int] = set()

    def connect(node: str) -> None:
        for j in reads.get(node, []):
            if j in open_receivers:
                continue
            open_receivers.add(j)
            for i, role in graph.valid[:, j].nonzero().tolist():
                heapq.heappush(queue, (-float(importance[i, j, role]), i, j, role))

    connect("logits")
    while queue and int(kept.sum()) < n:
        _, i, j, role = heapq.heappop(queue)
        kept[i, j, role] = True
        connect(graph.senders[i].name)
    return kept


def random_circuit(
    graph: Graph, n: int, seed: int, *, of: Literal["edges", "nodes"] = "edges"
) -> Circuit:
    """A circuit of n edges, or of n nodes, drawn uniformly.

    Raises:
        UsageError: More than there are.
    """
    rng = np.random.default_rng(seed)
    count = graph.n_edges if of == "edges" else len(graph.senders)
    if not 0 <= n <= count:
        raise UsageError(f"n={n}: expected 0 to {count} {of}.")
    draw = torch.as_tensor(rng.permutation(count)[:n])
    if of == "nodes":
        kept = graph.edges_from_nodes([graph.nodes[i] for i in draw.tolist()])
    else:
        kept = torch.zeros_like(graph.valid)
        edges = graph.valid.nonzero()[draw]
        kept[edges[:, 0], edges[:, 1], edges[:, 2]] = True
    return Circuit(graph, kept, None, {"strategy": f"random {of}", "seed": seed, "n": n})
