import logging
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from lvlm_interp.activations.forward import Runner
from lvlm_interp.activations.memory import collect
from lvlm_interp.activations.roles import Role, parse_roles
from lvlm_interp.errors import DataError, InputError, SiteError, UsageError

SITES = "vision.*.resid_post,projector.out,text.*.resid_post,text.*.z"
ROLES = "object,image_mean,last,question,text:is,image_all"


@pytest.fixture(scope="module")
def collected(model, examples):
    return collect(model, examples, SITES, ROLES, batch_size=6, progress=False)


def test_every_value_is_that_of_a_single_run(model, examples, collected):
    for index in (0, 7, 13, 19):
        inputs = model.prepare(examples[index])
        _, cache = model.run_with_cache(inputs, SITES)
        tokens = inputs.tokens[0]
        for site in collected.sites:
            whole = cache[site][0].numpy()
            offset = 0 if site.startswith("text") else len(whole) - len(tokens.image)
            for role in collected[site].positions:
                at = tokens.positions(role, examples[index].boxes)
                if not site.startswith("text"):
                    at = at - tokens.image[0] + offset
                expected = whole[at].mean(axis=0)
                np.testing.assert_allclose(collected[site][index, role], expected, atol=2e-6)
            values, rows = collected[site].tokens("image_all")
            at = tokens.image if site.startswith("text") else np.arange(36) + offset
            np.testing.assert_allclose(values[rows == index], whole[at], atol=2e-6)


def test_the_class_token_of_the_vision_tower_is_no_patch(model, examples, collected):
    _, cache = model.run_with_cache(model.prepare(examples[0]), "vision.0.resid_post")
    assert cache["vision.0.resid_post"].shape[1] == 37
    mean = cache["vision.0.resid_post"][0, 1:].mean(0).numpy()
    np.testing.assert_allclose(collected["vision.0.resid_post"][0, "image_mean"], mean, atol=1e-6)


def test_vision_sites_have_image_positions_alone(collected):
    assert collected["vision.0.resid_post"].positions == ("object", "image_mean")
    assert collected["text.1.z"].positions == (
        "object",
        "image_mean",
        "last",
        "question",
        "text:is",
    )
    assert collected["text.1.z"].heads == 4 and collected["text.1.resid_post"].heads is None


def test_labels_say_what_the_model_said(model, examples, collected):
    frame = collected.labels
    assert list(frame["example"]) == [example.id for example in examples]
    for index in (0, 11):
        logits = model.last_logits(model.prepare(examples[index]))[0]
        word = model.tokenizer.decode([int(logits.argmax())]).strip()
        assert frame["said"][index] == word
        assert frame["wrong"][index] == (word != examples[index].answer)
        answer, foil = (model.answer_id(w) for w in (examples[index].answer, examples[index].foil))
        assert frame["margin"][index] == pytest.approx(
            float(logits[answer] - logits[foil]), abs=1e-5
        )
    assert frame["present"][0] == examples[0].labels["present"]


def test_slices_heads_and_names(collected):
    z = collected["text.1.z"]
    assert z.shape == (20, 5, 4, 8) and np.asarray(z).shape == z.shape
    assert z[3].shape == (5, 4, 8)
    np.testing.assert_array_equal(z[2:5, "last"], z[:][2:5, 2])
    np.testing.assert_array_equal(z[[4, 1], ["last", "object"]], z[:][[4, 1]][:, [2, 0]])
    np.testing.assert_array_equal(z[..., 0], z[:][..., 0])
    np.testing.assert_array_equal(z[-1, "last", 2], z[:][-1, 2, 2])
    X, _ = z.rows_at("last", head=3)
    np.testing.assert_array_equal(X, z[:][:, 2, 3])
    assert collected.to_torch("text.1.z", "last").shape == (20, 4, 8)
    with pytest.raises(UsageError, match=r"has the positions .*'lst' was asked"):
        z[:, "lst"]
    with pytest.raises(UsageError, match="has 4 heads, head 4"):
        z.rows_at("last", head=4)
    with pytest.raises(SiteError, match=r"text\.1\.z"):
        collected["text.7.z"]


