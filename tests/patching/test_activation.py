"""Activation patching against hand-made hooks and closed forms and full runs."""

import numpy as np
import pytest
import torch

from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.models import recording
from lvlm_interp.models.loading import wrap
from lvlm_interp.patching import activation_patch
from lvlm_interp.patching.batches import batches
from lvlm_interp.patching.sweep import base_runs
from tests.models import processors, zoo
from tests.patching.conftest import make_pairs, told_apart

QUIET = {"progress": False}


def by_head(result, column="m_patched"):
    frame = result.table.frame
    return {(r.layer, r.head): getattr(r, column) for r in frame.itertuples()}


@pytest.mark.parametrize("engine", ["full", "fast"])
def test_closed_form_with_alike_blocks(alike, engine):
    model, pairs = alike
    result = activation_patch(model, pairs, direction="noise", engine=engine, **QUIET)
    assert set(result.table.frame.m_clean) == {-24.0}
    assert set(result.table.frame.m_corrupt) == {-98.0}
    changes = {key: m + 24 for key, m in by_head(result).items()}
    assert changes == {(0, 0): -19, (0, 1): -43, (1, 0): -19, (1, 1): -43}


@pytest.mark.parametrize("engine", ["full", "fast"])
def test_closed_form_with_unlike_blocks(unlike, engine):
    model, pairs = unlike
    result = activation_patch(model, pairs, direction="noise", engine=engine, **QUIET)
    changes = {key: m + 32 for key, m in by_head(result).items()}
    assert changes == {(0, 0): -14, (0, 1): -30, (1, 0): -10, (1, 1): -30}
    back = activation_patch(model, pairs, direction="denoise", engine=engine, **QUIET)
    assert by_head(back, "value") == pytest.approx(
        {(0, 0): 14 / 52, (0, 1): 30 / 52, (1, 0): 10 / 52, (1, 1): 30 / 52}
    )


def test_every_head_equals_a_hook_made_by_hand(model, pairs):
    """Independent: plain torch hooks on the Hugging Face modules, one pair at a time."""
    result = activation_patch(model, pairs, positions="object", engine="full", **QUIET)
    yes, no = model.answer_id("yes"), model.answer_id("no")
    layers = model.hf.model.language_model.layers
    for i, pair in enumerate(pairs):
        clean, corrupt = model.prepare(pair.clean), model.prepare(pair.corrupt)
        at = clean.tokens[0].within(pair.box)
        for number, layer in enumerate(layers):
            kept = {}
            handle = layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _m, args, kept=kept: kept.update(z=args[0].clone())
            )
            with torch.no_grad():
                model.hf(**clean.tensors)
            handle.remove()
            for head in range(4):

                def put(_module, args, kept=kept, head=head, at=at):
                    z = args[0].clone()
                    z[:, at, head * 8 : (head + 1) * 8] = kept["z"][
                        :, at, head * 8 : (head + 1) * 8
                    ]
                    return (z,)

                handle = layer.self_attn.o_proj.register_forward_pre_hook(put)
                with torch.no_grad():
                    logits = model.hf(**corrupt.tensors).logits[0, -1]
                handle.remove()
                mine = result.table.select(pair=f"p{i}", layer=number, head=head).frame.m_patched
                assert mine.item() == pytest.approx(float(logits[yes] - logits[no]), abs=1e-5)


SITES = (
    "text.*.z, text.*.q, text.0.k, text.1.v, text.*.mlp_out, text.0.mlp_hidden, text.*.resid_mid"
)


