"""Sets of components in one run, and answers in all their spellings."""

import numpy as np
import pytest
import torch

from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.patching import (
    ablate,
    activation_patch,
    answer_set_metric,
    patch_together,
)
from lvlm_interp.patching.answers import spellings, token_ids

QUIET = {"progress": False}


def test_a_set_is_exchanged_in_one_run_as_by_hand(model, pairs):
    heads = {"text.0.z": [1], "text.1.z": [0, 3]}
    names = [f"{site}[{head}]" for site, some in heads.items() for head in some]
    found = patch_together(
        model, pairs, {"three": names, "one": ["text.1.z[3]"]}, batch_size=2, **QUIET
    )
    frame = found.table.frame
    assert set(frame.site) == {"three", "one"} and frame["head"].isna().all()
    yes, no = model.answer_id("yes"), model.answer_id("no")
    for pair in pairs:
        clean, corrupt = model.prepare(pair.clean), model.prepare(pair.corrupt)
        with model.record(list(heads)) as source:
            model(clean)

        def exchange(site, source=source):
            def edit(value):
                value = value.clone()
                value[:, :, heads[site]] = source[site][:, :, heads[site]]
                return value

            return edit

        with model.edit({site: exchange(site) for site in heads}):
            logits = model.last_logits(corrupt)[0]
        row = frame[(frame.pair == pair.id) & (frame.site == "three")]
        assert row.m_patched.item() == pytest.approx(float(logits[yes] - logits[no]), abs=1e-5)
    single = activation_patch(model, pairs, "text.1.z", "all", heads=[(1, 3)], **QUIET)
    np.testing.assert_allclose(
        frame[frame.site == "one"].m_patched, single.table.frame.m_patched, atol=1e-5
    )


def test_the_whole_stream_restores_the_other_run(model, pairs):
    found = patch_together(model, pairs, {"all": ["text.1.resid_post"]}, **QUIET)
    np.testing.assert_allclose(found.table.frame.value, 1, atol=1e-4)
    table = found.recovery("site")
    assert table.estimate.item() == pytest.approx(1, abs=1e-4)


def test_activations_of_one_s_own_are_put_in(model, pairs):
    inputs = model.prepare([pair.corrupt for pair in pairs])
    _, cache = model.run_with_cache(inputs, ["text.0.z", "text.1.mlp_out"])
    nothing = {str(site): torch.zeros_like(cache[site]) for site in cache.sites}
    found = patch_together(
        model, pairs, {"mlp": ["text.1.mlp_out"], "head": ["text.0.z[2]"]}, source=nothing, **QUIET
    ).table.frame
    for name, site in (("mlp", "text.1.mlp_out"), ("head", "text.0.z")):
        heads = [(0, 2)] if name == "head" else "each"
        zero = ablate(model, pairs, site, "all", mode="zero", heads=heads, **QUIET)
        np.testing.assert_allclose(
            found[found.site == name].m_patched, zero.table.frame.m_patched, atol=1e-5
        )


def test_what_cannot_be_patched_together_is_refused(model, pairs):
    for sets, message in (
        ({}, "at least one set"),
        ({"a": []}, "at least one component"),
        ({"a": ["text.0.z[9]"]}, "no unit 9"),
        ({"a": ["text.0.mlp_out[1]"]}, "no heads or neurons"),
        ({"a": ["text.0.z[one]"]}, "expected a site"),
    ):
        with pytest.raises(UsageError, match=message):
            patch_together(model, pairs, sets, **QUIET)
    with pytest.raises(UsageError, match="expected one for all"):
        patch_together(model, pairs, {"a": ["text.0.z"]}, "each", **QUIET)
    some = {"text.0.z": torch.zeros(1, 2, 4, 8)}
    with pytest.raises(InputError, match="1 rows for 3 pairs"):
        patch_together(model, pairs, {"a": ["text.0.z"]}, source=some, **QUIET)
    with pytest.raises(InputError, match="rows of shape"):
        patch_together(
            model, pairs, {"a": ["text.0.z"]}, source={"text.0.z": torch.zeros(3, 2, 4, 8)}, **QUIET
        )
    with pytest.raises(UsageError, match=r"no activations of text\.1\.z"):
        patch_together(model, pairs, {"a": ["text.1.z"]}, source=some, **QUIET)


def test_spellings_count_together(model, pairs):
    ids = token_ids(model, "yes")
    assert model.answer_id("yes") in ids
    logits = torch.randn(len(pairs), model.d_vocab, generator=torch.Generator().manual_seed(0))
    found = answer_set_metric(model, against="all")(logits, pairs)
    torch.testing.assert_close(found.exp(), logits.softmax(-1)[:, list(ids)].sum(-1))
    foils = token_ids(model, "no")
    apart = answer_set_metric(model)(logits, pairs)
    mine, theirs = (sorted({*a} - {*b}) for a, b in ((ids, foils), (foils, ids)))
    odds = logits.softmax(-1)[:, mine].sum(-1) / logits.softmax(-1)[:, theirs].sum(-1)
    torch.testing.assert_close(apart, odds.log(), atol=1e-5, rtol=1e-5)
    assert spellings("Yes") == ("Yes", "yes", "YES")


def test_a_set_of_several_words_is_a_metric_of_every_method(model, pairs):
    same = {"yes": ("yes", "dog"), "no": ("no", "image")}
    metric = answer_set_metric(model, same=same.__getitem__)
    assert len(token_ids(model, "yes", same=same.__getitem__)) > 1
    frame = activation_patch(model, pairs, positions="last", metric=metric, **QUIET).table.frame
    assert set(frame.of) == {"answer_set_logit_diff"}
    logits = model.last_logits(model.prepare([pair.clean for pair in pairs]))
    sets = [list(token_ids(model, word, same=same.__getitem__)) for word in ("yes", "no")]
    sets = [sorted({*a} - {*b}) for a, b in (sets, sets[::-1])]
    m = logits[:, sets[0]].logsumexp(-1) - logits[:, sets[1]].logsumexp(-1)
    np.testing.assert_allclose(frame.groupby("pair").m_clean.first(), m, atol=1e-5)


def test_sets_that_share_a_token_are_refused(model, pairs):
    metric = answer_set_metric(model, same=lambda word: ("image",))
    with pytest.raises(UsageError, match="begin with the same tokens"):
        metric(torch.zeros(1, model.d_vocab), pairs[:1])
    with pytest.raises(UsageError, match="against='nothing'"):
        answer_set_metric(model, against="nothing")
    with pytest.raises(InputError, match="no spelling of"):
        token_ids(model, "yes", same=lambda word: ())
