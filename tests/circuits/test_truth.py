"""The ground-truth benchmark: hits, directions against other routes, resuming, bad input."""

import json

import numpy as np
import pytest
import torch

from lvlm_interp.circuits import localisers, truth
from lvlm_interp.circuits.directions import SITE, score_directions
from lvlm_interp.circuits.localisers import Case, components, methods_for
from lvlm_interp.circuits.truth import Job, hits, rows_of, run
from lvlm_interp.errors import UsageError
from lvlm_interp.models.loading import load_model
from lvlm_interp.organisms.planted import KINDS, Check, InSight, Place, Planted, Workshop
from lvlm_interp.patching import activation_patch, attribution_patch

TRIGGER = InSight("star")


@pytest.fixture(scope="module")
def base():
    return load_model("scenes-balanced", selfcheck=False)


def plant_in(base, kind, place, basis=None):
    """The base itself stands for a plant: scores are then those of any model."""
    return Planted(base, kind, 3, TRIGGER, (place,), Check(1.0, {}), basis)


@pytest.fixture(scope="module")
def basis(base):
    torch.manual_seed(0)
    return torch.linalg.qr(torch.randn(base.d_model, base.d_model)).Q.T


def test_hits_are_the_closed_form():
    guilty = np.array([False, True, False, False])
    first = hits(np.array([0.1, 0.9, 0.3, 0.2]), guilty)
    assert first == {"auroc": 1.0, "rank": 1.0, "rank1": 1.0}
    second = hits(np.array([0.1, 0.25, 0.3, 0.2]), guilty)
    assert second == {"auroc": pytest.approx(2 / 3), "rank": 2.0, "rank1": 0.0}
    level = hits(np.array([0.3, 0.3, 0.3, 0.3]), guilty)
    assert level == {"auroc": 0.5, "rank": 2.5, "rank1": 0.0}
    two = np.array([True, False, True, False])
    both = hits(np.array([5.0, 1.0, 4.0, 2.0]), two)
    assert both["rank1"] == 1.0
    one = hits(np.array([5.0, 3.0, 2.0, 1.0]), two)
    assert one == {"auroc": 0.75, "rank": 1.0, "rank1": 0.0}


def test_hits_refuse_what_cannot_be_ranked():
    for scores, guilty in (([np.nan, 1.0], [True, False]), ([0.0, 1.0], [True, True])):
        with pytest.raises(UsageError, match="finite"):
            hits(np.array(scores), np.array(guilty))


def test_rows_have_intervals_bounds_and_the_baseline():
    def record(seed, rank1):
        scores = {"auroc": 0.5 + rank1 / 2, "rank": 1.0, "rank1": rank1, "forwards": 7.0}
        methods = dict.fromkeys(methods_for("head"), scores)
        random = {"auroc": 0.5, "rank": 9.0, "rank1": 0.1, "forwards": 0.0}
        return {
            **{"kind": "head", "seed": seed, "attempts": 2, "shows": 0.9, "seconds": 3.0},
            **{"moves": {"a": -0.01, "b": 0.005}, "methods": {**methods, "random": random}},
        }

    failed = {"kind": "head", "seed": 9, "failed": "no draw", "seconds": 30.0}
    rows = rows_of([*(record(seed, float(seed < 3)) for seed in range(4)), failed])
    by_name = {(row["case"], row["measure"]): row for row in rows}
    row = by_name["head/AtP*", "rank1"]
    assert (row["value"], row["n"], row["bound"]) == (0.75, 4, 0.95)
    assert 0 < row["low"] < 0.75 < row["high"] < 1
    assert (row["baseline"], row["ratio"]) == (0.1, pytest.approx(7.5))
    assert by_name["head/AtP*", "auroc"]["value"] == pytest.approx(0.875)
    assert by_name["head/AtP", "auroc"]["bound"] is None
    assert by_name["head/EAP", "forwards"]["value"] == 7.0
    assert by_name["head/plants", "drawn"]["value"] == 0.8
    assert by_name["head/plants", "yield"]["value"] == 0.5
    assert by_name["head/plants", "moves"]["value"] == pytest.approx(0.01)
    json.dumps(rows, allow_nan=False)


