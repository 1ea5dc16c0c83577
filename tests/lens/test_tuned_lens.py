import numpy as np
import pytest
import torch
from tests_lens_models import random_model, scenes

from lvlm_interp.errors import StoreError, UsageError
from lvlm_interp.lens import (
    TunedLens,
    TunedLensTrainer,
    compare_lenses,
    logit_lens,
    train_tuned_lens,
)


@pytest.fixture(scope="module")
def small():
    return random_model(3, text_layers=3, text_width=32, text_heads=4, text_mlp=48, vision_layers=2)


@pytest.fixture(scope="module")
def trained(small):
    return train_tuned_lens(small, scenes(24), steps=60, batch_size=4, seed=0, progress=False)


def test_held_out_kl_falls_in_every_layer_but_the_last(small, trained):
    fit = compare_lenses(small, trained, scenes(8, first=100))
    means = fit.table.mean(["layer", "metric"]).pivot(
        index="layer", columns="metric", values="estimate"
    )
    assert list(means.index) == [0, 1]
    assert (means["kl_tuned"] < 0.8 * means["kl_logit"]).all()


def test_training_starts_at_the_logit_lens(small):
    lens = TunedLensTrainer(small, steps=1).lens()
    inputs = small.prepare(scenes(2))
    plain, tuned = logit_lens(small, inputs, words=["ring"]), lens(small, inputs, words=["ring"])
    np.testing.assert_array_equal(plain.word_probs, tuned.word_probs)


def test_kl_is_that_of_torch(small):
    lens = TunedLensTrainer(small, steps=1).lens()
    inputs = small.prepare(scenes(2))
    fit = compare_lenses(small, lens, scenes(2))
    logits, cache = small.run_with_cache(inputs, "text.0.resid_post")
    rows = [tokens.real for tokens in inputs.tokens]
    with torch.no_grad():
        read = small.hf.lm_head(small.unembed.norm(cache["text.0.resid_post"])).log_softmax(-1)
        kl = torch.nn.functional.kl_div(
            read, logits.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
    expected = [float(kl[row, at].mean()) for row, at in enumerate(rows)]
    got = fit.table.select(layer=0, metric="kl_logit").frame["value"]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_last_layer_stays_the_models_own(small, trained):
    inputs = small.prepare(scenes(2))
    plain = logit_lens(small, inputs, sites="text.2.resid_post", words=["ring"])
    tuned = trained(small, inputs, sites="text.2.resid_post", words=["ring"])
    np.testing.assert_array_equal(plain.word_probs, tuned.word_probs)


def test_the_model_gets_no_gradients(small, trained):
    assert trained and all(parameter.grad is None for parameter in small.hf.parameters())


def test_saved_lens_belongs_to_its_model(small, trained, tmp_path):
    path = trained.save(tmp_path / "lens.safetensors")
    again = TunedLens.load(path, small)
    for site, matrix in trained.matrices.items():
        torch.testing.assert_close(again.matrices[site], matrix, atol=0, rtol=0)
        torch.testing.assert_close(again.biases[site], trained.biases[site], atol=0, rtol=0)
    other = random_model(4, text_layers=3, text_width=32, text_heads=4, text_mlp=48)
    with pytest.raises(StoreError, match="was trained for a model with weights"):
        TunedLens.load(path, other)
    (tmp_path / "broken").write_bytes(b"x" * 64)
    with pytest.raises(StoreError, match="no saved tuned lens"):
        TunedLens.load(tmp_path / "broken", small)


def test_bad_input(small, trained):
    inputs = small.prepare(scenes(1))
    with pytest.raises(UsageError, match=r"no translator for text\.0\.attn_out"):
        trained(small, inputs, sites="text.0.attn_out")
    with pytest.raises(UsageError, match="heads have no translator"):
        TunedLensTrainer(small, sites="text.0.z")
    with pytest.raises(UsageError, match="needs examples"):
        train_tuned_lens(small, [])
