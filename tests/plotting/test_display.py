"""Every kind of result that has a figure shows it, on an untrained organism."""

import base64
import io
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp import plotting, results
from lvlm_interp.activations.memory import collect
from lvlm_interp.displays import display_of
from lvlm_interp.organisms.architecture import Sizes, build_model, build_processor
from lvlm_interp.stats import Estimate


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


def shown(result):
    """The caption, the text of the table's cells, and the picture of what Jupyter shows."""
    html = result._repr_html_()
    assert "<script" not in html
    encoded = re.search(r'src="data:image/png;base64,([^"]+)"', html).group(1)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("L"), float)
    assert picture.min() < 64 and picture.std() > 5, "the picture is blank"
    caption = unescape(re.search(r"<figcaption>(.*?)</figcaption>", html).group(1))
    cells = {unescape(cell) for cell in re.findall(r"<t[dh]>(.*?)</t[dh]>", html)}
    return caption, cells


def numbers(frame, column="estimate"):
    """The first rows' numbers, as a table shows them."""
    return {f"{value:.3f}" for value in frame[column].head(8)}


def test_lenses_show_their_words_and_scores(model, pairs):
    some = [pair.clean for pair in pairs]
    caption, cells = shown(li.lens.logit_lens(model, model.prepare(some[:2])))
    assert caption == "Top word of each image token, by layer"
    assert {"entropy", "text.0.resid_post", some[0].id} <= cells
    caption, _ = shown(li.lens.attention_maps(model, model.prepare(some[:1])))
    assert caption == "AttentionMaps"
    found = li.lens.localise(model, some, ["ring"] * 8)
    caption, cells = shown(found)
    assert caption == "How well the word's heat finds the object"
    assert {"logit lens", "attention", "pointing"} | numbers(found.summary()) <= cells
    found = li.lens.internal_confidence(model, some, ["ring"] * 8)
    _, cells = shown(found)
    means = found.table.mean(["metric"], cluster="group")
    assert {"internal_confidence", "output_probability"} | numbers(means) <= cells
    found = li.lens.token_ablation(model, some, groups=["object"])
    _, cells = shown(found)
    means = found.table.mean(["position", "metric"], cluster="group")
    assert {"none", "object", "change"} | numbers(means) <= cells


def test_tokens_without_a_place_show_their_entropy(model, pairs):
    some = [pairs[0].clean]
    for example in ((None, "what is it ?"), some[0]):
        positions = "question" if example is some[0] else "all"
        lens = li.lens.logit_lens(model, model.prepare([example]), positions=positions)
        caption, _ = shown(lens)
        assert caption == "Entropy, by layer"
    scores = li.lens.relevance(model, model.prepare(some), ["yes"], positions="question")
    assert "<img" not in scores._repr_html_() and "relevance" in scores._repr_html_()


def test_patching_shows_recovery(model, pairs):
    options = {"progress": False}
    found = li.patching.activation_patch(model, pairs, "text.*.z", "all", **options)
    caption, cells = shown(found)
    assert caption == "Recovery" and numbers(found.recovery(["layer", "head"])) <= cells
    roles = ["object", "last"]
    found = li.patching.activation_patch(model, pairs, "text.*.resid_pre", roles, **options)
    _, cells = shown(found)
    assert set(roles) | numbers(found.recovery(["layer", "position"])) <= cells
    found = li.patching.attention_knockout(model, pairs, **options)
    caption, cells = shown(found)
    means = found.table.mean(["layer", "position"], cluster="pair")
    assert caption == "What cutting attention does to the answer" and numbers(means) <= cells


def test_a_sweep_shows_its_accuracies(model, pairs):
    some = [side for pair in pairs for side in (pair.clean, pair.corrupt)]
    data = collect(model, some, sites=["text.*.resid_post"], positions=["object"])
    sweep = li.probing.sweep(data, label="present", group="group", n_folds=3, n_resamples=50)
    caption, cells = shown(sweep)
    assert caption == "Balanced accuracy of linear probes on held-out groups"
    assert {"text.0.resid_post"} | numbers(sweep.summary, "balanced_accuracy") <= cells


