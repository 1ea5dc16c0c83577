"""Attribution patching: exact where the path is linear, corrected where it is not."""

import numpy as np
import pytest
import torch

from lvlm_interp.circuits import Graph, score_edges
from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.models.loading import wrap
from lvlm_interp.patching import Integration, activation_patch, attribution_patch, gradients
from lvlm_interp.patching.batches import batches
from lvlm_interp.patching.gradients import entry_sites, mean_gradients
from lvlm_interp.patching.metrics import Scorer
from tests.models import processors, zoo
from tests.patching.conftest import make_pairs, told_apart

QUIET = {"progress": False}
KEY = ["pair", "layer", "head", "position"]


def merged(first, second):
    frames = [result.table.frame.astype({name: str for name in KEY}) for result in (first, second)]
    out = frames[0].merge(frames[1], on=KEY, suffixes=("", "_est"))
    assert len(out) == len(frames[0]) == len(frames[1])
    return out


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_atp_is_exact_on_the_closed_form(unlike, direction):
    model, pairs = unlike
    options = {"direction": direction, **QUIET}
    both = merged(
        activation_patch(model, pairs, positions="all", **options),
        attribution_patch(model, pairs, positions="all", **options),
    )
    np.testing.assert_allclose(both.m_patched_est, both.m_patched, atol=1e-4)
    expected = {(0, 0): 14, (0, 1): 30, (1, 0): 10, (1, 1): 30}
    sign = 1 if direction == "denoise" else -1
    for (layer, head), change in expected.items():
        row = both[(both.layer == str(layer)) & (both["head"] == str(head))]
        assert row.value_est.item() == pytest.approx(sign * change, abs=1e-4)


def test_each_position_sums_to_all_of_them(model, pairs):
    single = attribution_patch(model, pairs, positions="each", **QUIET).table.frame
    whole = attribution_patch(model, pairs, positions="all", **QUIET).table.frame
    summed = single.groupby(["pair", "layer", "head"]).value.sum()
    expected = whole.set_index(["pair", "layer", "head"]).value
    np.testing.assert_allclose(summed.loc[expected.index], expected, atol=1e-5)


def test_all_heads_and_positions_take_at_most_four_forwards(model, pairs):
    result = attribution_patch(model, pairs, positions="each", **QUIET)
    assert result.n_forwards <= 4 * len(pairs)
    assert result.table.frame.position.nunique() > 20


@pytest.mark.parametrize("site", ["text.1.q", "text.1.k"])
def test_the_qk_fix_is_exact_where_only_the_pattern_is_curved(model, pairs, site):
    """In the last layer little but the softmax is curved, so recomputing it halves the error."""
    exact = activation_patch(model, pairs, site, "all", **QUIET)
    plain = merged(exact, attribution_patch(model, pairs, site, "all", **QUIET))
    fixed = merged(exact, attribution_patch(model, pairs, site, "all", qk_fix=True, **QUIET))
    errors = [(each.m_patched_est - each.m_patched).abs().mean() for each in (plain, fixed)]
    assert errors[1] < 0.5 * errors[0]


def test_graddrop_equals_its_definition_on_the_closed_form(unlike):
    """Two layers: layer 0 nodes keep one term each; by hand from the diagonals."""
    model, pairs = unlike
    result = attribution_patch(
        model, pairs, positions="all", direction="noise", graddrop=True, **QUIET
    )
    frame = result.table.frame.set_index(["layer", "head"]).value
    # Dropping layer 1's branches leaves dm/dz through the skip alone: |(-1) - 2| and |(-3) - 4|.
    # Dropping a node's own layer leaves nothing, and L - 1 = 1.
    assert frame[(0, 0)] == pytest.approx(3, abs=1e-4)
    assert frame[(0, 1)] == pytest.approx(7, abs=1e-4)
    # Layer 1's nodes do not depend on layer 0's gradient, so dropping it leaves the full estimate.
    assert frame[(1, 0)] == pytest.approx(10, abs=1e-4)
    assert frame[(1, 1)] == pytest.approx(30, abs=1e-4)
    with pytest.raises(UsageError, match="no sign"):
        result.recovery()


