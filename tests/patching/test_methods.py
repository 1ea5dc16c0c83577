"""Ablation, head edits, knockout, path patching and direct attribution."""

from typing import Any

import numpy as np
import pytest
import torch

from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.models.loading import wrap
from lvlm_interp.patching import (
    ablate,
    activation_patch,
    attention_knockout,
    attribution_patch,
    direct_logit_attribution,
    head_edit,
    head_means,
    path_patch,
)
from lvlm_interp.patching.batches import batches
from lvlm_interp.patching.knockout import knockout_edits
from tests.models import processors, zoo
from tests.patching.conftest import make_pairs, told_apart

QUIET = {"progress": False}


@pytest.mark.parametrize("engine", ["full", "fast"])
def test_zero_ablation_equals_an_edit_by_hand(model, pairs, engine):
    result = ablate(model, pairs, mode="zero", run="clean", engine=engine, **QUIET)
    inputs = model.prepare([pair.clean for pair in pairs])
    yes, no = model.answer_id("yes"), model.answer_id("no")

    def silence(z):
        return torch.cat([z[:, :, :2], torch.zeros_like(z[:, :, 2:3]), z[:, :, 3:]], dim=2)

    with model.edit({"text.1.z": silence}):
        logits = model(inputs)[:, -1]
    mine = result.table.select(layer=1, head=2).frame
    np.testing.assert_allclose(mine.m_patched, logits[:, yes] - logits[:, no], atol=1e-5)
    np.testing.assert_allclose(mine.value, mine.m_patched - mine.m_clean, atol=1e-6)


def test_mean_ablation_takes_one_mean_per_kind_of_position(model, pairs):
    """Where all examples are one, the mean of the last position is the value itself."""
    same = [pairs[0].clean] * 3
    result = ablate(
        model, pairs[:1], "text.*.z", "last", mode="mean", run="clean", reference=same, **QUIET
    )
    np.testing.assert_allclose(result.table.frame.value, 0.0, atol=1e-5)
    other = ablate(model, pairs[:1], "text.*.z", "last", mode="mean", run="clean", **QUIET)
    assert other.table.frame.value.abs().max() > 1e-4


