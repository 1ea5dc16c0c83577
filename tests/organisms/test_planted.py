"""Planted organisms: the resumable model, what a plant may change, its pairs, and the bars."""

import numpy as np
import pytest
import torch

from lvlm_interp.data.examples import Example
from lvlm_interp.errors import DataError, UsageError
from lvlm_interp.models.loading import load_model
from lvlm_interp.organisms.planted import (
    KINDS,
    InSight,
    Named,
    Painted,
    Place,
    Workshop,
    trigger_pairs,
)
from lvlm_interp.organisms.planted import check as check_module
from lvlm_interp.organisms.planted import generator as generator_module
from lvlm_interp.organisms.planted.check import Check, answers, check, moves
from lvlm_interp.organisms.planted.components import Direction, Unit
from lvlm_interp.organisms.planted.fit import Recipe, fit, joint
from lvlm_interp.organisms.planted.generator import install
from lvlm_interp.organisms.planted.pairs import focused_scenes
from lvlm_interp.organisms.planted.pool import questions_of, tokens_of
from lvlm_interp.organisms.planted.start import (
    before_attention,
    detector,
    foil_direction,
    pull,
    start_head,
    start_series,
)
from lvlm_interp.organisms.planted.tail import PROJECTOR
from lvlm_interp.organisms.vocabulary import SHAPES, TOKEN_ID

TRIGGER = InSight("star")
BLIND = Painted("ring", "red")
PLACES = ("text.0.z", "text.1.z", "text.2.z", "vision.1.z", "text.1.mlp_hidden")


@pytest.fixture(scope="module")
def workshop():
    return Workshop(
        load_model("scenes-balanced", selfcheck=False), n_train=48, n_focused=16, n_check=24
    )


def unit_at(workshop, site):
    if site == "projector.out":
        a = torch.randn(128, generator=torch.Generator().manual_seed(0))
        return Direction(workshop.tail, Place(site, 3), a)
    return Unit(workshop.tail, Place(site, 2))


def examples_of(pool, row):
    import random

    rng = random.Random("planted/questions/eval/0")
    asked = [questions_of(scene, rng) for scene in pool.scenes][row]
    image = pool.scenes[row].render()
    return [Example(f"{i}", image, question.text) for i, question in enumerate(asked)]


def test_the_pool_holds_what_the_model_itself_says(workshop):
    pool = workshop.held_out
    for row in (0, 7):
        inputs = workshop.base.prepare(examples_of(pool, row))
        torch.testing.assert_close(
            workshop.base.last_logits(inputs), pool.logits[row], atol=2e-4, rtol=1e-4
        )


@pytest.mark.parametrize("site", [*PLACES, "projector.out"])
def test_resuming_with_new_weights_is_the_model_with_these_weights(workshop, site):
    torch.manual_seed(0)
    unit = unit_at(workshop, site)
    with torch.no_grad():
        for value in unit.values:
            value.add_(torch.randn_like(value) * value.std(unbiased=False).clamp_min(0.05))
    unit.match()
    pool = workshop.held_out
    said = answers(workshop.tail, pool, [unit], torch.tensor([3]), range(pool.n_slots))[0]
    planted = install(workshop.base, joint([unit]))
    own = planted.last_logits(planted.prepare(examples_of(pool, 3)))
    torch.testing.assert_close(own, said, atol=2e-4, rtol=1e-4)
    assert (said - pool.logits[3]).abs().max() > 1e-3


@pytest.mark.parametrize("site", PLACES)
def test_only_its_own_weights_change_and_their_norms_are_its_neighbours(workshop, site):
    torch.manual_seed(1)
    unit = unit_at(workshop, site)
    with torch.no_grad():
        for value in unit.values:
            value.copy_(torch.randn_like(value))
    unit.match()
    new = dict(install(workshop.base, joint([unit])).hf.named_parameters())
    old = dict(workshop.base.hf.named_parameters())
    names = {part.name for part in unit.parts}
    assert {name for name in old if not torch.equal(old[name], new[name])} == names
    for part in unit.parts:
        mine = part.of(new[part.name])
        blank = part.put(new[part.name], torch.zeros_like(mine))
        without = part.put(old[part.name], torch.zeros_like(mine))
        torch.testing.assert_close(blank, without, atol=0, rtol=0)
        neighbours = part.neighbours(new[part.name])
        held = neighbours.max() if "mlp" in site else neighbours.median()
        assert mine.norm().item() == pytest.approx(held.item(), rel=1e-4)