# transformers' PaliGemma processor asks numpy for a tensor in the old way.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", zoo.tiered(zoo.BUILDERS))
def test_the_fast_engine_equals_full_forwards(name):
    model = wrap(zoo.build(name), processors.build(name))
    pairs = told_apart(model, make_pairs(2))
    for sites, positions in (("text.*.z", ["last", "all"]), ("text.*.resid_post", "question")):
        full = activation_patch(model, pairs, sites, positions, engine="full", **QUIET)
        auto = activation_patch(model, pairs, sites, positions, engine="auto", **QUIET)
        np.testing.assert_allclose(
            auto.table.frame.m_patched, full.table.frame.m_patched, atol=1e-5, rtol=1e-5
        )
        assert auto.table.frame.pair.tolist() == full.table.frame.pair.tolist()


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_branches_reach_every_site_outside_of_attention(model, pairs, direction):
    runs = [
        activation_patch(
            model, pairs, SITES, ["object", "question"], direction=direction, engine=engine, **QUIET
        )
        for engine in ("full", "fast")
    ]
    full, fast = (run.table.frame for run in runs)
    np.testing.assert_allclose(fast.m_patched, full.m_patched, atol=1e-5)
    # The image begins near the start, where sharing so short a prefix would save nothing.
    assert set(fast.path) == {"shared_prefix", "resume"} and set(full.path) == {"full"}
    assert (full.m_patched - full.m_corrupt).abs().max() > 1e-2
    assert runs[1].n_forwards < 0.6 * runs[0].n_forwards


def test_runs_that_differ_late_share_all_that_comes_before(model, pairs):
    """A patch of all positions is one of those from the first word that differs."""
    old = pairs[0]
    words = [old.clean.prompt.replace("dog", word) for word in ("cat", "god", "dig", "do", "hat")]
    sides = [type(old.clean)("x", old.clean.image, words) for words in words]
    length = len(model.prepare(old.clean).tokens[0])
    other = next(side for side in sides if len(model.prepare(side).tokens[0]) == length)
    pair = type(old)(**{**vars(old), "corrupt": other, "box": None})
    full, fast = (
        activation_patch(model, [pair], "text.*.z", ["all", "image_all"], engine=engine, **QUIET)
        for engine in ("full", "fast")
    )
    np.testing.assert_allclose(fast.table.frame.m_patched, full.table.frame.m_patched, atol=1e-5)
    assert set(fast.table.frame.path) == {"shared_prefix"}
    whole = fast.table.select(position="all").frame
    assert (whole.m_patched - whole.m_corrupt).abs().max() > 1e-4
    image = fast.table.select(position="image_all").frame
    np.testing.assert_allclose(image.m_patched, image.m_corrupt, atol=1e-5)


def test_rows_of_different_lengths_branch_together(model, pairs):
    """Answers of a padded batch stand at the same place; right padding moves them apart."""
    short = make_pairs(1, "is there a dog ?")[0]
    short = type(short)(**{**vars(short), "id": "short", "group": "short"})
    mixed = [pairs[0], short]
    full, fast = (
        activation_patch(model, mixed, "text.*.z", ["all", "last"], engine=engine, **QUIET)
        for engine in ("full", "auto")
    )
    np.testing.assert_allclose(fast.table.frame.m_patched, full.table.frame.m_patched, atol=1e-5)


# transformers' PaliGemma processor asks numpy for a tensor in the old way.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", zoo.tiered(zoo.BUILDERS))
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_both_sides_in_one_forward_are_the_sides_one_by_one(name, direction, monkeypatch):
    model = wrap(zoo.build(name), processors.build(name))
    pairs = told_apart(model, make_pairs(2))
    runs = {}
    forwards = []
    count = model.hf.register_forward_pre_hook(lambda *_: forwards.append(None))
    for room in (2**30, 0):
        monkeypatch.setattr(recording, "ONE_CALL", {"cpu": room, "other": room})
        forwards.clear()
        (batch,) = batches(model, pairs, 2)
        sites = model.sites(["text.*.z", "text.*.resid_post"])
        runs[room] = base_runs(model, batch, sites, "logit_diff", direction)
        assert len(forwards) == (1 if room else 2)
    count.remove()
    together, apart = runs.values()
    assert together.first_change == apart.first_change
    assert together.source.sites == apart.source.sites
    for site in apart.source.sites:
        torch.testing.assert_close(together.source[site], apart.source[site], atol=1e-5, rtol=1e-5)
    for one, other in ((together.m_clean, apart.m_clean), (together.m_corrupt, apart.m_corrupt)):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert together.recording.unfit == apart.recording.unfit
    for one, other in zip(together.recording.layers, apart.recording.layers, strict=True):
        torch.testing.assert_close(one.attended, other.attended, atol=1e-5, rtol=1e-5)


