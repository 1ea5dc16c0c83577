"""The circuit of all edges is the model, and without any edge, or any input, the other run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf
from torch.utils._python_dispatch import TorchDispatchMode

from lvlm_interp.circuits import Circuit, Graph, circuit_metric, score_edges, score_nodes
from lvlm_interp.circuits.edges import EdgeRun
from lvlm_interp.circuits.scores import EdgeTask
from lvlm_interp.circuits.streams import prove_streams
from lvlm_interp.circuits.tower import towers, written
from lvlm_interp.errors import ModelError
from lvlm_interp.models import zoo as tiny
from lvlm_interp.models.inputs.sample import synthetic_inputs
from lvlm_interp.models.loading import wrap
from lvlm_interp.patching import activation_patch
from lvlm_interp.patching.batches import batches
from tests.models import adapters, processors, zoo
from tests.patching.conftest import make_pairs, told_apart

QUIET = {"progress": False}
# Two logits of up to 4, each stored in steps of 2^-6, and the runs that lead to them.
BOUND = {"fp32": 5e-6, "bf16": 4e-2}
FAST = (
    ("llava", "fp32", "plain"),
    ("llava", "bf16", "plain"),
    ("qwen3_vl", "fp32", "plain"),
    ("gemma3", "fp32", "doubled"),
    ("internvl", "fp32", "plain"),
)
EDGES = [name for name in zoo.BUILDERS if name != "mllama"]


def held(name, dtype="fp32", kind="plain", n=1):
    model = wrap(adapters.build(name, dtype, kind), processors.build(name))
    return model, told_apart(model, make_pairs(n))


def extremes(model, pairs, graph):
    """m of all edges, of none, and of all but those of what enters; full and empty."""
    vision = any(sender.tower == "vision" for sender in graph.senders)
    enters = [
        s.name for s in graph.senders if s.layer is None and not (vision and s.name == "image")
    ]
    nothing = torch.zeros_like(graph.valid)
    blind = graph.valid & ~graph.edges_from_nodes(enters)
    kept = (graph.valid, nothing, blind)
    inside, full, empty = circuit_metric(model, [Circuit(graph, each) for each in kept], pairs)
    return inside, full, empty


@pytest.mark.parametrize("vision", [False, True], ids=["text", "vision"])
@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    [
        pytest.param(name, *held, marks=() if (name, *held) in FAST else pytest.mark.slow)
        for name in EDGES
        for held in (("fp32", "plain"), ("bf16", "plain"), ("fp32", "doubled"))
    ],
)
def test_all_edges_are_the_model_and_no_edges_are_the_other_run(name, dtype, kind, vision):
    model, pairs = held(name, dtype, kind, n=3)
    inside, full, empty = extremes(model, pairs, Graph.of(model, vision=vision))
    bound = BOUND[dtype] * max(1.0, np.abs(np.concatenate([full, empty])).max())
    np.testing.assert_allclose(inside[0], full, atol=bound)
    np.testing.assert_allclose(inside[1], empty, atol=bound)
    np.testing.assert_allclose(inside[2], empty, atol=bound)


REFUSED = {
    "mllama": "attends to another stream",
    "qwen3_5": "gates its heads by its input",
    "qwen3_5_moe": "gates its heads by its input",
}
"""Architectures whose blocks are no sum of heads and MLPs over one stream."""


@pytest.mark.parametrize("vision", [False, True], ids=["text", "vision"])
@pytest.mark.parametrize(
    "kind", zoo.tiered(tiny.CONFIGS, ("vipllava", "cohere2_vision", "qwen3_vl_moe", "qwen3_5"))
)
def test_every_architecture_is_the_sum_of_its_senders_or_refused(kind, vision):
    """Without edges the run is the other one, whose image has other pixels; with all, itself."""
    model = wrap(tiny.build(kind), selfcheck=False)
    if kind in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[kind]):
            Graph.of(model, vision=vision)
        return
    run = synthetic_inputs(model)
    pixels = run["pixel_values"]
    moved = pixels + 0.5 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    other = replace(run, tensors={**run.tensors, "pixel_values": moved})
    graph = Graph.of(model, vision=vision)
    parts = towers(model, graph)
    prove_streams(model, [part.name for part in parts], run)
    here, there = (written(model, parts, inputs) for inputs in (run, other))
    assert float((here.logits - there.logits).abs().max()) > 1e-2
    roles = torch.ones(1, 1, run["input_ids"].shape[1])
    whole = {part.name: there.whole(part) for part in parts}
    for changed, expected in ((torch.zeros_like(graph.valid), here), (graph.valid, there)):
        logits = EdgeRun(model, parts, run, whole, changed[None].float(), roles).logits()
        torch.testing.assert_close(logits, expected.logits, atol=5e-6, rtol=1e-5)


def several_layers(layers):
    config = hf.LlavaConfig(
        vision_config=zoo.vision_config("clip_vision_model"),
        text_config=zoo.text_config(),
        image_token_index=zoo.IMAGE,
        vision_feature_layer=layers,
    )
    return wrap(zoo.randomised(hf.LlavaForConditionalGeneration, config), processors.build("llava"))


@pytest.mark.parametrize("layers", [[-3, -2], pytest.param([1, 2, 3], marks=pytest.mark.slow)])
def test_every_feature_layer_is_a_reader(layers):
    model, pairs = several_layers(layers), make_pairs(3)
    graph = Graph.of(model)
    assert sum(receiver.part == "read" for receiver in graph.receivers) == len(layers) - 1
    inside, full, empty = extremes(model, pairs, graph)
    np.testing.assert_allclose(inside[0], full, atol=1e-5)
    np.testing.assert_allclose(inside[1], empty, atol=1e-5)
    np.testing.assert_allclose(inside[2], empty, atol=1e-5)
    # A node of the vision tower is then what activation patching exchanges, by every way out.
    node = [Circuit(graph, graph.valid & ~graph.edges_from_nodes(["vision.0.h1"]))]
    patched = activation_patch(
        model, pairs, "vision.0.z", "all", direction="noise", heads=[(0, 1)], **QUIET
    )
    got, _, _ = circuit_metric(model, node, pairs)
    np.testing.assert_allclose(got[0], patched.table.frame.m_patched, atol=2e-5)


def test_embeddings_read_in_front_of_the_tower_are_refused():
    with pytest.raises(ModelError, match="vision=False"):
        Graph.of(several_layers([0, 2]))


def test_a_place_that_the_graph_does_not_know_is_refused(monkeypatch):
    """As in an architecture that is read, or added to, where no configuration says so."""
    from lvlm_interp.circuits import streams

    model, pairs = held("qwen3_vl")
    inputs = model.prepare(pairs[0].clean)
    with monkeypatch.context() as patch:
        patch.setattr(streams, "inner_reads", lambda model, tower: ())
        with pytest.raises(ModelError, match="something reads its stream"):
            prove_streams(model, ["vision", "text"], inputs)
        patch.setattr(streams, "additions", lambda model, tower: ())
        with pytest.raises(ModelError, match="something is added to its stream"):
            prove_streams(model, ["text"], inputs)
    prove_streams(model, ["vision", "text"], inputs)


def test_blocks_without_edges_of_their_own_are_refused_in_a_sentence():
    model, pairs = held("mllama")
    with pytest.raises(ModelError, match="attends to another stream than its own"):
        score_edges(model, pairs, **QUIET)


@pytest.mark.parametrize("name", zoo.tiered(["llava", "gemma3", "qwen3_vl"], ("gemma3",)))
def test_adapters_give_the_edges_of_the_merged_model(name):
    net = adapters.build(name, kind="doubled")
    merged = wrap(adapters.undoubled(net), processors.build(name))
    model = wrap(net, processors.build(name))
    pairs = told_apart(model, told_apart(merged, make_pairs(1)))
    scores = [score_edges(m, pairs, Graph.of(m), **QUIET).values for m in (model, merged)]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["eap", pytest.param("eap_ig", marks=pytest.mark.slow)])
def test_half_precision_gives_the_scores_of_single_precision(method, dtype):
    whole, pairs = held("llava")
    half = wrap(zoo.build("llava").to(dtype), processors.build("llava"))
    first, second = (
        score_edges(model, pairs, Graph.of(model), method=method, **QUIET).values
        for model in (whole, half)
    )
    apart = float((first - second).abs().max() / first.abs().max())
    assert apart < (0.1 if dtype is torch.bfloat16 else 0.02)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_models_have_edges(bits, tmp_path):
    model, pairs = adapters.quantised(tmp_path, bits), make_pairs(1)
    graph = Graph.of(model, vision=False)
    inside, full, empty = extremes(model, pairs, graph)
    np.testing.assert_allclose(inside[0], full, atol=2e-2)
    np.testing.assert_allclose(inside[1], empty, atol=3e-2)
    if bits == 8:  # bitsandbytes has no gradient in 4 bits on processors
        assert bool(score_edges(model, pairs, graph, **QUIET).values.any())


@pytest.mark.parametrize("name", zoo.tiered(["qwen3_vl", "gemma3", "internvl"], ("qwen3_vl",)))
def test_eap_is_the_derivative_of_each_edge(name):
    """The slope of m in the weight of one edge, by a central difference."""
    model, pairs = held(name)
    graph = Graph.of(model)
    scores = score_edges(model, pairs, graph, **QUIET)
    task = EdgeTask.make(model, graph, next(batches(model, pairs, 1)), "logit_diff", "noise")
    chosen = scores.values[0].abs().flatten().topk(4).indices
    edges = torch.stack(torch.unravel_index(chosen, graph.valid.shape), -1)
    extra = [j for j, r in enumerate(graph.receivers) if r.part == "read"]
    edges = torch.cat(
        [edges, torch.tensor([[0, j, 0] for j in extra], dtype=torch.long).view(-1, 3)]
    )
    h = 0.01
    for i, j, k in edges.tolist():
        masks = torch.zeros(2, *graph.valid.shape)
        masks[0, i, j, k], masks[1, i, j, k] = h, -h
        up, down = task.metric(masks)
        slope = float((up - down)[0] / (2 * h))
        assert float(scores.values[0, i, j, k]) == pytest.approx(slope, rel=5e-2, abs=2e-5)


class Largest(TorchDispatchMode):
    """The most numbers that any one tensor holds while it is open."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, torch.Tensor):
                self.most = max(self.most, each.numel())
        return out