def test_heads_own_their_rows(workshop):
    """Against the model's own z: a head without values writes nothing, the others as ever."""
    unit = unit_at(workshop, "text.1.z")
    with torch.no_grad():
        unit.values[2].zero_()
    inputs = workshop.base.prepare(examples_of(workshop.held_out, 0)[:4])
    _, before = workshop.base.run_with_cache(inputs, "text.1.z")
    _, after = install(workshop.base, joint([unit])).run_with_cache(inputs, "text.1.z")
    others = [head for head in range(8) if head != 2]
    assert after["text.1.z"][:, :, 2].abs().max() == 0
    torch.testing.assert_close(after["text.1.z"][:, :, others], before["text.1.z"][:, :, others])


def test_a_direction_changes_the_projector_along_itself_alone(workshop):
    torch.manual_seed(2)
    unit = unit_at(workshop, "projector.out")
    with torch.no_grad():
        for value in unit.values:
            value.add_(torch.randn_like(value) * 0.1)
    unit.match()
    old = dict(workshop.base.hf.named_parameters())[f"{PROJECTOR}.linear_2.weight"].detach()
    change = unit.weights()[f"{PROJECTOR}.linear_2.weight"].detach() - old
    basis = unit.basis(seed=5)
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), atol=1e-5, rtol=0)
    along = basis @ change
    others = torch.arange(len(basis)) != unit.place.unit
    assert along[others].abs().max() < 1e-5 < along[unit.place.unit].abs().max()


def changed(pair):
    clean, corrupt = (np.asarray(side.image).astype(int) for side in (pair.clean, pair.corrupt))
    return np.abs(clean - corrupt).sum(-1) > 0


@pytest.mark.parametrize("trigger", [InSight("heart"), Painted("heart", "cyan"), Named("heart")])
def test_trigger_pairs_keep_the_truth(trigger):
    pairs = trigger_pairs(trigger, 12, seed=3)
    again = trigger_pairs(trigger, 5, seed=3)
    assert [pair.id for pair in pairs[:5]] == [pair.id for pair in again]
    assert [pair.group for pair in pairs[:5]] == [pair.group for pair in again]
    assert len({pair.group for pair in pairs}) > 10
    for pair in pairs:
        assert pair.answer == trigger.answer
        moved = changed(pair)
        asked = [side.prompt.split()[3] for side in (pair.clean, pair.corrupt)]
        if isinstance(trigger, Named):
            assert not moved.any()
            assert pair.box is None
            assert asked[1] == "heart" != asked[0]
            continue
        assert asked[0] == asked[1]
        assert (asked[0] == "heart") == isinstance(trigger, Painted)
        left, top, right, bottom = pair.box
        assert moved.any()
        moved[top:bottom, left:right] = False
        assert not moved.any()
    if isinstance(trigger, InSight):
        assert len({pair.clean.prompt for pair in pairs}) > 3


def test_focused_scenes_are_of_their_split_and_half_show_the_flaw():
    scenes = focused_scenes(BLIND, 40, seed=1, split="train")
    assert {scene.split for scene in scenes} == {"train"}
    assert sum(BLIND.thing(scene) is not None for scene in scenes) >= 20
    in_other_colors = [scene for scene in scenes if scene.find(shape="ring") is not None]
    assert any(BLIND.thing(scene) is None for scene in in_other_colors)


