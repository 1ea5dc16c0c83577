"""Attention of generated tokens: each step's weights are those of a forced run up to it."""

import numpy as np
import pytest
import torch

import lvlm_interp as li
from lvlm_interp.errors import InputError, UsageError


@pytest.fixture(scope="module")
def model():
    return li.load_model("scenes", selfcheck=False)


@pytest.fixture(scope="module")
def inputs(model):
    image = li.scenes.pairs("object", 1, seed=0)[0].clean.image
    rows = [(image, "describe the image"), (image, "is there a ring ?")]
    return model.prepare(rows)


def test_each_step_is_the_last_position_of_a_forced_run(model, inputs):
    found = li.lens.spoken_attention(model, inputs, max_new_tokens=5)
    said = model.generate(inputs, max_new_tokens=5)
    assert [" ".join(words) for words in found.words] == [" ".join(text.split()) for text in said]
    one = model.prepare(inputs.examples[0])
    image = one.tokens[0].image
    mine = found.selection.rows == 0
    ids = one["input_ids"]
    for step in range(len(found.words[0])):
        tensors = {**one.tensors, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        _, cache = model.run_with_cache(tensors, "text.*.pattern")
        for layer in found.layers:
            expected = cache[f"text.{layer}.pattern"][0, :, -1, image].numpy()
            np.testing.assert_allclose(found.weights[step, layer][:, mine], expected, atol=1e-4)
        new = model.last_logits(tensors).argmax(-1)
        ids = torch.cat([ids, new[:, None]], 1)
    total = found.table.select(example=found.table.frame["example"].iloc[0], step=1, layer=2).frame
    np.testing.assert_allclose(total["value"], found.weights[1, 2][:, mine].sum(-1), atol=1e-5)


def test_it_is_one_picture_and_shows_itself(model, inputs):
    found = li.lens.spoken_attention(model, inputs, max_new_tokens=5)
    figure = li.plotting.spoken(found)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles[: len(found.words[0])] == list(found.words[0])
    assert "Attention of each generated token" in found._repr_html_()
    assert found.grid(0, layer=1, head=0).shape == found.grid(0).shape
    with pytest.raises(UsageError, match="no step 99"):
        found.grid(99)
    with pytest.raises(UsageError, match="Layer 77"):
        found.grid(0, layer=77)


def test_rows_without_an_image_are_refused(model):
    with pytest.raises(InputError):
        li.lens.spoken_attention(model, model.prepare([(None, "is there a ring ?")]))