def test_images_that_share_no_batch_are_prepared_side_by_side(model, pairs, monkeypatch):
    expected = activation_patch(model, pairs[:1], **QUIET).table.frame
    prepare = model.prepare

    def one_image_alone(rows):
        if len(rows) > 1:
            raise InputError("these images have no common size")
        return prepare(rows)

    monkeypatch.setattr(model, "prepare", one_image_alone)
    found = activation_patch(model, pairs[:1], **QUIET).table.frame
    np.testing.assert_allclose(found.m_patched, expected.m_patched, atol=1e-5)


def test_a_memory_budget_changes_nothing(model, pairs):
    small = activation_patch(model, pairs, positions="all", memory_mib=0.01, **QUIET)
    large = activation_patch(model, pairs, positions="all", **QUIET)
    np.testing.assert_allclose(small.table.frame.m_patched, large.table.frame.m_patched, atol=1e-6)


# transformers' PaliGemma processor asks numpy for a tensor in the old way.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_guard_sees_attention_that_looks_ahead():
    """PaliGemma reads its whole prompt both ways; Gemma 3 its image."""
    pali = wrap(zoo.build("paligemma"), processors.build("paligemma"))
    pairs = told_apart(pali, make_pairs(2))
    last = activation_patch(pali, pairs, positions="last", **QUIET)
    assert set(last.table.frame.path) == {"full"}
    with pytest.raises(UsageError, match="not exact here: positions before"):
        activation_patch(pali, pairs, engine="fast", **QUIET)
    gemma = wrap(zoo.build("gemma3"), processors.build("gemma3"))
    middle = int(gemma.prepare(make_pairs(1)[0].clean).tokens[0].image[2])
    result = activation_patch(gemma, make_pairs(2), positions=["last", middle], **QUIET)
    paths = result.table.frame.groupby("position").path.unique()
    assert list(paths["last"]) == ["shared_prefix"] and list(paths[str(middle)]) == ["full"]


def test_vision_tower_and_pattern_sites(model, pairs):
    end = activation_patch(model, pairs, "projector.out", ["all", "object"], **QUIET)
    whole = end.table.select(position="all").frame.value
    np.testing.assert_allclose(whole, 1.0, atol=1e-4)
    heads = activation_patch(model, pairs, "vision.*.z, text.0.pattern", "object", **QUIET)
    assert set(heads.table.frame.tower) == {"vision", "text"}
    assert heads.table.frame.m_patched.notna().all()


def test_the_last_stream_carries_everything_and_a_self_patch_nothing(model, pairs):
    whole = activation_patch(model, pairs, "text.1.resid_post", "last", **QUIET)
    np.testing.assert_allclose(whole.table.frame.value, 1.0, atol=1e-5)
    same = [type(p)(**{**vars(p), "corrupt": p.clean}) for p in pairs[:2]]
    nothing = activation_patch(model, [*same, pairs[2]], "text.*.z", "last", **QUIET)
    assert nothing.no_gap == ("p0", "p1") and nothing.n_no_gap == 2
    assert nothing.table.select(pair="p0").frame.value.isna().all()
    assert set(nothing.recovery().n) == {1}


def test_recovery_by_both_methods(model, pairs):
    result = activation_patch(model, pairs, "text.0.z", "all", heads=[(0, 1)], **QUIET)
    frame = result.table.frame
    effect, gap = frame.m_patched - frame.m_corrupt, frame.m_clean - frame.m_corrupt
    of_means = result.recovery().estimate.item()
    of_ratios = result.recovery(method="mean_of_ratios").estimate.item()
    assert of_means == pytest.approx(effect.sum() / gap.sum())
    assert of_ratios == pytest.approx((effect / gap).mean())
    with pytest.raises(UsageError, match="No column 'block'"):
        result.recovery("block")


@pytest.mark.parametrize("metric", ["logprob", "prob", "kl"])
def test_named_metrics_recover_fully_at_the_end(model, pairs, metric):
    whole = activation_patch(model, pairs, "text.1.resid_post", "last", metric=metric, **QUIET)
    np.testing.assert_allclose(whole.table.frame.value, 1.0, atol=1e-3)
    if metric == "kl":
        np.testing.assert_allclose(whole.table.frame.m_clean, 0.0, atol=1e-6)