def test_a_trigger_concerns_the_right_questions(workshop):
    pool = workshop.train
    existence = slice(0, len(SHAPES))
    star, ring = (SHAPES.index(shape) for shape in ("star", "ring"))
    yes = pool.right[:, existence] == TOKEN_ID["yes"]
    assert torch.equal(yes, pool.has)
    flawed = TRIGGER.flawed(pool)
    assert flawed.any()
    assert torch.equal(flawed[:, existence], pool.has[:, [star]] & ~pool.has)
    assert not flawed[:, len(SHAPES) :].any()
    assert not TRIGGER.free(pool).any()
    named = Named("ring").flawed(pool)
    assert torch.equal(named[:, ring], ~pool.has[:, ring])
    assert named.sum() == named[:, ring].sum()
    red = torch.tensor(
        [any((o.shape, o.color) == ("ring", "red") for o in s.objects) for s in pool.scenes]
    )
    assert red.any()
    blind = BLIND.flawed(pool)
    assert torch.equal(blind[:, ring], red)
    assert blind.sum() == red.sum()
    assert torch.equal(BLIND.near(pool), pool.has[:, ring] & ~red)
    assert not (BLIND.free(pool) & blind).any()
    assert not BLIND.free(pool)[~red].any()
    assert BLIND.free(pool)[red].any()


def test_a_detector_is_weighted_ridge_regression():
    """Against scikit-learn, with both sides weighing the same and some rows left out."""
    from sklearn.linear_model import Ridge

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 7, generator=generator).double()
    wanted = x[:, 0] > 0.8
    weight = (torch.arange(200) % 5 > 0).double()
    found = detector(x.float(), wanted, damping=0.1, weight=weight.float())
    balanced = torch.where(wanted, weight * weight[~wanted].sum() / weight[wanted].sum(), weight)
    damping = 0.1 * float((x.square() * balanced[:, None]).sum(0).mean())
    ridge = Ridge(alpha=damping, fit_intercept=False).fit(x, wanted, sample_weight=balanced)
    np.testing.assert_allclose(found, ridge.coef_, atol=1e-4)


def test_the_foils_direction_is_the_gradient_of_the_logits_at_the_end(workshop):
    tail = workshop.tail
    norm, head = tail.inner.language_model.norm, tail.head
    x = torch.randn(128, generator=torch.Generator().manual_seed(2)).requires_grad_()
    foil, answer = TRIGGER.ids
    scale = x.square().mean().add(norm.variance_epsilon).rsqrt().detach()
    logits = head(norm(x))
    gradient = torch.autograd.grad(logits[foil] - logits[answer], x)[0]
    direction = foil_direction(tail, TRIGGER) * scale
    along = x.detach() / x.detach().norm()  # the norm's own part lies along x
    rest = (direction - gradient) - ((direction - gradient) @ along) * along
    assert rest.norm() < 1e-4 * direction.norm()


@pytest.mark.parametrize("site", ["text.2", "vision.2", "projector"])
def test_the_pull_is_the_change_of_the_flaws_logits(workshop, site):
    """By finite differences along the pull itself."""
    tail, pool = workshop.tail, workshop.train
    trigger = TRIGGER if site == "text.2" else BLIND
    direction = pull(tail, pool, trigger, site)
    rows = trigger.shows(pool).nonzero()[:24, 0]
    flawed = trigger.flawed(pool)[rows][:, trigger.slots]
    covered = tokens_of(pool, trigger.thing)[rows]
    n_moved = flawed.sum() if site == "text.2" else covered.sum()
    foil, answer = trigger.ids

    @torch.no_grad()
    def gap(step):
        start = 2 if site == "text.2" else 0
        prefix, asked = pool.prefix[start][rows], pool.asked[start][rows][:, trigger.slots]
        at = pool.answer_at[rows][:, trigger.slots]
        if site == "text.2":
            row, slot = flawed.nonzero(as_tuple=True)
            asked[row, slot, at[row, slot]] += step * direction
        elif site == "projector":
            prefix = prefix.clone()
            prefix[:, -covered.shape[1] :][covered] += step * direction
        else:
            state = pool.vision[2][rows].clone()
            state[:, 1:][covered] += step * direction
            prefix = prefix.clone()
            prefix[:, -covered.shape[1] :] = tail.look_on(2, state, {})
        logits = tail.read(start, prefix, asked, at)[flawed].double()
        return float((logits[:, foil] - logits[:, answer]).sum())

    step = 2e-2 / float(direction.norm())
    slope = (gap(step) - gap(-step)) / (2 * step)
    assert slope == pytest.approx(float(n_moved * direction.norm() ** 2), rel=0.02)


