import numpy as np
import pytest
import torch
from tests_lens_models import scenes

from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.lens import patchscope, self_consistency, token_ablation

PROMPT = "what color is it ?"


def test_zeroing_the_object_equals_doing_it_by_hand(model):
    some = scenes(3)
    found = token_ablation(model, some, kind="zero", groups=["object"], batch_size=2)
    inputs = model.prepare(some)
    at = [
        tokens.positions("object", example.boxes)
        for tokens, example in zip(inputs.tokens, some, strict=True)
    ]

    def zero(value):
        new = value.clone()
        for row, positions in enumerate(at):
            new[row, positions] = 0
        return new

    def difference():
        logits = model.last_logits(inputs)
        ids = [(model.answer_id(one.answer), model.answer_id(one.foil)) for one in some]
        return [float(logits[row, yes] - logits[row, no]) for row, (yes, no) in enumerate(ids)]

    with torch.no_grad():
        intact = difference()
        with model.edit({"text.embed": zero}):
            ablated = difference()
    frame = found.table.frame.query("metric == 'logit_diff'")
    np.testing.assert_allclose(frame.query("position == 'none'")["value"], intact, atol=1e-5)
    np.testing.assert_allclose(frame.query("position == 'object'")["value"], ablated, atol=1e-5)
    change = found.table.select(metric="change", position="object").frame["value"]
    np.testing.assert_allclose(change, np.subtract(ablated, intact), atol=1e-5)


def test_groups_and_draws(model):
    some = scenes(4)
    found = token_ablation(model, some, kind="mean", n_random=3, register_sigmas=1.5, seed=1)
    frame = found.table.frame.query("metric == 'correct'")
    sizes = frame.groupby("position")["n_tokens"]
    assert set(sizes.get_group("object")) == {4} and set(sizes.get_group("random")) == {4}
    assert frame.query("position == 'object+neighbours'")["n_tokens"].between(9, 16).all()
    assert (frame.query("position == 'random'").groupby("example")["draw"].nunique() == 3).all()
    assert set(frame["value"]) <= {0.0, 1.0}
    again = token_ablation(model, some, kind="mean", n_random=3, register_sigmas=1.5, seed=1)
    np.testing.assert_array_equal(again.table.frame["value"], found.table.frame["value"])


def test_bad_ablations(model):
    with pytest.raises(UsageError, match="kind must be one of zero, mean, noise"):
        token_ablation(model, scenes(1), kind="resample")
    with pytest.raises(UsageError, match="has no answer"):
        token_ablation(model, [scenes(1, answers=False)[0]])


def test_patched_input_says_what_the_word_says(model):
    table = self_consistency(
        model, ["ring", "red", "left"], prompt=PROMPT, placeholder="it", layers=[-1, 0, 3]
    ).frame
    assert (table.query("site == 'text.embed'")["value"] == 1).all()


def test_a_patch_after_the_last_layer_changes_nothing_said(model, inputs):
    unpatched = model.generate(model.prepare([(None, PROMPT)]), max_new_tokens=3)[0]
    found = patchscope(
        model,
        inputs,
        prompt=PROMPT,
        placeholder="it",
        layers=[0, 1],
        target_layer=3,
        positions="object",
        max_new_tokens=3,
        words=["ring"],
    )
    assert set(found.texts.ravel()) == {unpatched}
    early = patchscope(
        model,
        inputs,
        prompt=PROMPT,
        placeholder="it",
        layers=[-1, 1],
        positions="object",
        max_new_tokens=3,
        words=["ring"],
        batch_size=5,
    )
    assert len(set(early.texts.ravel())) > 1
    grid = early.grid(1, row=1)
    assert grid.shape == (6, 6) and (grid != "").sum() == (early.selection.rows == 1).sum()
    hits = early.table.frame.set_index("text")["value"]
    assert all(hit == ("ring" in text.split()) for text, hit in hits.items())


def test_unknown_placeholders_have_a_place_too(model, inputs):
    found = patchscope(
        model,
        inputs,
        prompt="the zzz is",
        placeholder="zzz",
        layers=[0],
        positions=[10],
        max_new_tokens=1,
    )
    assert found.texts.shape == (1, 3)
    with pytest.raises(InputError, match="is no word of the prompt"):
        patchscope(model, inputs, prompt="the x is", placeholder="y")