def test_integrated_gradients_come_closer(model, pairs):
    """Completeness: at the inputs integrated gradients sum to the whole difference."""
    steps = attribution_patch(
        model, pairs, "text.embed", "all", integration=Integration(24), **QUIET
    ).table.frame
    np.testing.assert_allclose(steps.value, steps.m_clean - steps.m_corrupt, rtol=0.02, atol=2e-3)
    # With one point at the run itself both paths are the plain gradient.
    plain = attribution_patch(model, pairs, "vision.*.z", "all", **QUIET).table.frame
    single = Integration(1, "left", "pixels")
    pixels = attribution_patch(model, pairs, "vision.*.z", "all", integration=single, **QUIET)
    np.testing.assert_allclose(pixels.table.frame.value, plain.value, atol=1e-5)


def test_quadratures_by_name():
    assert Integration(2, "right").points == [0.5, 1.0]
    assert Integration(2, "left").points == [0.0, 0.5]
    assert Integration(2).points == [0.25, 0.75]
    with pytest.raises(UsageError, match="steps=0"):
        Integration(0)


def test_options_that_exclude_each_other(model, pairs):
    with pytest.raises(UsageError, match="none is among the sites"):
        attribution_patch(model, pairs, qk_fix=True, **QUIET)
    with pytest.raises(UsageError, match="cannot be combined"):
        attribution_patch(model, pairs, graddrop=True, integration=Integration(), **QUIET)
    with pytest.raises(UsageError, match="gets no gradient"):
        attribution_patch(model, pairs, "vision.0.z", integration=Integration(), **QUIET)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_kl_is_measured_against_the_clean_run_in_either_direction(model, pairs, direction):
    options = {"metric": "kl", "positions": "all", "direction": direction, **QUIET}
    exact = activation_patch(model, pairs, **options).table.frame
    path = Integration(steps=64)
    found = attribution_patch(model, pairs, "text.0.resid_pre", integration=path, **options)
    frame = found.table.frame
    np.testing.assert_allclose(frame.m_clean, 0, atol=1e-6)
    corrupt = dict(zip(exact.pair, exact.m_corrupt, strict=True))
    np.testing.assert_allclose(frame.m_corrupt, frame.pair.map(corrupt), atol=1e-6)
    change = (frame.m_corrupt - frame.m_clean) * (1 if direction == "noise" else -1)
    np.testing.assert_allclose(frame.value, change, atol=2e-3)


def test_first_order_kl_at_the_clean_run_is_zero_and_said_so(model, pairs):
    options = {"metric": "kl", "direction": "noise", **QUIET}
    with pytest.warns(UserWarning, match="is 0 by definition"):
        found = attribution_patch(model, pairs, **options)
    np.testing.assert_allclose(found.table.frame.value, 0, atol=1e-6)
    with pytest.warns(UserWarning, match="score_edges: .* 0 by definition"):
        edges = score_edges(model, pairs[:1], Graph.of(model, vision=False), **options)
    assert float(edges.values.abs().max()) < 1e-6


def integrated(model, pairs, steps=64):
    """Integrated gradients summed over everything that enters the language model."""
    batch = next(batches(model, pairs, len(pairs)))
    entries = entry_sites(model)
    with torch.no_grad():
        (first, start), (second, end) = (
            model.run_with_cache(inputs, entries) for inputs in (batch.corrupt, batch.clean)
        )
    score = Scorer("logit_diff", batch.pairs, batch.answer, batch.foil)
    path = Integration(steps=steps)
    grads = mean_gradients(model, batch.corrupt, batch.clean, entries, score, path)
    total = sum(float(((end[site] - start[site]) * grads[site]).sum()) for site in entries)
    last = torch.arange(len(pairs)), batch.clean.last
    return total, float((score(second[last]) - score(first[last])).sum())


@pytest.mark.parametrize("name", zoo.tiered(zoo.BUILDERS, ("llava", "qwen3_vl", "mllama")))
def test_integrated_gradients_sum_to_the_gap_whatever_way_the_image_enters(name):
    model = wrap(zoo.build(name), processors.build(name))
    total, gap = integrated(model, told_apart(model, make_pairs(2)))
    assert total == pytest.approx(gap, abs=max(2e-3, 0.02 * abs(gap)))


@pytest.mark.parametrize("name", ["qwen3_vl", "mllama"])
def test_a_path_that_does_not_end_at_the_other_run_is_refused(name, monkeypatch):
    model = wrap(zoo.build(name), processors.build(name))
    pairs = told_apart(model, make_pairs(1))
    monkeypatch.setattr(gradients, "entry_sites", lambda _model: [gradients.EMBED])
    with pytest.raises(InputError, match="or something else enters"):
        attribution_patch(model, pairs, integration=Integration(steps=2), **QUIET)