def test_every_result_has_a_display():
    """Also those of methods that will be written: a new `Result` must say how it shows itself."""
    for module in ("lens", "patching", "probing", "circuits"):
        for value in vars(getattr(li, module)).values():
            if isinstance(value, type) and issubclass(value, results.Result):
                assert value is results.Result or display_of(value), value


def test_direct_attribution_and_edges_show_themselves(model, pairs):
    direct = li.patching.direct_logit_attribution(model, pairs, progress=False)
    caption, cells = shown(direct)
    heads = direct.table.frame.dropna(subset=["head"])
    mean = heads.query("layer == 0 and head == 0")["value"].mean()
    assert "logit(answer) - logit(foil)" in caption and f"{mean:.3f}" in cells
    scores = li.circuits.score_edges(model, pairs, progress=False)
    caption, cells = shown(scores)
    assert caption == "The 40 most important edges (eap)"
    strongest = scores.mean.abs().flatten().topk(8).values.tolist()
    assert {f"{weight:.3f}" for weight in strongest} <= {cell.lstrip("-") for cell in cells}
    nodes = li.circuits.score_nodes(model, pairs, progress=False)
    caption, cells = shown(nodes)
    strongest = nodes.values.mean(0).abs().topk(8).values.tolist()
    assert caption == "The nodes that matter most (atp)"
    assert {f"{effect:.3f}" for effect in strongest} <= {cell.lstrip("-") for cell in cells}


def test_a_circuit_beside_random_ones_shows_itself(model, pairs):
    scores = li.circuits.score_edges(model, pairs, progress=False)
    circuit = li.circuits.select_circuit(scores, "greedy", n=60)
    found = li.circuits.against_random(model, circuit, pairs[:2], draws=2, sets=1)
    caption, cells = shown(found)
    assert caption == "The circuit beside 2 random ones of its size"
    summary = found.summary()
    assert numbers(summary) | numbers(summary, "random") | set(summary.measure) <= cells


def test_what_probes_do_shows_itself(pairs):
    frame = pd.DataFrame({"example": ["a"], "metric": ["m"], "value": [1.0]})
    table = results.ResultTable(frame)
    one, other = Estimate(0.81, 0.7, 0.9, 40), Estimate(0.62, 0.5, 0.7, 40)
    _, cells = shown(li.probing.CrossTest(table, one, other, one, None))
    assert {"within", "cross", "ceiling", "0.810", "0.620"} <= cells
    _, cells = shown(li.probing.CausalEffect(table, one, (0.1,), other))
    assert {"probe's direction", "beyond random", "0.810", "0.620"} <= cells
    rows = [
        {
            "site": site,
            "among_wrong": 0.7,
            "among_wrong_low": 0.6,
            "among_wrong_high": 0.8,
            "overall": 0.9,
            "overall_low": 0.8,
            "overall_high": 0.95,
        }
        for site in ("vision.0.resid_post", "text.0.resid_post", "best", "answer")
    ]
    caption, cells = shown(li.probing.KnownNotSaid(table, pd.DataFrame(rows), 12))
    assert "(12 answers)" in caption and {"0.700", "0.950", "answer"} <= cells


def test_in_a_terminal_a_result_is_its_table(model, pairs):
    lens = li.lens.logit_lens(model, model.prepare([pairs[0].clean]))
    text = repr(lens)
    assert text.startswith("LensResult of ResultTable: ") and "entropy" in text
    assert "<" not in text and len(text.splitlines()) < 20


def test_circuits_are_drawn(model, pairs):
    scores = li.circuits.score_edges(model, pairs, progress=False)
    circuit = li.circuits.select_circuit(scores, "greedy", n=40)
    figure = plotting.circuit(circuit, most_edges=10)
    assert "10 edges (the heaviest of" in figure.axes[0].get_title(loc="right")
    whole = plotting.circuit(circuit)
    texts = {text.get_text() for text in whole.axes[0].texts}
    parts = {name.rpartition(".")[2] for name in circuit.node_table()["node"]}
    assert texts - {"vision", "language model", "projector"} == {
        "MLP" if part == "mlp" else part for part in parts
    }
