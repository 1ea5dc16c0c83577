from dataclasses import replace

import numpy as np
import pytest
import torch

from lvlm_interp.activations.memory import collect
from lvlm_interp.data.sources import load_examples
from lvlm_interp.errors import InputError
from lvlm_interp.probing import Direction, causal_effect, pixels, sweep, untrained, untrained_model
from lvlm_interp.probing.directions import _with_spread, fit_direction
from lvlm_interp.probing.estimators import MeanDifferenceProbe
from lvlm_interp.stats import Estimate

SITE = "text.0.resid_post"


@pytest.fixture(scope="module")
def examples():
    return load_examples("scenes:object:200:2")


@pytest.fixture(scope="module")
def planted(model, examples):
    """Activations of runs in which a direction was written into the stream where `present`."""
    rng = np.random.default_rng(0)
    vector = rng.standard_normal(32).astype(np.float32)
    vector /= np.linalg.norm(vector)
    plain = collect(model, examples, SITE, "last", progress=False)
    spread = plain[SITE][:, "last"].std()
    waiting: list = []
    real = model.prepare

    def prepare(rows):
        inputs = real(rows)
        waiting[:] = [example.labels["present"] for example in rows]
        return inputs

    def write(value):
        sign = torch.tensor([1.0 if p else -1.0 for p in waiting]).view(-1, 1, 1)
        noise = torch.randn(value.shape, generator=generator) * spread
        return value + noise + sign * torch.from_numpy(vector) * spread * 1.5

    generator = torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "prepare", prepare)
        with model.edit({SITE: write}):
            found = collect(model, examples, SITE, "last", progress=False)
    return vector, found


@pytest.mark.parametrize("probe", ["logistic", "ridge", "mean_difference"])
def test_a_direction_written_into_the_stream_is_recovered(planted, probe):
    vector, found = planted
    result = sweep(found, label="present", probe=probe, controls=(), progress=False)
    assert result.direction(SITE).vector @ vector > 0.95
    assert result.best().balanced_accuracy.low > 0.75


def direction(model, head=None, site="text.1.resid_post", d=32):
    rng = np.random.default_rng(1)
    vector = rng.standard_normal(d).astype(np.float32)
    vector /= np.linalg.norm(vector)
    return Direction(site, "last", head, vector, rng.standard_normal(d).astype(np.float32), 2.0)


def test_erase_sets_the_component_to_the_mean_and_add_moves_it(model):
    found = direction(model)
    value = torch.randn(3, 5, 32)
    erased = found.erase()(value)
    along = torch.from_numpy(found.vector)
    mean = float(torch.from_numpy(found.mean) @ along)
    torch.testing.assert_close(erased @ along, torch.full((3, 5), mean))
    rest = value - (value @ along)[..., None] * along
    torch.testing.assert_close(erased - (erased @ along)[..., None] * along, rest)
    added = found.add(1.5)(value)
    torch.testing.assert_close(added - value, (3.0 * along).expand(3, 5, 32))


def test_edits_act_at_their_positions_and_head_alone(model):
    at = torch.zeros(3, 5, dtype=torch.bool)
    at[1, 2] = True
    value = torch.randn(3, 5, 32)
    changed = (direction(model).add(1.0, at)(value) != value).any(-1)
    assert torch.equal(changed, at)
    heads = torch.randn(3, 5, 4, 8)
    found = direction(model, head=2, site="text.1.z", d=8)
    changed = (found.erase()(heads) != heads).any(-1)
    assert changed[:, :, 2].all() and not changed[:, :, [0, 1, 3]].any()
    whole = direction(model, site="text.1.z", d=32)
    flat = whole.erase()(heads).flatten(2)
    torch.testing.assert_close(flat, whole.erase()(heads.flatten(2)))


def test_the_direction_of_the_answer_moves_the_answer(model, examples):
    """Towards unembedding(answer) - unembedding(foil) before the last norm: beyond random ones."""
    chosen = [e for e in examples if e.answer == "yes"][:16]
    words = model.hf.get_output_embeddings().weight
    gap = words[model.answer_id("yes")] - words[model.answer_id("no")]
    vector = (gap / gap.norm()).detach().numpy()
    found = Direction("text.1.resid_post", "last", None, vector, np.zeros(32, np.float32), 1.0)
    moved = causal_effect(model, chosen, found, mode="add", scale=2.0, n_random=8, progress=False)
    assert moved.effect.low > 0 and moved.effect.estimate > max(map(abs, moved.random))
    assert moved.beyond_random.low > 0 and len(moved.random) == 8
    back = causal_effect(model, chosen, found, mode="add", scale=-2.0, n_random=0, progress=False)
    assert back.effect.high < 0 and back.random == ()
    frame = moved.table.frame
    before = frame[(frame.run == "before") & (frame.metric == "logit_diff")]
    logits = model.last_logits(model.prepare(chosen[:1]))[0]
    expected = float(logits[model.answer_id("yes")] - logits[model.answer_id("no")])
    assert before.value.iloc[0] == pytest.approx(expected, abs=1e-4)


