"""A circuit beside random ones: closed form on a linear model, and what a user is told."""

import numpy as np
import pytest
import torch

from lvlm_interp.circuits import (
    Circuit,
    Graph,
    against_random,
    random_circuit,
    score_edges,
    select_circuit,
)
from lvlm_interp.circuits.control import random_ranking
from lvlm_interp.circuits.evaluation import sets_of_nodes
from lvlm_interp.circuits.selection import grow, top_edges
from lvlm_interp.errors import UsageError
from lvlm_interp.results import ResultTable

FACTOR = {
    "text.0.h0": np.array([1.0, 2]),
    "text.0.h1": np.array([3.0, 4]),
    "text.1.h0": np.array([2.0, 0]),
    "text.1.h1": np.array([-1.0, 5]),
}
"""What each head of the model `unlike` multiplies its input by; its MLPs write nothing."""


def share(graph: Graph, kept: torch.Tensor) -> float:
    """F of a circuit of the linear model, by hand: what reaches the logits along kept edges.

    Clean minus corrupt is (1, -1) at the start, and y0 - y1 changes by 10 + 42 = 52 in all.
    """
    change = {"tokens": np.array([1.0, -1.0])}

    def read(receiver: str) -> np.ndarray:
        j = [each.name for each in graph.receivers].index(receiver)
        into = [name for name, on in zip(graph.nodes, kept[:, j, 0].tolist(), strict=True) if on]
        return sum((change.get(name, 0) for name in into), np.zeros(2))

    for name, factor in FACTOR.items():
        change[name] = factor * read(name.replace(".h", ".v"))
    out = read("logits")
    return (out[0] - out[1]) / 52


def by_hand(graph: Graph, kept: torch.Tensor, sets: int, seed: int) -> dict[str, float]:
    nodes = Circuit(graph, kept).nodes

    def f(kept: torch.Tensor, names: list[str]) -> float:
        out = kept.clone()
        for name in names:
            out[graph.nodes.index(name)] = False
        return share(graph, out)

    chosen = sets_of_nodes(Circuit(graph, kept), sets, seed)
    return {
        "faithfulness": share(graph, kept),
        "minimality": float(np.mean([share(graph, kept) - f(kept, [name]) for name in nodes])),
        "completeness": float(
            np.mean([abs(f(kept, names) - f(graph.valid, names)) for names in chosen])
        ),
    }


def test_the_linear_model_by_hand(unlike):
    model, pairs = unlike
    graph = Graph.of(model, vision=False)
    assert share(graph, graph.valid) == pytest.approx(1)
    kept = graph.valid.clone()
    kept[graph.nodes.index("text.0.h0")] = False
    assert share(graph, kept) == pytest.approx((52 - 3 - 2 - 9) / 52)
    circuit, draws, sets, seed = Circuit(graph, kept), 2, 8, 3
    found = against_random(model, circuit, pairs, draws=draws, sets=sets, seed=seed)
    random = [random_circuit(graph, circuit.n_edges, seed + i) for i in range(draws)]
    expected = [by_hand(graph, each.kept, sets, seed) for each in (circuit, *random)]
    for measure in ("faithfulness", "completeness", "minimality"):
        own, others = found.of(measure)
        got = [each.estimate for each in (own, *others)]
        np.testing.assert_allclose(got, [each[measure] for each in expected], atol=1e-5)
    # The nodes differ in what they add, and the random circuits in what they carry.
    assert len({round(each["minimality"], 4) for each in expected}) > 2