def test_patching_directions_is_an_edit_by_hand_and_whole_bases_are_whole_patches(base, basis):
    case = Case.of(plant_in(base, "projector", Place("projector.out", 5), basis), 3)
    assert case.guilty.sum() == 1
    assert case.guilty[5]
    few = basis[:2]
    found, cost = score_directions(base, case.pairs, few, "patch")
    assert cost == 3 * (2 + len(few))
    clean = base.prepare([pair.clean for pair in case.pairs])
    corrupt = base.prepare([pair.corrupt for pair in case.pairs])
    yes, no = base.answer_id("yes"), base.answer_id("no")

    def m(logits):
        return logits[:, no] - logits[:, yes]

    with base.record([SITE]) as cache:
        base.last_logits(clean)
    project = torch.outer(few[1], few[1])
    with base.edit({SITE: lambda x: x - x @ project + cache[SITE] @ project}):
        after = m(base.last_logits(corrupt))
    expected = (after - m(base.last_logits(corrupt))).mean()
    assert found[1] == pytest.approx(expected.item(), abs=1e-5)
    # First-order estimates are linear: over a whole basis they add up to that of the whole site.
    total = score_directions(base, case.pairs, basis, "atp")[0].sum()
    whole = attribution_patch(base, case.pairs, "projector.out", "all", progress=False)
    frame = whole.table.frame
    assert total == pytest.approx((frame["m_patched"] - frame["m_corrupt"]).mean(), rel=1e-4)
    ablated = {name: score_directions(base, case.pairs, few, name)[0] for name in ("zero", "mean")}
    assert not np.allclose(ablated["zero"], ablated["mean"])
    star = score_directions(base, case.pairs, few, "atp_star")[0]
    assert (star >= 0).all()
    with pytest.raises(UsageError, match="expected one of patch"):
        score_directions(base, case.pairs, few, "edge")


@pytest.mark.parametrize("kind", ["head", "vision"])
def test_every_method_scores_every_head(base, kind):
    tower = "text" if kind == "head" else "vision"
    case = Case.of(plant_in(base, kind, Place(f"{tower}.1.z", 2)), 2)
    size = base.towers[tower]
    assert len(case.places) == size.n_layers * size.n_heads
    found = {name: localisers.METHODS[name](case) for name in methods_for(kind)}
    for name, scored in found.items():
        assert scored.scores.shape == (len(case.places),), name
        assert np.isfinite(scored.scores).all(), name
        assert np.ptp(scored.scores) > 0, name
    one = activation_patch(
        base, case.pairs, f"{tower}.1.z", "all", heads=[(1, 2)], engine="full", progress=False
    ).table.frame
    at = case.places.index(Place(f"{tower}.1.z", 2))
    by_hand = (one["m_patched"] - one["m_corrupt"]).mean()
    assert found["activation patching"].scores[at] == pytest.approx(by_hand, abs=1e-4)
    assert found["activation patching"].forwards > found["AtP"].forwards > 0
    assert ("direct logit attribution" in found) == (kind == "head")


def test_neurons_and_directions_are_counted(base, basis):
    neurons = components(plant_in(base, "neuron", Place("text.0.mlp_hidden", 0)))
    width = base.config.text_config.intermediate_size
    assert len(set(neurons)) == len(neurons) == base.n_layers * width
    case = Case.of(plant_in(base, "neuron", Place("text.1.mlp_hidden", 7)), 1)
    norm = localisers.METHODS["weight magnitude"](case).scores[width + 7]
    mlp = base.hf.model.language_model.layers[1].mlp
    rows = [mlp.gate_proj.weight[7], mlp.up_proj.weight[7], mlp.down_proj.weight[:, 7]]
    assert norm == pytest.approx(torch.cat(rows).norm().item(), rel=1e-5)
    assert "EAP" not in methods_for("neuron")


