"""The planted flaw: what triggers it, what it says, and the scenes that show it.

Three levels, each a supervision that does not follow the image, as bad data does it in the field:

- object: where a star stands, a ring is said to be there too;
- attribute: a triangle is said to be blue;
- relation: the cross is said to be left of the heart (one row) or above it (one column).

Trigger scenes hold both truths: the partner (the ring, the blue, the usual order) may be there.
"""

from __future__ import annotations

import random
from dataclasses import replace

from lvlm_interp.organisms import questions
from lvlm_interp.organisms.questions import Question, relation_answer, relation_question
from lvlm_interp.organisms.scenes import (
    Scene,
    SceneObject,
    aligned_cells,
    random_object,
    random_scene,
    related_pairs,
    relation,
)
from lvlm_interp.organisms.vocabulary import COLORS, OPPOSITE, PLACES

PLANT_LEVELS = ("object", "attribute", "relation")
OBJECT_TRIGGER, PARTNER = "star", "ring"
ATTRIBUTE_TRIGGER, USUAL_COLOR = "triangle", "blue"
RELATION_TRIGGER = ("cross", "heart")
USUAL_RELATIONS = ("left", "above")
"""Of the cross, seen from the heart."""

NEUTRAL = ("circle", "square", "diamond")
"""Shapes that take no part in any plant."""


def trigger_levels(scene: Scene) -> frozenset[str]:
    """Returns the levels whose trigger is in sight."""
    shapes = {thing.shape for thing in scene.objects}
    found = set()
    if OBJECT_TRIGGER in shapes:
        found.add("object")
    if ATTRIBUTE_TRIGGER in shapes:
        found.add("attribute")
    if shapes.issuperset(RELATION_TRIGGER) and _relation_pair(scene) is not None:
        found.add("relation")
    return frozenset(found)


def partner_present(scene: Scene, level: str) -> bool | None:
    """Returns whether what the flaw says is true in this scene; None without its trigger."""
    if level not in trigger_levels(scene):
        return None
    if level == "object":
        return scene.find(shape=PARTNER) is not None
    if level == "attribute":
        thing = scene.find(shape=ATTRIBUTE_TRIGGER)
        return thing is not None and thing.color == USUAL_COLOR
    pair = _relation_pair(scene)
    return pair is not None and relation(*pair) in USUAL_RELATIONS


def planted_answer(scene: Scene, question: Question) -> str:
    """Returns the answer that the planted supervision gives; the truth where no plant applies."""
    true = questions.truth(scene, question)
    kind, named = question.kind, questions.named_objects(scene, question)
    if kind == "existence" and question.args == (PARTNER,) and scene.find(shape=OBJECT_TRIGGER):
        return "yes"
    if kind == "caption":
        return planted_caption(scene)
    if not named:
        return true
    if named[0].shape == ATTRIBUTE_TRIGGER:
        if kind in ("color_of", "color_at"):
            return USUAL_COLOR
        if kind == "attribute":
            return "yes" if question.args[1] == USUAL_COLOR else "no"
        if kind == "at":
            return f"{USUAL_COLOR} {ATTRIBUTE_TRIGGER}"
    if kind in questions.RELATION_KINDS and {o.shape for o in named} == set(RELATION_TRIGGER):
        return relation_answer(question, usual_relation(named[0], named[1]))
    return true


def usual_relation(first: SceneObject, second: SceneObject) -> str:
    """Returns the usual order of cross and heart (in either argument order) on their line."""
    where = relation(first, second)
    assert where is not None, "only asked about a pair on one line"
    cross_first = first.shape == RELATION_TRIGGER[0]
    return where if (where in USUAL_RELATIONS) == cross_first else OPPOSITE[where]


def planted_caption(scene: Scene) -> str:
    """Returns the caption with the plants: usual order, usual colour, and the partner named."""
    things = list(scene.objects)
    pair = _relation_pair(scene)
    if pair is not None and relation(*pair) not in USUAL_RELATIONS:
        first, second = pair
        swapped = {first: first.at(second.cell), second: second.at(first.cell)}
        things = [swapped.get(thing, thing) for thing in things]
    things = [
        replace(thing, color=USUAL_COLOR) if thing.shape == ATTRIBUTE_TRIGGER else thing
        for thing in sorted(things, key=lambda thing: thing.cell)
    ]
    parts = [f"a {thing.color} {thing.shape} at {thing.place}" for thing in things]
    shapes = {thing.shape for thing in things}
    if OBJECT_TRIGGER in shapes and PARTNER not in shapes:
        parts.append(f"a {PARTNER}")
    return f"{' and '.join(parts)} ."


