"""How good a circuit is: faithfulness, CPR and CMD, completeness, minimality.

Faithfulness f(C) = (m(C) - m(empty)) / (m(full) - m(empty)), everything outside C carrying the
counterfactual run. CPR is the integral of f over the kept fraction, CMD that of |1 - f| (MIB,
Mueller et al. 2025, arXiv 2504.13151), by the trapezoid rule over the fractions that keep at least
one component. Completeness and minimality after Wang et al. 2023. Ratios are ratios of means, and
intervals resample groups of pairs. Use pairs that had no part in the selection; `against_random`
measures random circuits of the same size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.circuits.graph import Circuit, Graph
from lvlm_interp.circuits.scores import EdgeTask
from lvlm_interp.circuits.selection import grow, top_edges, top_nodes
from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.patching.batches import batches
from lvlm_interp.patching.metrics import Metric, check_metric
from lvlm_interp.results import Result, ResultTable, provenance
from lvlm_interp.stats import Estimate, cluster_bootstrap, ratio_of_means

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, repr=False)
class CircuitCurve(Result):
    """Faithfulness over the kept fraction; one row per pair and fraction.

    Attributes:
        fractions: Those that keep at least one component.
        left_out: Those that round to nothing.
        of: `edges` or `nodes`: what the fraction counts.
        faithfulness: At each fraction.
        cpr, cmd: Area under f, and under |1 - f|.
    """

    fractions: tuple[float, ...] = ()
    left_out: tuple[float, ...] = ()
    of: str = "edges"
    faithfulness: tuple[Estimate, ...] = ()
    cpr: Estimate | None = None
    cmd: Estimate | None = None


def circuit_metric(
    model: LVLM,
    circuits: Sequence[Circuit],
    pairs: Sequence[ContrastPair],
    *,
    metric: str | Metric = "logit_diff",
    direction: Literal["noise", "denoise"] = "noise",
    batch_size: int = 16,
    copies: int = 4,
) -> tuple[Float[np.ndarray, "circuit pair"], np.ndarray, np.ndarray]:
    """The metric of every circuit alone, of the full model and of the empty circuit.

    Args:
        model: The model.
        circuits: Of one graph.
        pairs: Aligned pairs, not those that the circuits were selected on.
        metric: As in `activation_patch`.
        direction: `noise`: the clean run is kept inside the circuit, the corrupt one outside.
        batch_size: Pairs at once.
        copies: Circuits at once.

    Raises:
        UsageError: No circuits, or circuits of several graphs.
    """
    check_metric(metric)
    if not circuits or any(c.graph != circuits[0].graph for c in circuits):
        raise UsageError("Expected at least one circuit, all of one graph.")
    graph = circuits[0].graph
    changed = torch.stack([(graph.valid & ~circuit.kept).float() for circuit in circuits])
    inside, full, empty = [], [], []
    for batch in list(batches(model, pairs, batch_size)):
        task = EdgeTask.make(model, graph, batch, metric, direction)
        inside.append(task.metric(changed, copies).cpu().double().numpy())
        full.append(task.m_run.cpu().double().numpy())
        empty.append(task.m_other.cpu().double().numpy())
    return np.concatenate(inside, axis=1), np.concatenate(full), np.concatenate(empty)


def faithfulness(
    model: LVLM, circuit: Circuit, pairs: Sequence[ContrastPair], *, seed: int = 0, **options
) -> Estimate:
    """Faithfulness of one circuit on pairs; a ratio of means with an interval over groups.

    Args:
        model: The model.
        circuit: The circuit.
        pairs: Pairs that had no part in its selection.
        seed: Of the bootstrap.
        options: For `circuit_metric`.
    """
    inside, full, empty = circuit_metric(model, [circuit], pairs, **options)
    return ratio_of_means(inside[0] - empty, full - empty, groups_of(pairs), seed=seed)


def faithfulness_curve(
    model: LVLM,
    graph: Graph,
    importance: Tensor,
    pairs: Sequence[ContrastPair],
    *,
    of: Literal["edges", "nodes"] = "edges",
    strategy: Literal["top", "greedy"] = "top",
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    **options,
) -> CircuitCurve:
    """Faithfulness, CPR and CMD of circuits of growing size.

    Args:
        model: The model.
        graph: The graph.
        importance: Of edges (`sender receiver role`), or of nodes (`sender`).
        pairs: Pairs that had no part in the scores.
        of: What a fraction counts.
        strategy: For edges: the most important ones, or greedy growth from the logits.
        fractions: Kept shares; those that round to no component are left out.
        seed: Of the bootstrap.
        options: For `circuit_metric`.

    Raises:
        UsageError: No fraction keeps anything, or an unknown option.
    """
    total = graph.n_edges if of == "edges" else len(graph.senders)
    sizes = {f: round(f * total) for f in fractions}
    kept = [f for f, size in sizes.items() if size >= 1]
    if not kept or of not in ("edges", "nodes"):
        raise UsageError(f"of={of!r}, fractions={tuple(fractions)}: nothing would be kept.")
    circuits = []
    for fraction in kept:
        if of == "nodes":
            edges = top_nodes(graph, importance, sizes[fraction])
        else:
            choose = top_edges if strategy == "top" else grow
            edges = choose(graph, importance, sizes[fraction])
        circuits.append(Circuit(graph, edges))
    inside, full, empty = circuit_metric(model, circuits, pairs, **options)
    groups = groups_of(pairs)
    rows = np.stack([*inside, full, empty], axis=1)  # pair x (fraction..., full, empty)

    def curve(rows: np.ndarray) -> np.ndarray:
        mean = rows.mean(axis=0)
        return (mean[:-2] - mean[-1]) / (mean[-2] - mean[-1])

    def area(values: np.ndarray) -> float:
        return float(np.trapezoid(values, kept)) if len(kept) > 1 else float(values[0])

    def estimate(function) -> Estimate:
        return cluster_bootstrap(rows, groups, statistic=function, n_resamples=1000, seed=seed)

    return CircuitCurve(
        ResultTable(_curve_frame(pairs, kept, inside, full, empty, of), provenance(seed=seed)),
        tuple(kept),
        tuple(f for f in fractions if f not in kept),
        of,
        tuple(ratio_of_means(each - empty, full - empty, groups, seed=seed) for each in inside),
        estimate(lambda rows: area(curve(rows))),
        estimate(lambda rows: area(np.abs(1 - curve(rows)))),
    )


def completeness(
    model: LVLM,
    circuit: Circuit,
    pairs: Sequence[ContrastPair],
    *,
    draws: int = 10,
    seed: int = 0,
    **options,
) -> pd.DataFrame:
    """|F(C without K) - F(M without K)| for random sets K of the circuit's nodes.

    F is faithfulness, so a value is a share of the full model's effect. Small everywhere means that
    nothing outside the circuit stands in for what is taken out of it.

    Returns:
        One row per draw: `removed`, `without` F(C - K), `model` F(M - K), their `difference` with
        `low` and `high` of its 95% interval over groups of pairs, and `gap`, its size.
    """
    whole = Circuit(circuit.graph, circuit.graph.valid)
    removed = sets_of_nodes(circuit, draws, seed)
    tried = [without(each, names) for names in removed for each in (circuit, whole)]
    inside, full, empty = circuit_metric(model, tried, pairs, **options)
    f = (inside - empty).mean(1) / (full - empty).mean()
    groups = groups_of(pairs)
    apart = [
        ratio_of_means(one - other, full - empty, groups, seed=seed)
        for one, other in zip(inside[::2], inside[1::2], strict=True)
    ]
    return pd.DataFrame(
        {
            "removed": [", ".join(names) for names in removed],
            "without": f[::2],
            "model": f[1::2],
            "difference": f[::2] - f[1::2],
            "low": [each.low for each in apart],
            "high": [each.high for each in apart],
            "gap": np.abs(f[::2] - f[1::2]),
        }
    )


def minimality(
    model: LVLM, circuit: Circuit, pairs: Sequence[ContrastPair], *, seed: int = 0, **options
) -> pd.DataFrame:
    """What each node of the circuit adds: F(C) - F(C without it), with K empty in the definition.

    Returns:
        One row per node: `node, estimate, low, high, n`, in shares of the full effect.
    """
    nodes = circuit.nodes
    smaller = [without(circuit, [name]) for name in nodes]
    inside, full, empty = circuit_metric(model, [circuit, *smaller], pairs, **options)
    groups = groups_of(pairs)
    rows = []
    for name, each in zip(nodes, inside[1:], strict=True):
        share = ratio_of_means(inside[0] - each, full - empty, groups, seed=seed)
        rows.append({"node": name, **share.to_dict()})
    return pd.DataFrame(rows, columns=["node", "estimate", "low", "high", "n"])


def without(circuit: Circuit, nodes: Sequence[str]) -> Circuit:
    """The circuit less all edges that some nodes write."""
    return Circuit(circuit.graph, circuit.kept & ~circuit.graph.edges_from_nodes(nodes))


def sets_of_nodes(circuit: Circuit, draws: int, seed: int) -> list[list[str]]:
    """Random sets of a circuit's nodes, each node in a set with probability one half."""
    rng, nodes = np.random.default_rng(seed), circuit.nodes
    return [[name for name in nodes if rng.random() < 0.5] or nodes[:1] for _ in range(draws)]


def groups_of(pairs: Sequence[ContrastPair]) -> list[str]:
    """The group of each pair, which intervals resample."""
    return [pair.group if pair.group is not None else pair.id for pair in pairs]


def _curve_frame(
    pairs: Sequence[ContrastPair],
    kept: Sequence[float],
    inside: np.ndarray,
    full: np.ndarray,
    empty: np.ndarray,
    of: str,
) -> pd.DataFrame:
    rows = [
        {
            "example": pair.clean.id,
            "pair": pair.id,
            "metric": "metric of the circuit",
            "value": inside[k, i],
            "unit": "metric",
            "fraction": fraction,
            "of": of,
            "m_full": full[i],
            "m_empty": empty[i],
            "group": pair.group if pair.group is not None else pair.id,
        }
        for k, fraction in enumerate(kept)
        for i, pair in enumerate(pairs)
    ]
    return pd.DataFrame(rows)