def deep(n_layers):
    config = hf.LlavaConfig(
        vision_config=zoo.vision_config("clip_vision_model"),
        text_config=zoo.text_config(num_hidden_layers=n_layers),
        image_token_index=zoo.IMAGE,
    )
    return wrap(zoo.randomised(hf.LlavaForConditionalGeneration, config), processors.build("llava"))


def test_no_tensor_of_the_scores_grows_with_depth():
    """Senders and receivers are taken a layer at a time, but for the scores themselves."""
    most = {}
    for n_layers in (4, 8):
        model, pairs = deep(n_layers), make_pairs(1)
        graph = Graph.of(model, vision=False)
        with Largest() as largest:
            scores = score_edges(model, pairs, graph, **QUIET)
        most[n_layers] = max(largest.most - scores.values.numel(), 0), scores.values.numel()
        positions = model.prepare(pairs[0].clean)["input_ids"].shape[1]
        stage = 9 * positions * model.d_model  # q, k, v of a layer, or its heads
        assert largest.most <= max(stage, scores.values.numel(), 320 * 48, 32 * 320)


def test_nodes_of_an_adapted_model_are_what_patching_gives():
    model, pairs = held("llava", kind="doubled", n=2)
    scores = score_nodes(model, pairs, Graph.of(model, vision=False), method="exact", **QUIET)
    patched = activation_patch(model, pairs, "text.*.z", "all", direction="noise", **QUIET)
    frame = patched.table.frame
    effect = (frame.m_patched - frame.m_clean).groupby([frame.layer, frame["head"]]).mean()
    for (layer, head), value in effect.items():
        got = scores.values[:, scores.graph.sender(f"text.{layer}.h{head}")].mean()
        assert float(got) == pytest.approx(value, abs=2e-5)