def test_a_direction_at_a_position_that_the_answer_never_reads_does_nothing(model, examples):
    """At the last layer the image tokens have no path to the answer any more."""
    found = direction(model)
    away = Direction(found.site, "object", None, found.vector, found.mean, 50.0)
    effect = causal_effect(model, examples[:6], away, mode="add", n_random=2, progress=False)
    assert effect.effect.estimate == pytest.approx(0.0, abs=1e-6)
    everywhere = causal_effect(
        model, examples[:6], away, mode="add", n_random=2, everywhere=True, progress=False
    )
    assert abs(everywhere.effect.estimate) > 1e-3


def test_examples_without_a_foil_are_refused(model, examples):
    with pytest.raises(InputError, match="needs an answer and a foil"):
        causal_effect(model, [replace(examples[0], foil=None)], direction(model))


def test_the_untrained_model_has_the_shape_and_other_weights(model, examples):
    other = untrained_model(model, seed=3)
    names = {n: p.shape for n, p in model.hf.named_parameters()}
    assert {n: p.shape for n, p in other.hf.named_parameters()} == names
    ours, theirs = (each.hf.get_output_embeddings().weight for each in (model, other))
    assert not torch.allclose(ours, theirs)
    again = untrained_model(model, seed=3).hf.get_output_embeddings().weight
    assert torch.equal(theirs, again)


def test_all_four_controls_in_one_sweep(model, examples):
    data = collect(model, examples[:80], "text.*.resid_post", "object,last", progress=False)
    baselines = {
        "untrained": untrained(
            model, examples[:80], "text.*.resid_post", "object,last", seed=1, progress=False
        ),
        "pixels": pixels(examples[:80]),
    }
    found = sweep(
        data,
        label="background",
        controls=("shuffled_labels", "control_task", "untrained", "pixels"),
        baselines=baselines,
        progress=False,
    )
    by = found.summary.groupby("control").size()
    assert dict(by) == {"none": 4, "untrained": 4, "pixels": 2}
    pixel = found.summary[found.summary.control == "pixels"].set_index("position")
    assert pixel.balanced_accuracy["image_mean"] == 1.0  # light or dark, as the colours say
    assert set(found.table.frame["control"]) == {
        "none",
        "shuffled_labels",
        "control_task",
        "untrained",
        "pixels",
    }


def test_the_bag_of_pixels_counts_colours(examples):
    bags = pixels(examples[:6])
    site = bags.sites[0]
    values = bags[site][:]
    np.testing.assert_allclose(values.sum(-1), 1.0, rtol=1e-6)
    image = np.asarray(examples[3].open_image()).reshape(-1, 3) // 64
    expected = np.zeros(64)
    np.add.at(expected, image[:, 0] * 16 + image[:, 1] * 4 + image[:, 2], 1 / len(image))
    np.testing.assert_allclose(values[3, 0], expected, atol=1e-6)


def test_random_directions_have_the_covariance_of_the_activations():
    rng = np.random.default_rng(0)
    scale = np.array([10.0, 1.0, 0.1], np.float32)
    X = (rng.standard_normal((200, 3)) * scale).astype(np.float32)
    found = fit_direction(SITE, "last", None, X, np.arange(200) % 2, MeanDifferenceProbe(), {})
    drawn = np.stack([found.random(rng).vector for _ in range(200)])
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, rtol=1e-5)
    assert (np.abs(drawn[:, 0]) > 0.9).mean() > 0.8  # of the sphere it would be a tenth


def test_what_lies_within_the_spread_of_random_directions_is_not_beyond_them():
    wide = _with_spread(Estimate(1.0, 0.9, 1.1, 50), np.array([-1.0, 0.0, 1.0, 2.0, -2.0]))
    assert wide.low < 0 < wide.high and wide.estimate == 1.0
    narrow = _with_spread(Estimate(1.0, 0.9, 1.1, 50), np.array([0.0, 0.01, -0.01]))
    assert narrow.low == pytest.approx(0.886, abs=0.01)
