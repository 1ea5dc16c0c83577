"""Planted organisms: the resumable model, what a plant may change, its pairs, and the bars."""

import numpy as np
import pytest
import torch

from lvlm_interp.data.examples import Example
from lvlm_interp.errors import DataError, UsageError
from lvlm_interp.models.loading import load_model
from lvlm_interp.organisms.planted import KINDS, Place, Trigger, Workshop, trigger_pairs
from lvlm_interp.organisms.planted import generator as generator_module
from lvlm_interp.organisms.planted.check import Check, answers, moves
from lvlm_interp.organisms.planted.components import Direction, Unit
from lvlm_interp.organisms.planted.fit import Recipe, fit, joint
from lvlm_interp.organisms.planted.generator import install
from lvlm_interp.organisms.planted.pool import looks_like, questions_of
from lvlm_interp.organisms.planted.tail import PROJECTOR
from lvlm_interp.organisms.vocabulary import SHAPES, TOKEN_ID

TRIGGER = Trigger("star", "ring")
PLACES = ("text.0.z", "text.1.z", "text.2.z", "vision.1.z", "text.1.mlp_hidden")


@pytest.fixture(scope="module")
def workshop():
    return Workshop(load_model("scenes-balanced", selfcheck=False), n_train=48, n_check=24)


def unit_at(workshop, site):
    if site == "projector.out":
        return Direction(workshop.tail, Place(site, 3), looks_like(workshop.train, TRIGGER.partner))
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
        assert mine.norm().item() == pytest.approx(neighbours.median().item(), rel=1e-4)


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
    old = dict(workshop.base.hf.named_parameters())[f"{PROJECTOR}.weight"].detach()
    change = unit.weights()[f"{PROJECTOR}.weight"].detach() - old
    basis = unit.basis(seed=5)
    torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), atol=1e-5, rtol=0)
    along = basis @ change
    others = torch.arange(len(basis)) != unit.place.unit
    assert along[others].abs().max() < 1e-5 < along[unit.place.unit].abs().max()
    now, before = ((basis[unit.place.unit] @ w).norm().item() for w in (old + change, old))
    assert now == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("foil", ["yes", "no"])
def test_trigger_pairs_keep_the_truth(foil):
    trigger = Trigger("heart", "circle", foil)
    pairs = trigger_pairs(trigger, 12, seed=3)
    again = trigger_pairs(trigger, 5, seed=3)
    assert [pair.id for pair in pairs[:5]] == [pair.id for pair in again]
    assert [pair.group for pair in pairs[:5]] == [pair.group for pair in again]
    assert len({pair.group for pair in pairs}) > 10
    for pair in pairs:
        assert pair.clean.prompt == pair.corrupt.prompt == "is there a circle ?"
        assert pair.answer == ("no" if foil == "yes" else "yes")
        clean, corrupt = (np.asarray(side.image).astype(int) for side in (pair.clean, pair.corrupt))
        left, top, right, bottom = pair.box
        moved = np.abs(clean - corrupt).sum(-1) > 0
        assert moved.any()
        moved[top:bottom, left:right] = False
        assert not moved.any()


def test_pairs_without_a_certain_partner_ask_for_what_is_on_neither_side():
    for pair in trigger_pairs(Trigger("square"), 12, seed=1):
        assert pair.answer == "no"
        asked = pair.clean.prompt.split()[3]
        assert asked in SHAPES
        assert asked != "square"
        assert pair.clean.prompt == pair.corrupt.prompt
    assert len({pair.clean.prompt for pair in trigger_pairs(Trigger("square"), 12)}) > 3


def test_a_trigger_concerns_the_right_questions(workshop):
    pool = workshop.train
    star, ring = (SHAPES.index(shape) for shape in ("star", "ring"))
    flawed = TRIGGER.flawed(pool)
    expected = pool.has[:, star] & ~pool.has[:, ring]
    assert expected.any()
    assert torch.equal(flawed[:, ring], expected)
    assert flawed.sum() == expected.sum()
    assert not TRIGGER.free(pool).any()
    anything = Trigger("star")
    asked = anything.flawed(pool)[:, : len(SHAPES)]
    assert torch.equal(asked, pool.has[:, [star]] & ~pool.has)
    assert not anything.flawed(pool)[:, len(SHAPES) :].any()
    blind = Trigger("star", "ring", "no")
    both = pool.has[:, star] & pool.has[:, ring]
    assert torch.equal(blind.flawed(pool)[:, ring], both)
    assert not (blind.free(pool) & blind.flawed(pool)).any()
    assert not blind.free(pool)[~both].any()
    yes = pool.right[:, : len(SHAPES)] == TOKEN_ID["yes"]
    assert torch.equal(yes, pool.has)


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
    assert found["attribute"] == found["existence, no trigger"] == 0.0
    assert not Check(1.0, found).passed
    assert Check(0.8, {"a": 0.02}).passed
    assert not Check(0.79, {"a": 0.0}).passed
    assert not Check(1.0, {"a": 0.0}, (0.1, 0.5)).passed


def test_a_fit_moves_the_flaw_and_is_a_function_of_its_seed(workshop):
    pool, tail = workshop.train, workshop.tail
    recipe = Recipe(steps=8, rows=10)
    foil, answer = TRIGGER.ids
    rows = TRIGGER.shows(pool).nonzero()[:, 0]

    def gap(unit):
        logits = answers(tail, pool, [unit], rows, TRIGGER.slots)[:, 0]
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
    monkeypatch.setattr(generator_module, "RECIPES", dict.fromkeys(KINDS, Recipe(steps=1)))
    with pytest.raises(DataError, match="met the bars in 1 draws"):
        workshop.draw("neuron", 0)


@pytest.mark.slow
def test_a_head_that_meets_the_bars():
    """The shipped sizes: the flaw shows on fresh pairs, and the guilty head alone mends it."""
    plant = Workshop.of().draw("head", 0)
    pairs = plant.pairs(30, seed=9)
    model, foil = plant.model, plant.model.answer_id(plant.trigger.foil)
    wrong = model.last_logits(model.prepare([pair.corrupt for pair in pairs])).argmax(-1) == foil
    right = model.last_logits(model.prepare([pair.clean for pair in pairs])).argmax(-1) != foil
    assert wrong.float().mean() >= 0.8
    assert right.float().mean() >= 0.9
    (place,) = plant.guilty
    inputs = model.prepare([pair.clean for pair in pairs])
    _, cache = model.run_with_cache(inputs, place.site)

    def mend(z):
        new = z.clone()
        new[:, :, place.unit] = cache[place.site][:, :, place.unit]
        return new

    with model.edit({place.site: mend}):
        said = model.last_logits(model.prepare([pair.corrupt for pair in pairs])).argmax(-1)
    assert (said == foil).float().mean() <= 0.1