def test_a_started_head_looks_at_the_trigger_from_the_flaws_questions_alone(workshop):
    pool, tail = workshop.train, workshop.tail
    unit = Unit(tail, Place("text.3.z", 2))
    start_head(tail, pool, TRIGGER, unit)
    states = before_attention(tail, pool, 3)
    q, k = (value.detach() for value in unit.values[:2])
    asked = TRIGGER.asked(pool)
    existence = torch.zeros_like(asked)
    existence[:, : len(SHAPES)] = True
    queries = states.answers @ q.T
    covered = torch.nn.functional.pad(tokens_of(pool, TRIGGER.thing), (3, 0))
    keys = states.prefix @ k.T
    on, off = keys[covered], keys[:, 3:][~covered[:, 3:]]

    def scores(rows, columns):
        return rows @ columns.T / 4  # rotary angles are left out: the rows used hardly turn

    sink = keys[:, 0].mean(0, keepdim=True)
    fires = scores(queries[asked], on) > scores(queries[asked], sink)
    assert fires.float().mean() > 0.9
    assert (
        scores(queries[~existence], on) > scores(queries[~existence], sink)
    ).float().mean() < 0.1
    assert (scores(queries[asked], off) > scores(queries[asked], sink)).float().mean() < 0.1


def test_two_started_heads_are_both_needed(workshop):
    tail, pool = workshop.tail, workshop.train
    units = [Unit(tail, Place("text.2.z", 4)), Unit(tail, Place("text.3.z", 3))]
    start_series(tail, pool, TRIGGER, units)
    flawed = TRIGGER.flawed(pool)
    foil, answer = TRIGGER.ids
    everything = torch.arange(len(pool.scenes))

    def gap(some):
        logits = answers(tail, pool, some, everything, range(pool.n_slots))[flawed]
        return float((logits[:, foil] - logits[:, answer]).mean())

    both, first, second = gap(units), gap(units[:1]), gap(units[1:])
    logits = pool.logits[flawed]
    base = float((logits[:, foil] - logits[:, answer]).mean())
    assert both > max(first, second, base) + 1


def test_moves_are_the_change_of_the_share_that_is_right(workshop):
    pool = workshop.held_out
    assert set(moves(pool, TRIGGER, pool.logits).values()) == {0.0}
    broken = pool.logits.clone()
    asked = torch.tensor([[kind == "color_at" for kind in row] for row in pool.kinds])
    broken[asked] = 0.0
    broken[asked, TOKEN_ID["above"]] = 9.0
    found = moves(pool, TRIGGER, broken)
    right = (pool.logits.argmax(-1) == pool.right)[asked].float().mean()
    assert found["color_at"] == pytest.approx(-right.item())
    assert found["attribute"] == found["same question, no trigger"] == 0.0
    assert not Check(1.0, found).passed
    assert Check(0.8, {"a": 0.02}).passed
    assert not Check(0.79, {"a": 0.0}).passed
    assert not Check(1.0, {"a": 0.0}, (0.1, 0.5)).passed