def test_areas_are_those_of_random_rankings(unlike):
    model, pairs = unlike
    graph = Graph.of(model, vision=False)
    importance = random_ranking(graph, 99)
    fractions = (0.1, 0.3, 0.6, 1.0)
    circuit = Circuit(graph, top_edges(graph, importance, 10))
    found = against_random(
        model, circuit, pairs, importance=importance, fractions=fractions, draws=2, sets=1, seed=5
    )
    areas = {"cpr": [], "cmd": []}
    for ranking in (importance, random_ranking(graph, 5), random_ranking(graph, 6)):
        sizes = [round(fraction * graph.n_edges) for fraction in fractions]
        f = np.array([share(graph, top_edges(graph, ranking, size)) for size in sizes])
        areas["cpr"].append(np.trapezoid(f, fractions))
        areas["cmd"].append(np.trapezoid(np.abs(1 - f), fractions))
    for measure, expected in areas.items():
        own, others = found.of(measure)
        np.testing.assert_allclose(
            [own.estimate, *(r.estimate for r in others)], expected, atol=1e-5
        )


def test_a_summary_says_how_many_random_circuits_are_as_good(unlike):
    model, pairs = unlike
    graph = Graph.of(model, vision=False)
    found = against_random(model, Circuit(graph, graph.valid), pairs, draws=3, sets=1)
    summary = found.summary().set_index("measure")
    assert summary.index.tolist() == ["faithfulness", "completeness", "minimality"]
    # Random circuits of all edges are the whole graph itself, so each is as good.
    assert summary.p_value.tolist() == [1.0, 1.0, 1.0]
    assert summary.random.tolist() == pytest.approx(summary.estimate.tolist())
    assert summary.better.tolist() == ["more", "less", "more"]
    frame = found.table.frame.copy()
    frame.loc[frame.circuit != "own", "value"] = [0.2, 0.4, 2.0, -1.0, 0.1, 0.2, 9.0, 9.0, -9.0]
    changed = type(found)(ResultTable(frame)).summary().set_index("measure")
    assert changed.loc["faithfulness", "p_value"] == pytest.approx(2 / 4)  # one of 0.2, 0.4, 2.0
    assert changed.loc["completeness", "p_value"] == pytest.approx(2 / 4)  # -1.0 lies below 0
    assert changed.loc["minimality", "p_value"] == pytest.approx(3 / 4)
    assert changed.loc["faithfulness", "random"] == pytest.approx(2.6 / 3)


def test_random_circuits_can_be_grown_from_the_logits_too(unlike):
    model, pairs = unlike
    graph = Graph.of(model, vision=False)
    circuit = Circuit(graph, top_edges(graph, random_ranking(graph, 7), 12))
    found = against_random(model, circuit, pairs, strategy="greedy", draws=6, sets=1, seed=2)
    grown = [grow(graph, random_ranking(graph, 2 + i), 12) for i in range(6)]
    expected = [share(graph, kept) for kept in grown]
    got = [each.estimate for each in found.of("faithfulness")[1]]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(expected).max() > 0


def test_intervals_and_random_nodes(model, pairs):
    graph = Graph.of(model, vision=False)
    scores = score_edges(model, pairs, graph, progress=False)
    circuit = select_circuit(scores, "greedy", n=60)
    found = against_random(model, circuit, pairs, of="nodes", draws=2, sets=2)
    frame = found.table.frame
    assert frame.circuit.tolist() == ["own", "random 0", "random 1"] * 3
    assert ((frame.low <= frame.value) & (frame.value <= frame.high)).all()
    assert (frame.n == len(pairs)).all()
    drawn = random_circuit(graph, len(circuit.nodes), 0, of="nodes")
    again = against_random(model, drawn, pairs, of="nodes", draws=1, sets=2)
    assert again.of("minimality")[0] == found.of("minimality")[1][0]


def test_bad_input(model, pairs):
    graph = Graph.of(model, vision=False)
    with pytest.raises(UsageError, match="0 edges"):
        against_random(model, Circuit(graph, torch.zeros_like(graph.valid)), pairs)
    whole = Circuit(graph, graph.valid)
    with pytest.raises(UsageError, match="draws=0"):
        against_random(model, whole, pairs, draws=0)
    with pytest.raises(UsageError, match="No measure 'cpr' here: it has faithfulness, "):
        against_random(model, whole, pairs[:1], draws=1, sets=1).of("cpr")