def test_bad_input_names_the_pair(model, pairs):
    lacking = type(pairs[0])(**{**vars(pairs[0]), "box": None})
    bare = [
        type(side)(side.id, side.image, side.prompt) for side in (lacking.clean, lacking.corrupt)
    ]
    lacking = type(lacking)(**{**vars(lacking), "clean": bare[0], "corrupt": bare[1]})
    with pytest.raises(InputError, match=r"Pair 'p0'.*needs a box"):
        activation_patch(model, [lacking], positions="object", **QUIET)
    with pytest.raises(UsageError, match="no head 9"):
        activation_patch(model, pairs, heads=[(0, 9)], **QUIET)
    with pytest.raises(UsageError, match="Unknown metric 'loss'"):
        activation_patch(model, pairs, metric="loss", **QUIET)
    with pytest.raises(UsageError, match=r"gives nan on the pair 'p1'"):
        activation_patch(
            model, pairs, metric=lambda x, _p: torch.tensor([0.0, float("nan"), 0.0]), **QUIET
        )
    with pytest.raises(UsageError, match="one number per pair"):
        activation_patch(model, pairs, metric=lambda x, _p: x.sum(), **QUIET)
    same = type(pairs[0])(**{**vars(pairs[0]), "foil": "yes there"})
    with pytest.raises(UsageError, match=r"'p0'.*same token"):
        activation_patch(model, [same], **QUIET)
    with pytest.raises(ValueError, match=r"p0: answer and foil must differ, both are 'yes'"):
        type(pairs[0])(**{**vars(pairs[0]), "foil": "yes"})
    longer = type(pairs[0].clean)("x", pairs[0].clean.image, "is there a dog in the red image ?")
    with pytest.raises(InputError, match=r"Pair 'p0'.*equal length"):
        activation_patch(model, [type(pairs[0])(**{**vars(pairs[0]), "corrupt": longer})], **QUIET)
    with pytest.raises(UsageError, match="list of pairs is empty"):
        activation_patch(model, [], **QUIET)
    with pytest.raises(UsageError, match="batch_size=0"):
        activation_patch(model, pairs, batch_size=0, **QUIET)
    with pytest.raises(UsageError, match="memory_mib=0"):
        activation_patch(model, pairs, memory_mib=0, **QUIET)


def test_an_edit_that_is_open_outside_is_in_every_run(model, pairs):
    """Against a hand-made forward with both edits; branches would run the outer one elsewhere."""
    at = torch.as_tensor(model.prepare(pairs[0].clean).tokens[0].within(pairs[0].box))

    def silent(value):
        value = value.clone()
        value[:, at] = 0
        return value

    def blind(pattern):
        pattern = pattern.clone()
        pattern[..., at] = 0
        return pattern

    yes, no = model.answer_id("yes"), model.answer_id("no")
    clean, corrupt = model.prepare(pairs[0].clean), model.prepare(pairs[0].corrupt)
    for edit in ({"text.0.mlp_out": silent}, {"text.1.pattern": blind}):
        with model.edit(edit):
            found = activation_patch(model, pairs, "text.0.z", "all", **QUIET).table.frame
            with model.record("text.0.z") as source:
                model(clean)

            def head(value, source=source["text.0.z"]):
                value = value.clone()
                value[:, :, 2] = source[:, :, 2]
                return value

            with model.edit({"text.0.z": head}):
                logits = model.last_logits(corrupt)[0]
            with pytest.raises(UsageError, match="an edit or a recording is open"):
                activation_patch(model, pairs, engine="fast", **QUIET)
        row = found[(found.pair == pairs[0].id) & (found["head"] == 2)]
        assert row.path.item() == "full"
        assert row.m_patched.item() == pytest.approx(float(logits[yes] - logits[no]), abs=1e-5)
    # Nothing is left behind: the fast engine is itself again.
    assert set(activation_patch(model, pairs, **QUIET).table.frame.path) == {"shared_prefix"}
