import numpy as np
import pytest
import torch

from lvlm_interp.errors import InputError, SiteError, UsageError
from lvlm_interp.lens import logit_lens
from lvlm_interp.lens.readout import Decoder, head_outputs, read

WORDS = ["ring", "red", "left"]


def test_last_layer_lens_is_the_models_own_prediction(model, inputs):
    lens = logit_lens(model, inputs, positions="all", words=WORDS, top_k=5)
    logits = model(inputs)[lens.selection.rows, lens.selection.at]
    expected = logits.softmax(-1)
    for word in WORDS:
        np.testing.assert_allclose(
            lens.prob(word)[-1], expected[:, model.answer_id(word)].numpy(), atol=1e-6
        )
        rank = (logits > logits[:, [model.answer_id(word)]]).sum(-1)
        np.testing.assert_array_equal(lens.rank(word)[-1], rank.numpy())
    np.testing.assert_allclose(lens.top_probs[-1], expected.topk(5).values.numpy(), atol=1e-6)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    np.testing.assert_allclose(lens.entropy[-1], entropy.numpy(), atol=1e-4)


def test_last_layer_logits_agree_to_1e_5(model, inputs):
    logits, cache = model.run_with_cache(inputs, "text.3.resid_post")
    decoded = Decoder(model).logits(cache["text.3.resid_post"].flatten(0, 1)).view_as(logits)
    assert float((decoded - logits).detach().abs().max()) <= 1e-5


def test_norm_none_is_the_bare_unembedding(model, inputs):
    lens = logit_lens(model, inputs, sites="text.1.resid_mid", words=["ring"], norm="none")
    _, cache = model.run_with_cache(inputs, "text.1.resid_mid")
    states = lens.selection.gather(cache["text.1.resid_mid"])
    expected = (states @ model.hf.get_output_embeddings().weight.T).softmax(-1)[
        :, model.answer_id("ring")
    ]
    np.testing.assert_allclose(lens.prob("ring")[0], expected.detach().numpy(), rtol=1e-4)
    other = logit_lens(model, inputs, sites="text.1.resid_mid", words=["ring"])
    assert not np.allclose(other.prob("ring"), lens.prob("ring"))


def test_heads_add_up_to_what_attention_adds(model, inputs):
    site = model.sites("text.2.z")[0]
    _, cache = model.run_with_cache(inputs, ["text.2.z", "text.2.attn_out"])
    z = cache["text.2.z"].flatten(0, 1)
    total = head_outputs(model, site, z).sum(0)
    torch.testing.assert_close(total, cache["text.2.attn_out"].flatten(0, 1), atol=1e-5, rtol=1e-4)
    lens = logit_lens(model, inputs, sites="text.*.z", words=["ring"])
    assert len(lens.sites) == model.n_layers * model.n_heads
    assert lens.heads[:3] == (0, 1, 2)


def test_chunks_change_nothing(model, inputs):
    whole = logit_lens(model, inputs, words=WORDS)
    small = logit_lens(model, inputs, words=WORDS, chunk_bytes=1)
    np.testing.assert_array_equal(whole.top, small.top)
    np.testing.assert_allclose(whole.word_probs, small.word_probs, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(whole.entropy, small.entropy, rtol=1e-4)


def test_padding_of_a_batch_changes_nothing(model, examples, inputs):
    batch = logit_lens(model, inputs, words=["red"])
    alone = logit_lens(model, model.prepare(examples[0]), words=["red"])
    mine = batch.selection.rows == 0
    np.testing.assert_allclose(batch.prob("red")[:, mine], alone.prob("red"), atol=1e-6)


def test_grid_lies_over_the_image(model, inputs):
    lens = logit_lens(model, inputs, sites="text.embed,text.*.resid_post", words=["ring"])
    grid = lens.grid("ring", layer=2, row=1)
    at = inputs.tokens[1].grid()
    index = lens.index(2)
    picked = lens.prob("ring")[index][lens.selection.rows == 1]
    np.testing.assert_allclose(grid.ravel(), picked[np.argsort(np.argsort(at.ravel()))])
    assert lens.grid("ring").shape == (5, 6, 6)
    assert lens.layers[0] == -1
    words, probs = lens.word_grid(2, row=1)
    assert words.shape == probs.shape == (6, 6)
    assert (words != "").all()
    box = logit_lens(model, inputs, positions="object", words=["ring"])
    assert np.isnan(box.grid("ring", layer=0)).sum() == 36 - len(
        box.selection.at[box.selection.rows == 0]
    )


def test_table_is_tidy(model, inputs):
    lens = logit_lens(model, inputs, sites="text.0.resid_post", words=["ring", "red"])
    frame = lens.table.frame
    assert len(frame) == 3 * 36 * (2 + 2 * 2)
    assert set(frame["metric"]) == {"entropy", "top_prob", "prob", "rank"}
    picked = frame.query("metric == 'prob' and word == 'red' and example == 'e2'")
    np.testing.assert_allclose(picked["value"], lens.prob("red")[0][lens.selection.rows == 2])
    assert frame["row"].max() == 5


def test_entropy_of_a_uniform_distribution(model):
    decoder = Decoder(model, "none")
    found = read(decoder, torch.zeros(3, model.d_model), top_k=1)
    np.testing.assert_allclose(found.entropy, np.log(model.d_vocab), rtol=1e-5)


def test_bad_input(model, inputs):
    with pytest.raises(InputError, match="no token for the word 'zebra'"):
        logit_lens(model, inputs, words=["zebra"])
    with pytest.raises(InputError, match="begin with the same token"):
        logit_lens(model, inputs, words=["ring", "Ring"])
    with pytest.raises(SiteError, match="cannot be decoded"):
        logit_lens(model, inputs, sites="vision.0.resid_post")
    with pytest.raises(UsageError, match="norm must be one of"):
        logit_lens(model, inputs, norm="both")
    with pytest.raises(UsageError, match="top_k must be at least 1"):
        logit_lens(model, inputs, top_k=0)
    with pytest.raises(InputError, match="Positions run from 0"):
        logit_lens(model, inputs, positions=[400])
    lens = logit_lens(model, inputs, words=["ring"])
    with pytest.raises(UsageError, match="none of the chosen words"):
        lens.prob("red")
    with pytest.raises(UsageError, match="was not read"):
        lens.grid("ring", layer=9)