def test_resampling_depends_on_its_seed_alone(model, pairs):
    values = [
        ablate(model, pairs, mode="resample", seed=seed, **QUIET).table.frame.value.to_numpy()
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(values[0], values[1])
    assert np.abs(values[0] - values[2]).max() > 1e-4


def test_head_edits_scale_replace_and_undo(model, pairs):
    inputs = model.prepare([pair.clean for pair in pairs])
    before = model.last_logits(inputs)
    with model.edit(head_edit(model, [(0, 1)], "scale", 1.0)):
        torch.testing.assert_close(model.last_logits(inputs), before)
    with model.edit(head_edit(model, [(0, 1)], "zero")):
        zeroed = model.last_logits(inputs)
    with model.edit(head_edit(model, [(0, 1)], "scale", 0.0)):
        torch.testing.assert_close(model.last_logits(inputs), zeroed)
    assert (zeroed - before).abs().max() > 1e-3
    means = head_means(model, pairs)
    with (
        model.edit(head_edit(model, [(1, 3)], "mean", reference=means)),
        model.record("text.1.z") as z,
    ):
        model(inputs)
    torch.testing.assert_close(
        z["text.1.z"][0, :, 3], means[1][3].expand(len(z["text.1.z"][0]), -1)
    )
    torch.testing.assert_close(model.last_logits(inputs), before)
    with pytest.raises(UsageError, match=r"no head \(0, 4\)"):
        head_edit(model, [(0, 4)])


@pytest.mark.parametrize("renormalise", [True, False])
def test_knocked_out_weights_are_exactly_zero(model, pairs, renormalise):
    batch = next(batches(model, pairs, 8))
    inputs, n = batch.clean, batch.clean["input_ids"].shape[1]
    last, image = int(inputs.tokens[0].last), inputs.tokens[0].image
    cut = torch.zeros(len(batch), n, n, dtype=torch.bool)
    cut[:, last, image] = True
    with model.edit(knockout_edits(batch, [1], cut, [0, 2], renormalise)):
        _, cache = model.run_with_cache(inputs, "text.*.pattern")
    pattern = cache["text.1.pattern"]
    assert (pattern[:, [0, 2]][:, :, last][..., image] == 0).all()
    assert (pattern[:, [1, 3]][:, :, last][..., image] > 0).all()
    sums = pattern[:, [0, 2], last].sum(-1)
    if renormalise:
        torch.testing.assert_close(sums, torch.ones_like(sums))
    else:
        assert (sums < 0.99).all()
    assert (cache["text.0.pattern"][:, :, last][..., image] > 0).all()


def test_knockout_table_and_its_errors(model, pairs):
    result = attention_knockout(model, pairs, window=2, **QUIET)
    frame = result.table.frame
    assert set(frame.position) == {"image_all->question", "question->last", "image_all->last"}
    np.testing.assert_allclose(frame.value, 100 * (frame.p_knocked_out - frame.p) / frame.p)
    assert frame.value.abs().max() > 0.01
    with pytest.raises(UsageError, match="window=3"):
        attention_knockout(model, pairs, window=3, **QUIET)
    with pytest.raises(InputError, match=r"Pair 'p0'.*ring"):
        attention_knockout(model, pairs, [("text:ring", "last")], **QUIET)


def test_direct_paths_of_the_last_layer_are_its_direct_terms(model, pairs):
    """With the norm's scale frozen they are linear; here both move it a little."""
    path = path_patch(model, pairs, "text.1.mlp_out", "logits", "last", **QUIET)
    patch = activation_patch(model, pairs, "text.1.mlp_out", "last", **QUIET)
    np.testing.assert_allclose(path.table.frame.m_patched, patch.table.frame.m_patched, atol=1e-5)


def test_path_to_a_query_equals_two_runs_by_hand(model, pairs):
    pair = pairs[0]
    clean, corrupt = model.prepare(pair.clean), model.prepare(pair.corrupt)
    _, source = model.run_with_cache(clean, "text.0.z")
    _, held = model.run_with_cache(corrupt, "text.*.z")

    def send(z):
        new = held["text.0.z"].clone()
        new[:, :, 2] = source["text.0.z"][:, :, 2]
        return new

    with model.edit({"text.0.z": send, "text.1.z": lambda z: held["text.1.z"]}):
        _, got = model.run_with_cache(corrupt, "text.1.q")
    with model.edit({"text.1.q": lambda q: got["text.1.q"]}):
        logits = model(corrupt)[0, -1]
    expected = float(logits[model.answer_id("yes")] - logits[model.answer_id("no")])
    result = path_patch(model, [pair], "text.0.z", "text.1.q", **QUIET)
    mine = result.table.select(head=2).frame
    assert mine.m_patched.item() == pytest.approx(expected, abs=1e-5)
    assert abs(expected - mine.m_corrupt.item()) > 1e-4
    with pytest.raises(UsageError, match="cannot receive"):
        path_patch(model, [pair], receivers="text.1.resid_pre", **QUIET)


# PaliGemma's processor makes an array of images in a way that numpy deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", zoo.tiered(zoo.BUILDERS, ("llava", "gemma3", "qwen3_vl")))
@pytest.mark.parametrize("per_head", [True, False])
def test_direct_attribution_sums_to_the_logit_difference(name, per_head):
    model = wrap(zoo.build(name), processors.build(name))
    pairs = told_apart(model, make_pairs(2))
    frame = direct_logit_attribution(model, pairs, per_head=per_head, **QUIET).table.frame
    sums = frame.groupby("pair").value.sum()
    m = frame.groupby("pair").m.first()
    np.testing.assert_allclose(sums, m, atol=1e-4)
    assert frame[frame.site == "z"]["head"].nunique() == (4 if per_head else 0)
    other = frame[frame.site == "other"].value.abs().max()
    assert other < 1e-4 or name in ("mllama", "blip2", "instructblip")


@pytest.mark.parametrize("method", [activation_patch, ablate, attribution_patch])
@pytest.mark.parametrize("heads", [[(0, 1), (7, 0)], [(-1, 2)], [(7, 0)], [(0, 9)]])
def test_a_head_that_there_is_not_is_named_beside_one_that_there_is(
    method: Any, heads: Any
) -> None:
    model = wrap(zoo.build("llava"), processors.build("llava"), selfcheck=False)
    with pytest.raises(UsageError, match="There is no head"):
        method(model, make_pairs(1), heads=heads, progress=False)
