import numpy as np
import pytest
import torch

from lvlm_interp.errors import UsageError
from lvlm_interp.lens import attention_maps, relevance, rollout, visual_sinks


def eager_attentions(model, inputs):
    """transformers' own patterns, from its own eager attention."""
    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        out = model.hf(**inputs.tensors, output_attentions=True, use_cache=False)
    finally:
        model.hf.set_attn_implementation(before)
    return out


def test_maps_are_the_models_own_attention(model, inputs):
    maps = attention_maps(model, inputs)
    out = eager_attentions(model, inputs)
    rows, at = maps.selection.rows, maps.selection.at
    for layer, pattern in enumerate(out.attentions):
        expected = pattern[rows, :, -1, at].detach().numpy().T
        got = maps.scores[layer * model.n_heads : (layer + 1) * model.n_heads]
        np.testing.assert_allclose(got, expected, atol=1e-5)
    mean = maps.grid(layer=2, row=1)
    assert mean.shape == (6, 6)
    single = np.mean([maps.grid(2, head, row=1) for head in range(model.n_heads)], axis=0)
    np.testing.assert_allclose(mean, single, atol=1e-7)
    with pytest.raises(UsageError, match="no scores of layer 9"):
        maps.grid(layer=9)


def test_rollout_against_numpy(model, inputs):
    found = rollout(model, inputs)
    out = eager_attentions(model, inputs)
    row = 2
    total = np.eye(inputs["input_ids"].shape[1])
    for pattern in out.attentions:
        mixed = 0.5 * np.eye(len(total)) + 0.5 * pattern[row].detach().numpy().mean(0)
        total = (mixed / mixed.sum(1, keepdims=True)) @ total
    mine = found.selection.rows == row
    np.testing.assert_allclose(
        found.scores[0, mine], total[-1, found.selection.at[mine]], atol=1e-6
    )


def test_rollout_of_the_skip_connection_alone_stays_at_the_query(model, inputs):
    assert rollout(model, inputs, residual=1.0).scores.max() == 0
    with pytest.raises(UsageError, match="within 0 and 1"):
        rollout(model, inputs, residual=1.5)


def test_a_planted_sink_is_found_and_nothing_else(model, inputs):
    sink = inputs.tokens[0].image[7]
    firsts = [int(tokens.real[0]) for tokens in inputs.tokens]

    def plant(value):
        new = value.clone()
        for row, first in enumerate(firsts):
            new[row, first] = 0.01
            new[row, first, 5] = 1000.0
        new[0, sink] = 0.01
        new[0, sink, 5] = 1000.0
        return new

    # The width 128 bounds |x_d| / rms by sqrt(128) = 11.3.
    with model.edit({"text.1.resid_post": plant}):
        found = visual_sinks(model, inputs, threshold=11.0)
    hot = np.argwhere(found.scores > 11.0)
    layer_one = hot[hot[:, 0] == 1][:, 1]
    assert [int(found.selection.at[i]) for i in layer_one] == [int(sink)]
    assert found.labels[1] == (1, None)
    assert (visual_sinks(model, inputs, threshold=50.0).scores == 0).all()


def test_relevance_against_transformers_eager_gradients(model, inputs):
    answers, foils = ["yes", "red", "left"], ["no", "blue", "right"]
    found = relevance(model, inputs, answers, foils=foils)
    out = eager_attentions(model, inputs)
    for row in range(3):
        logits = out.logits[row, -1]
        metric = logits[model.answer_id(answers[row])] - logits[model.answer_id(foils[row])]
        gradients = torch.autograd.grad(metric, out.attentions, retain_graph=True)
        total = np.eye(inputs["input_ids"].shape[1])
        for pattern, gradient in zip(out.attentions, gradients, strict=True):
            step = (pattern[row] * gradient[row]).clamp_min(0).mean(0).detach().numpy()
            total = total + step @ total
        mine = found.selection.rows == row
        expected = total[-1, found.selection.at[mine]]
        np.testing.assert_allclose(found.scores[0, mine], expected, atol=1e-5, rtol=1e-3)


def test_relevance_of_a_planted_single_token_task_falls_on_that_token(model, inputs):
    """One head of layer 1 copies what one image token holds; nothing else moves the answer."""
    planted = [int(tokens.image[3 + 5 * row]) for row, tokens in enumerate(inputs.tokens)]
    token = model.answer_id("yes")

    def only_there(value):
        new = torch.zeros_like(value)
        for row, at in enumerate(planted):
            new[row, at, 2, 0] = 1.0
        return new

    weight = model.hf.model.language_model.layers[1].self_attn.o_proj.weight
    before = weight.detach().clone()
    first = 2 * model.d_head
    edits = {"text.1.v": only_there}
    edits |= {f"text.{layer}.attn_out": torch.zeros_like for layer in (0, 2, 3)}
    edits |= {"text.*.mlp_out": torch.zeros_like}
    try:
        with torch.no_grad():
            weight.zero_()
            weight[:, first] = model.hf.get_output_embeddings().weight[token]
        with model.edit(edits):
            found = relevance(model, inputs, ["yes"] * 3)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    for row, at in enumerate(planted):
        mine = found.selection.rows == row
        scores = found.scores[0, mine]
        assert int(found.selection.at[mine][scores.argmax()]) == at
        assert scores.max() > 0 and np.sort(scores)[-2] < 1e-6 * scores.max()


def test_relevance_needs_one_answer_per_row(model, inputs):
    with pytest.raises(UsageError, match="one answer per row \\(3\\), got 1"):
        relevance(model, inputs, ["yes"])