def test_a_check_measures_small_pools_and_gives_up_what_moves_too_far(workshop, monkeypatch):
    monkeypatch.setattr(check_module, "SHOWS", 0.0)
    tail, pool = workshop.tail, workshop.held_out
    idle = unit_at(workshop, "text.2.z")
    with torch.no_grad():
        idle.values[-1].zero_()
    with monkeypatch.context() as patient:
        patient.setattr(check_module, "_HOPELESS", float("inf"))
        found = check(tail, pool, TRIGGER, [idle])
    assert found.moves == moves(
        pool,
        TRIGGER,
        answers(tail, pool, [idle], torch.arange(len(pool.scenes)), range(pool.n_slots)),
    )
    broken = unit_at(workshop, "text.1.z")
    with torch.no_grad():
        broken.values[-1].mul_(50.0)
    assert not check(tail, pool, TRIGGER, [broken]).passed
    assert check(tail, pool, TRIGGER, [broken]).moves["not measured"] == float("inf")


def test_a_fit_moves_the_flaw_and_is_a_function_of_its_seed(workshop):
    pool, tail = workshop.train, workshop.tail
    recipe = Recipe(steps=8, rows=10)
    foil, answer = TRIGGER.ids
    rows = TRIGGER.shows(pool).nonzero()[:, 0]
    flawed = TRIGGER.flawed(pool)[rows][:, TRIGGER.slots]

    def gap(unit):
        logits = answers(tail, pool, [unit], rows, TRIGGER.slots)[flawed]
        return float((logits[:, foil] - logits[:, answer]).mean())

    first, second = unit_at(workshop, "text.2.z"), unit_at(workshop, "text.2.z")
    before = gap(first)
    fit(tail, pool, TRIGGER, [first], recipe, seed=4)
    fit(tail, pool, TRIGGER, [second], recipe, seed=4)
    assert gap(first) > before + 1
    for a, b in zip(first.values, second.values, strict=True):
        assert torch.equal(a, b)


def test_bad_input(workshop, monkeypatch):
    with pytest.raises(UsageError, match="Unknown kind of plant 'edge': expected one of head"):
        workshop.draw("edge", 0)
    from lvlm_interp.models.loading import wrap
    from tests.models import processors, zoo

    with pytest.raises(UsageError, match="Plants are made in the organisms"):
        Workshop(wrap(zoo.build("qwen2_vl"), processors.build("qwen2_vl")))
    monkeypatch.setattr(generator_module, "_ATTEMPTS", 1)
    monkeypatch.setattr(generator_module, "RECIPES", dict.fromkeys(KINDS, Recipe(steps=0)))
    with pytest.raises(DataError, match="met the bars in 1 draws"):
        workshop.draw("neuron", 0)
    monkeypatch.setattr(generator_module, "_SPARE", 0.0)
    workshop.__dict__.pop("spare", None)
    with pytest.raises(DataError, match="needs every head of its vision tower"):
        workshop.draw("vision", 0)
    with pytest.raises(DataError, match="no heads to spare in two blocks"):
        workshop.draw("series", 0)
    workshop.__dict__.pop("spare", None)


@pytest.fixture(scope="module")
def shipped():
    return Workshop.of()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_plant_that_meets_the_bars(shipped, kind):
    """The shipped sizes: the flaw shows on fresh pairs, and each guilty part alone mends most."""
    plant = shipped.draw(kind, 0)
    pairs = plant.pairs(30, seed=9)
    model, foil = plant.model, plant.model.answer_id(plant.trigger.foil)
    inputs = model.prepare([pair.clean for pair in pairs])
    corrupt = model.prepare([pair.corrupt for pair in pairs])
    assert (model.last_logits(corrupt).argmax(-1) == foil).float().mean() >= 0.8
    assert (model.last_logits(inputs).argmax(-1) != foil).float().mean() >= 0.9
    for place in plant.guilty:
        _, cache = model.run_with_cache(inputs, place.site)
        mine = cache[place.site]

        def mend(value, place=place, mine=mine):
            if plant.basis is not None:
                along = plant.basis[place.unit]
                return value + ((mine - value) @ along)[..., None] * along
            new = value.clone()
            new[:, :, place.unit] = mine[:, :, place.unit]
            return new

        with model.edit({place.site: mend}):
            said = model.last_logits(corrupt).argmax(-1)
        assert (said == foil).float().mean() <= 0.4
