"""Every kind of result that has a figure shows it, on an untrained organism."""

import pytest
import torch

import lvlm_interp as li
from lvlm_interp import plotting
from lvlm_interp.activations.memory import collect
from lvlm_interp.organisms.architecture import Sizes, build_model, build_processor


@pytest.fixture(scope="module")
def model():
    hf = build_model(Sizes(text_layers=2, vision_layers=2), 0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 2 * parameter.shape[-1] ** -0.5)
    return li.wrap(hf, build_processor())


@pytest.fixture(scope="module")
def pairs():
    return li.scenes.pairs("object", 8, 0, kind="evidence")


def shows(result):
    html = result._repr_html_()
    assert "data:image/png;base64," in html and "<table" in html and "<script" not in html


def test_lenses_show_themselves(model, pairs):
    some = [pair.clean for pair in pairs]
    shows(li.lens.logit_lens(model, model.prepare(some[:2])))
    shows(li.lens.logit_lens(model, model.prepare([(None, "what is it ?")]), positions="all"))
    shows(li.lens.attention_maps(model, model.prepare(some[:1])))
    shows(li.lens.localise(model, some, ["ring"] * 8))
    shows(li.lens.internal_confidence(model, some, ["ring"] * 8))
    shows(li.lens.token_ablation(model, some, groups=["object"]))


def test_patching_shows_itself(model, pairs):
    options = {"progress": False}
    shows(li.patching.activation_patch(model, pairs, "text.*.z", "all", **options))
    roles = ["object", "last"]
    shows(li.patching.activation_patch(model, pairs, "text.*.resid_pre", roles, **options))
    shows(li.patching.attention_knockout(model, pairs, **options))


def test_a_sweep_shows_itself(model, pairs):
    some = [side for pair in pairs for side in (pair.clean, pair.corrupt)]
    data = collect(model, some, sites=["text.*.resid_post"], positions=["object"])
    shows(li.probing.sweep(data, label="present", group="group", n_folds=3, n_resamples=50))


def test_circuits_are_drawn(model, pairs):
    scores = li.circuits.score_edges(model, pairs, progress=False)
    circuit = li.circuits.select_circuit(scores, "greedy", n=40)
    figure = plotting.circuit(circuit, most_edges=10)
    assert "10 edges (the heaviest of" in figure.axes[0].get_title(loc="right")
    whole = plotting.circuit(circuit)
    texts = {text.get_text() for text in whole.axes[0].texts}
    assert texts == {name.removeprefix("text.") for name in circuit.node_table()["node"]}