def test_to_sklearn_gives_rows_that_have_the_label(collected):
    X, y, groups = collected.to_sklearn("text.0.resid_post", "last", label="relation")
    assert len(X) == len(y) == len(groups) == 10
    assert set(y) <= {"left", "right", "above", "below"}
    X, y, groups = collected.to_sklearn("text.0.resid_post", "image_all", label="present")
    assert len(X) == 20 * 36 and (groups[:36] == groups[0]).all()
    with pytest.raises(UsageError, match=r"no label 'presnt'.*did you mean 'present'"):
        collected.to_sklearn("text.0.resid_post", "last", label="presnt")


def test_wrong_requests_are_refused_before_a_run(model, examples):
    with pytest.raises(UsageError, match="did you mean 'object'"):
        collect(model, examples, "text.0.z", "objct")
    with pytest.raises(UsageError, match="at least one position"):
        collect(model, examples, "text.0.z", "")
    with pytest.raises(SiteError, match=r"vision\.0\.z holds image patches and has none of"):
        collect(model, examples, "vision.0.z", "last")
    with pytest.raises(SiteError, match="no single position axis"):
        collect(model, examples, "text.0.pattern", "last")
    with pytest.raises(DataError, match="data set is empty"):
        collect(model, [], "text.0.z", "last")


def test_a_missing_role_raises_or_is_nan(model, examples):
    both = next(e for e in examples if "other_object" in e.boxes)
    alone = replace(both, id="alone", boxes={"object": both.boxes["object"]})
    data = [both, alone]
    with pytest.raises(InputError, match="Example 'alone', position 'other_object'"):
        collect(model, data, "text.0.resid_post", "other_object")
    found = collect(model, data, "text.0.resid_post", "other_object,last", missing="nan")
    values = found["text.0.resid_post"][:]
    assert np.isfinite(values[0]).all() and np.isnan(values[1, 0]).all()
    assert np.isfinite(values[1, 1]).all()
    X, _, _ = found.to_sklearn("text.0.resid_post", "other_object", label="truth")
    assert len(X) == 1


def test_the_batch_size_halves_when_memory_runs_out(model, examples, monkeypatch, caplog):
    runner = Runner(model, model.sites("text.0.z"), parse_roles("last"), batch_size=8)
    whole = runner.run(examples)
    sizes = []
    real = Runner._batch

    def scarce(self, batch):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch)

    monkeypatch.setattr(Runner, "_batch", scarce)
    with caplog.at_level(logging.WARNING):
        again = runner.run(examples)
    assert sizes[:3] == [8, 4, 2] and runner.batch_size == 2
    assert "the batch size is now 2" in caplog.text
    (site,) = whole.pooled
    np.testing.assert_allclose(again.pooled[site], whole.pooled[site], atol=1e-6)
    assert again.rows[5]["example"] == whole.rows[5]["example"]
    monkeypatch.setattr(Runner, "_batch", lambda *_: (_ for _ in ()).throw(RuntimeError("other")))
    with pytest.raises(RuntimeError, match="other"):
        runner.run(examples)


def test_batches_pad_little(model, examples, monkeypatch):
    padded = []
    real = type(model).prepare

    def prepare(self, rows, **kwargs):
        inputs = real(self, rows, **kwargs)
        padded.append({len(tokens.real) for tokens in inputs.tokens})
        return inputs

    monkeypatch.setattr(type(model), "prepare", prepare)
    runner = Runner(model, model.sites("text.0.z"), parse_roles("last"), batch_size=10)
    mixed = [example for pair in zip(examples[:10], examples[10:], strict=True) for example in pair]
    runner.run(mixed)
    spans = sorted((min(lengths), max(lengths)) for lengths in padded)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert spans[0][0] < spans[-1][1]


@pytest.mark.parametrize(
    ("name", "base", "pooled"),
    [
        ("object", "object", True),
        ("object_all", "object", False),
        ("image_mean", "image_all", True),
        ("image_all", "image_all", False),
        ("all", "all", False),
        ("text:blue ring", "text:blue ring", True),
    ],
)
def test_roles(name, base, pooled):
    assert Role.parse(name) == Role(name, base, pooled)