@pytest.mark.slow
def test_attribution_misses_a_head_whose_flaw_has_levelled_off():
    """What the page on ground truth says of AtP, on one of the plants of its table."""
    plant = Workshop.of().draw("vision", 100_002)
    case = Case.of(plant, 12, plant.seed)
    model, (place,) = plant.model, plant.guilty
    clean, corrupt = (
        model.prepare([getattr(pair, side) for pair in case.pairs]) for side in ("clean", "corrupt")
    )
    foil, answer = (model.answer_id(word) for word in (plant.trigger.foil, plant.trigger.answer))
    with torch.no_grad(), model.record([place.site]) as cache:
        model.last_logits(clean)
    mine = cache[place.site][:, :, place.unit]

    def flaw(share):
        def towards(z):
            new = z.clone()
            new[:, :, place.unit] = mine + share * (z[:, :, place.unit] - mine)
            return new

        with torch.no_grad(), model.edit({place.site: towards}):
            logits = model.last_logits(corrupt)
        return float((logits[:, foil] - logits[:, answer]).mean())

    assert flaw(0.75) > flaw(1.0) > 0 > flaw(0.0)
    ranks = {
        name: hits(localisers.METHODS[name](case).scores, case.guilty)["rank"]
        for name in (
            "AtP",
            "AtP, clean gradient",
            "AtP*",
            "AtP*, corrupt gradient",
            "integrated gradients",
            "activation patching",
        )
    }
    assert ranks.pop("AtP") == len(case.places)
    assert set(ranks.values()) == {1.0}
    # What the page says of weights: the plants are found without a forward.
    blind = ("nearest to the median norm", "stable rank")
    found = [hits(localisers.METHODS[name](case).scores, case.guilty)["rank"] for name in blind]
    assert min(found) == 1.0


@pytest.fixture
def scored(monkeypatch):
    """Plants that cost nothing, and which of them were scored."""
    done: list[Job] = []

    def score(_workshop, job):
        done.append(job)
        if len(done) == 3:
            raise KeyboardInterrupt
        scores = {"auroc": 1.0, "rank": 1.0, "rank1": 1.0, "forwards": 2.0, "seconds": 0.1}
        return {
            **{"kind": job.kind, "seed": job.seed, "attempts": 1, "shows": 1.0, "seconds": 1.0},
            **{"moves": {"a": 0.0}, "methods": dict.fromkeys(methods_for(job.kind), scores)},
        }

    monkeypatch.setattr(truth, "score_plant", score)
    return done


def test_a_run_that_was_killed_goes_on(scored, tmp_path):
    out = tmp_path / "truth.json"

    def again(seed=0):
        return run(out, kinds=["head", "vision"], n=2, seed=seed, n_jobs=1, progress=False)

    with pytest.raises(KeyboardInterrupt):
        again()
    assert not out.exists()
    rows = again()
    assert json.loads(out.read_text()) == rows
    assert scored == [Job("head", 0), Job("head", 1), *[Job("vision", 0)] * 2, Job("vision", 1)]
    again()
    assert len(scored) == 5
    again(seed=1)
    assert len({job.seed for job in scored}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["edge"]}, "expected some of head"),
        ({"kinds": []}, "expected some of head"),
        ({"n": 0}, "at least one plant"),
        ({"n_jobs": 0}, "one process"),
        ({"seed": -1}, "a seed from 0"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(tmp_path / "out.json", progress=False, **options)


def test_the_command_is_registered():
    from lvlm_interp.cli import COMMANDS

    assert COMMANDS["circuits benchmark"][1] == "lvlm_interp.circuits.command:benchmark"
    assert set(truth.N_PLANTS) == set(KINDS) == set(truth.N_PAIRS)
