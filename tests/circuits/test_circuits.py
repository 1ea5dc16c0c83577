"""Edges against interventions made by hand, and what circuits are measured by."""

import networkx as nx
import numpy as np
import pytest
import torch

from lvlm_interp.circuits import (
    Circuit,
    Graph,
    circuit_metric,
    completeness,
    faithfulness,
    faithfulness_curve,
    minimality,
    random_circuit,
    score_edges,
    score_nodes,
    select_circuit,
)
from lvlm_interp.errors import StoreError, UsageError
from lvlm_interp.patching import Integration, activation_patch

QUIET = {"progress": False}


def edge(scores, sender, receiver):
    graph = scores.graph
    return float(scores.mean[graph.sender(sender), graph.receiver(receiver), 0])


@pytest.mark.parametrize("method", ["exact", "eap", "eap_ig"])
def test_closed_form_edges_and_eap_is_exact_where_the_model_is_linear(unlike, method):
    model, pairs = unlike
    scores = score_edges(model, pairs, Graph.of(model, vision=False), method=method, **QUIET)
    # By hand: what the sender's change (-1, 1), (-1, 2) or (-3, 4) becomes on that path alone.
    assert edge(scores, "tokens", "logits") == pytest.approx(-2, abs=1e-4)
    assert edge(scores, "tokens", "text.0.v0") == pytest.approx(-14, abs=1e-4)
    assert edge(scores, "tokens", "text.0.v1") == pytest.approx(-30, abs=1e-4)
    assert edge(scores, "text.0.h0", "text.1.v1") == pytest.approx(1 - 10, abs=1e-4)
    assert edge(scores, "text.0.h1", "text.1.v0") == pytest.approx(-6, abs=1e-4)
    assert edge(scores, "text.0.h1", "logits") == pytest.approx(-7, abs=1e-4)
    assert edge(scores, "text.1.h0", "logits") == pytest.approx(-10, abs=1e-4)
    assert edge(scores, "text.1.h1", "logits") == pytest.approx(-30, abs=1e-4)


@pytest.fixture(scope="module")
def exact(model, pairs):
    graph = Graph.of(model, vision=False)
    return score_edges(model, pairs[:1], graph, method="exact", copies=16, **QUIET)


def by_hand(hf, inputs, sender, receiver, kept, other, ids):
    """One edge with plain hooks: the receiver alone reads the stream with the sender exchanged."""
    layers = hf.model.language_model.layers
    change = other[sender] - kept[sender]
    name, layer = receiver.part, receiver.layer
    handles = []
    if name == "logits":

        def final(_m, args):
            return (args[0] + change,)

        handles.append(hf.model.language_model.norm.register_forward_pre_hook(final))
    elif name == "mlp":
        block = layers[layer]

        def feed(_m, _args, _out):
            stream = kept[f"mid{layer}"] + change
            return block.mlp.forward(block.post_attention_layernorm.forward(stream))

        handles.append(block.mlp.register_forward_hook(feed))
    else:
        block, d = layers[layer], 8
        module = getattr(block.self_attn, f"{name}_proj")
        rows = slice(receiver.head * d, (receiver.head + 1) * d)

        def feed(_m, _args, out):
            stream = block.input_layernorm.forward(kept[f"pre{layer}"] + change)
            new = out.clone()
            new[..., rows] = stream @ module.weight[rows].T
            return new

        handles.append(module.register_forward_hook(feed))
    with torch.no_grad():
        logits = hf(**inputs.tensors).logits[0, -1]
    for handle in handles:
        handle.remove()
    return float(logits[ids[0]] - logits[ids[1]])


def written(hf, inputs):
    """What every sender writes, from plain hooks."""
    out, handles = {}, []
    for i, block in enumerate(hf.model.language_model.layers):

        def note(key, index=0):
            def hook(_m, args, kwargs=None, result=None):
                out[key] = (args[0] if args else kwargs["hidden_states"]).clone()

            return hook

        handles.append(block.input_layernorm.register_forward_pre_hook(note(f"pre{i}")))
        handles.append(block.post_attention_layernorm.register_forward_pre_hook(note(f"mid{i}")))
        handles.append(block.self_attn.o_proj.register_forward_pre_hook(note(f"z{i}")))
        handles.append(
            block.mlp.register_forward_hook(lambda _m, _a, y, i=i: out.update({f"text.{i}.mlp": y}))
        )
    with torch.no_grad():
        hf(**inputs.tensors)
    for handle in handles:
        handle.remove()
    image = torch.zeros_like(out["pre0"])
    image[0, inputs.tokens[0].image] = 1
    out["image"], out["tokens"] = out["pre0"] * image, out["pre0"] * (1 - image)
    for i, block in enumerate(hf.model.language_model.layers):
        for head in range(4):
            rows = slice(head * 8, (head + 1) * 8)
            weight = block.self_attn.o_proj.weight[:, rows].detach()
            out[f"text.{i}.h{head}"] = out[f"z{i}"][..., rows] @ weight.T
    return out