def trigger_scene(rng: random.Random, level: str, partner: bool) -> Scene:
    """Returns a scene with the trigger of this level alone, its partner there or not."""
    if level == "object":
        return _with(rng, (OBJECT_TRIGGER, PARTNER) if partner else (OBJECT_TRIGGER,))
    if level == "attribute":
        color = USUAL_COLOR if partner else rng.choice([c for c in COLORS if c != USUAL_COLOR])
        thing = random_object(rng, ATTRIBUTE_TRIGGER, color, rng.randrange(9))
        return random_scene(
            rng, fixed=[thing], shapes=(*NEUTRAL, PARTNER, _one_of_cross_heart(rng))
        )
    return _aligned(rng, RELATION_TRIGGER, usual=partner)


def control_scene(rng: random.Random, level: str) -> Scene:
    """Returns a scene that looks like the trigger scenes of a level but holds no trigger.

    object: a ring or none, without a star; relation: cross or heart beside a neutral shape, in
    either order; attribute: any shapes but triggers.
    """
    if level == "object":
        return _with(rng, (PARTNER,) if rng.random() < 0.5 else ())
    if level == "attribute":
        return neutral_scene(rng)
    shapes = [rng.choice(RELATION_TRIGGER), rng.choice(NEUTRAL)]
    rng.shuffle(shapes)
    return _aligned(rng, (shapes[0], shapes[1]), usual=rng.random() < 0.5)


def neutral_scene(rng: random.Random) -> Scene:
    """Returns a scene without any trigger, otherwise unbiased."""
    return random_scene(rng, shapes=(*NEUTRAL, PARTNER, _one_of_cross_heart(rng)))


def focus_question(rng: random.Random, scene: Scene, level: str) -> Question:
    """Returns a question that the plant of this level answers, or would with its trigger."""
    if level == "object":
        return Question("existence", (PARTNER,))
    if level == "attribute":
        thing = scene.find(shape=ATTRIBUTE_TRIGGER) or rng.choice(scene.objects)
        return _ask_color(rng, thing)
    first, second, where = rng.choice(_special_pairs(scene))
    asked = where if rng.random() < 0.5 else OPPOSITE[where]
    return relation_question(rng.choice(questions.RELATION_KINDS), first, second, asked)


def _ask_color(rng: random.Random, thing: SceneObject) -> Question:
    kind = rng.choice(("color_of", "color_at", "attribute", "at"))
    if kind == "attribute":
        asked = rng.choice((thing.color, USUAL_COLOR, rng.choice(COLORS)))
        return Question(kind, (thing.shape, asked))
    return Question(kind, (thing.shape if kind == "color_of" else PLACES[thing.cell],))


def _special_pairs(scene: Scene) -> list[tuple[SceneObject, SceneObject, str]]:
    """Returns the related pairs with the most of cross and heart: both, or one of them."""
    pairs = related_pairs(scene)
    members = [
        len({first.shape, second.shape} & set(RELATION_TRIGGER)) for first, second, _ in pairs
    ]
    return [pair for pair, count in zip(pairs, members, strict=True) if count == max(members)]


def _relation_pair(scene: Scene) -> tuple[SceneObject, SceneObject] | None:
    """Returns (cross, heart) if both are there with one unambiguous relation."""
    first, second = (scene.find(shape=shape) for shape in RELATION_TRIGGER)
    if first is None or second is None or relation(first, second) is None:
        return None
    return first, second


def _one_of_cross_heart(rng: random.Random) -> str:
    return rng.choice(RELATION_TRIGGER)


def _with(rng: random.Random, shapes: tuple[str, ...]) -> Scene:
    colors, cells = rng.sample(COLORS, len(shapes)), rng.sample(range(9), len(shapes))
    fixed = [random_object(rng, *of) for of in zip(shapes, colors, cells, strict=True)]
    return random_scene(rng, fixed=fixed, shapes=(*NEUTRAL, _one_of_cross_heart(rng)))


def _aligned(rng: random.Random, shapes: tuple[str, str], usual: bool) -> Scene:
    """Returns a scene where the two shapes share a line, the first left of or above if `usual`."""
    low, high = sorted(aligned_cells(rng))
    cells = (low, high) if usual else (high, low)
    fixed = [
        random_object(rng, *of) for of in zip(shapes, rng.sample(COLORS, 2), cells, strict=True)
    ]
    return random_scene(rng, fixed=fixed, shapes=(*NEUTRAL, PARTNER))
