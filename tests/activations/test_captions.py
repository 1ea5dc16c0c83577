"""The role `caption`: the description, read without the image, beside the roles of the prompt."""

from dataclasses import replace

import numpy as np
import pytest

from lvlm_interp.activations.extract import extract
from lvlm_interp.activations.memory import collect
from lvlm_interp.data.examples import Example
from lvlm_interp.errors import InputError, SiteError

SITES = "text.*.resid_post,text.0.z,vision.0.resid_post"


def test_the_caption_is_what_a_run_of_its_words_alone_has(model, examples):
    found = collect(
        model, examples, SITES, "last,caption,image_mean,caption_all", batch_size=7, progress=False
    )
    alone = [Example(e.id, None, e.labels["caption"]) for e in examples]
    texts = collect(model, alone, "text.*.resid_post,text.0.z", "question", progress=False)
    prompt = collect(model, examples, SITES, "last,image_mean", progress=False)
    for site in ("text.1.resid_post", "text.0.z"):
        assert found[site].positions == ("last", "caption", "image_mean")
        np.testing.assert_allclose(found[site][:, "caption"], texts[site][:, "question"], atol=2e-6)
        for role in ("last", "image_mean"):
            np.testing.assert_allclose(found[site][:, role], prompt[site][:, role], atol=2e-6)
        values, rows = found[site].tokens("caption_all")
        first = values[rows == 3].mean(axis=0)
        np.testing.assert_allclose(first, found[site][3, "caption"], atol=2e-6)
    assert found["vision.0.resid_post"].positions == ("image_mean",)


def test_the_caption_alone_needs_no_other_role(model, examples):
    found = collect(model, examples[:4], "text.0.resid_post", "caption", progress=False)
    assert found["text.0.resid_post"].shape == (4, 1, 32)
    with pytest.raises(SiteError, match="holds image patches and has none"):
        collect(model, examples[:4], "vision.0.resid_post", "caption", progress=False)


def test_an_example_without_a_description_raises_or_is_nan(model, examples):
    bare = replace(examples[0], id="bare", labels={})
    with pytest.raises(InputError, match="'bare' has no description"):
        collect(model, [examples[1], bare], "text.0.resid_post", "caption", progress=False)
    found = collect(
        model, [examples[1], bare], "text.0.resid_post", "caption", missing="nan", progress=False
    )["text.0.resid_post"][:, "caption"]
    assert np.isfinite(found[0]).all() and np.isnan(found[1]).all()
    none = collect(
        model, [bare], "text.0.resid_post", "caption,caption_all", missing="nan", progress=False
    )["text.0.resid_post"]
    assert np.isnan(none[:, "caption"]).all() and len(none.tokens("caption_all")[0]) == 0


def test_a_store_has_it_too(model, examples, tmp_path):
    options = {"sites": "text.1.resid_post", "positions": "caption,last", "progress": False}
    store = extract(model, examples, out=tmp_path / "store", **options)
    memory = collect(model, examples, "text.1.resid_post", "caption,last", progress=False)
    np.testing.assert_allclose(
        store["text.1.resid_post"][:, "caption"],
        memory["text.1.resid_post"][:, "caption"],
        atol=2e-6,
    )