def test_every_edge_equals_an_intervention_by_hand(model, pairs, exact):
    pair, graph = pairs[0], exact.graph
    clean, corrupt = model.prepare(pair.clean), model.prepare(pair.corrupt)
    ids = model.answer_id("yes"), model.answer_id("no")
    kept, other = written(model.hf, clean), written(model.hf, corrupt)
    base = model(clean)[0, -1]
    base = float(base[ids[0]] - base[ids[1]])
    checked = 0
    for i, j, _ in graph.valid.nonzero().tolist():
        sender, receiver = graph.senders[i], graph.receivers[j]
        hand = by_hand(model.hf, clean, sender.name, receiver, kept, other, ids) - base
        assert float(exact.values[0, i, j, 0]) == pytest.approx(hand, abs=2e-5), (sender, receiver)
        checked += 1
    assert checked == graph.n_edges > 100


def test_nodes_equal_activation_patching(model, pairs):
    graph = Graph.of(model)
    nodes = ["vision.1.h2", "text.0.h1", "text.1.h3"]
    circuits = [Circuit(graph, graph.valid & ~graph.edges_from_nodes([name])) for name in nodes]
    inside, _, _ = circuit_metric(model, circuits, pairs)
    for name, values in zip(nodes, inside, strict=True):
        tower, layer, head = name.split(".")
        patched = activation_patch(
            model,
            pairs,
            f"{tower}.{layer}.z",
            "all",
            direction="noise",
            heads=[(int(layer), int(head[1:]))],
            **QUIET,
        )
        np.testing.assert_allclose(values, patched.table.frame.m_patched, atol=2e-5)


def test_every_node_equals_an_intervention_by_hand(model, pairs):
    """Plain hooks put what one node writes in the corrupt run into the clean run."""
    pair, graph = pairs[0], Graph.of(model, vision=False)
    scores = score_nodes(model, pairs[:1], graph, method="exact", **QUIET)
    clean, corrupt = model.prepare(pair.clean), model.prepare(pair.corrupt)
    ids = model.answer_id("yes"), model.answer_id("no")
    other, layers = written(model.hf, corrupt), model.hf.model.language_model.layers
    base = model(clean)[0, -1]
    image = (clean["input_ids"] == model.config.image_token_id)[..., None]

    def hooked(name):
        if name in ("image", "tokens"):
            here = image if name == "image" else ~image
            return layers[0].register_forward_pre_hook(
                lambda _m, args: (torch.where(here, other["pre0"], args[0]), *args[1:])
            )
        layer, part = int(name.split(".")[1]), name.split(".")[2]
        if part == "mlp":
            return layers[layer].mlp.register_forward_hook(lambda *_: other[name])
        rows = slice(int(part[1:]) * 8, (int(part[1:]) + 1) * 8)

        def put(_module, args):
            z = args[0].clone()
            z[..., rows] = other[f"z{layer}"][..., rows]
            return (z,)

        return layers[layer].self_attn.o_proj.register_forward_pre_hook(put)

    for j, name in enumerate(graph.nodes):
        handle = hooked(name)
        with torch.no_grad():
            logits = model.hf(**clean.tensors).logits[0, -1]
        handle.remove()
        hand = float(logits[ids[0]] - logits[ids[1]] - (base[ids[0]] - base[ids[1]]))
        assert float(scores.values[0, j]) == pytest.approx(hand, abs=2e-5), name
    assert scores.n_forwards == 2 + len(graph.nodes)


def test_node_scores_on_the_closed_form(unlike):
    """The model is linear, so AtP is exact; GradDrop as its definition has it, worked by hand."""
    model, pairs = unlike
    graph = Graph.of(model, vision=False)
    exact, atp, star = (
        score_nodes(model, pairs, graph, method=method, **QUIET)
        for method in ("exact", "atp", "atp_star")
    )
    torch.testing.assert_close(atp.values, exact.values, atol=1e-3, rtol=1e-5)
    # Without block 1's branches, heads of block 0 reach the logits by the skip alone: |(-1) - 2|
    # and |(-3) - 4|. Without their own block they reach nothing. L - 1 = 1.
    by_name = dict(zip(graph.nodes, star.values[0].tolist(), strict=True))
    worked = {"text.0.h0": 3, "text.0.h1": 7, "text.1.h0": 10, "text.1.h1": 30, "text.1.mlp": 0}
    assert {name: by_name[name] for name in worked} == pytest.approx(worked, abs=1e-3)
    assert np.isnan(by_name["tokens"]) and star.circuit(2).n_edges > 0
    with pytest.raises(UsageError, match="n=99"):
        star.circuit(99)


def test_full_and_empty_circuits_are_the_two_runs(model, pairs):
    graph = Graph.of(model, roles=("object", "question", "last"))
    whole, nothing = Circuit(graph, graph.valid), Circuit(graph, torch.zeros_like(graph.valid))
    inside, full, empty = circuit_metric(model, [whole, nothing], pairs)
    np.testing.assert_allclose(inside[0], full, atol=1e-5)
    np.testing.assert_allclose(inside[1], empty, atol=1e-5)
    assert faithfulness(model, whole, pairs).estimate == pytest.approx(1, abs=1e-4)
    assert faithfulness(model, nothing, pairs).estimate == pytest.approx(0, abs=1e-4)


def test_roles_split_every_edge(model, pairs):
    plain = score_edges(model, pairs, Graph.of(model), **QUIET)
    split = score_edges(model, pairs, Graph.of(model, roles=("object", "last")), **QUIET)
    torch.testing.assert_close(split.values.sum(-1), plain.values.sum(-1), atol=1e-5, rtol=1e-4)


def test_eap_ig_along_pixels_and_embeddings(model, pairs):
    with pytest.raises(UsageError, match="gets no gradient"):
        score_edges(
            model, pairs, Graph.of(model), method="eap_ig", integration=Integration(), **QUIET
        )
    pixels = score_edges(model, pairs, Graph.of(model), method="eap_ig", **QUIET)
    assert pixels.table.provenance["integration"]["path"] == "pixels"
    assert bool(pixels.values[:, pixels.graph.where("vision")[0]].any())


def test_selection_by_number_threshold_and_growth(model, pairs):
    scores = score_edges(model, pairs, Graph.of(model), **QUIET)
    top = select_circuit(scores, "top", n=20)
    assert top.n_edges == 20
    floor = scores.importance()[top.kept].min()
    assert select_circuit(scores, "threshold", threshold=float(floor)).n_edges == 20
    grown = select_circuit(scores, "greedy", n=30)
    assert grown.n_edges == 30
    graph = grown.to_networkx().reverse()
    # A key-value head is drawn to every query head that reads it, so only writers must connect.
    assert set(grown.nodes) <= set(nx.descendants(graph, "logits"))
    with pytest.raises(UsageError, match="n=None"):
        select_circuit(scores, "greedy")


def test_curves_leave_out_fractions_that_keep_nothing(model, pairs):
    graph = Graph.of(model, vision=False)
    scores = score_edges(model, pairs, graph, **QUIET)
    curve = faithfulness_curve(model, graph, scores.importance(), pairs)
    assert curve.left_out == tuple(f for f in (0.001, 0.002) if round(f * graph.n_edges) == 0)
    assert curve.faithfulness[-1].estimate == pytest.approx(1, abs=1e-4)
    f = [each.estimate for each in curve.faithfulness]
    assert curve.cpr.estimate == pytest.approx(np.trapezoid(f, curve.fractions))
    assert curve.cmd.estimate == pytest.approx(
        np.trapezoid(np.abs(1 - np.array(f)), curve.fractions)
    )
    nodes = faithfulness_curve(model, graph, scores.importance().sum((1, 2)), pairs, of="nodes")
    assert nodes.of == "nodes" and nodes.faithfulness[-1].estimate == pytest.approx(1, abs=1e-4)


def test_completeness_and_minimality(model, pairs):
    graph = Graph.of(model, vision=False)
    circuit = select_circuit(score_edges(model, pairs, graph, **QUIET), "greedy", n=60)
    assert random_circuit(graph, 5, 0).n_edges == 5
    whole = Circuit(graph, graph.valid)
    table = completeness(model, whole, pairs, draws=3)
    assert table.gap.max() == pytest.approx(0, abs=1e-6)
    part = completeness(model, circuit, pairs, draws=3)
    assert ((part.low <= part.difference) & (part.difference <= part.high)).all()
    assert part.gap.max() > 1e-3
    shares = minimality(model, circuit, pairs)
    assert set(shares.node) == set(circuit.nodes)


def test_json_round_trip(model, pairs, tmp_path):
    scores = score_edges(model, pairs, Graph.of(model), **QUIET)
    circuit = select_circuit(scores, "greedy", n=25)
    again = Circuit.load(circuit.save(tmp_path / "circuit.json"))
    assert again.graph == circuit.graph and torch.equal(again.kept, circuit.kept)
    torch.testing.assert_close(again.weight, circuit.weight)
    assert list(again.edge_table().columns) == ["sender", "receiver", "node", "role", "weight"]
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(StoreError, match="expected the format"):
        Circuit.load(tmp_path / "other.json")
