"""The question grammar: what can be asked about a scene, and the true answer.

The first token of every answer decides it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from lvlm_interp.organisms.scenes import Scene, SceneObject, related_pairs, relation
from lvlm_interp.organisms.vocabulary import COLORS, OPPOSITE, PLACES, RELATIONS, SHAPES

CAPTION_PROMPT = "describe the image ."


@dataclass(frozen=True)
class Question:
    """A question, by its kind and what it asks about.

    Attributes:
        kind: One of `KINDS`.
        args: The words that fill the template of that kind.
    """

    kind: str
    args: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The question in words, as it stands in the prompt."""
        return _TEMPLATES[self.kind].format(*self.args)


_TEMPLATES = {
    "existence": "is there a {0} ?",
    "color_of": "what color is the {0} ?",
    "color_at": "what color is the shape at {0} ?",
    "shape_of": "what shape is the {0} shape ?",
    "shape_at": "what shape is at {0} ?",
    "attribute": "is the {0} {1} ?",
    "where": "where is the {0} ?",
    "at": "what is at {0} ?",
    "relation": "where is the {0} of the {1} ?",
    "relation_color": "where is the {0} shape of the {1} shape ?",
    "relation_yesno": "is the {0} {2} {1} ?",
    "relation_color_yesno": "is the {0} shape {2} {1} shape ?",
    "caption": CAPTION_PROMPT,
}
KINDS: tuple[str, ...] = tuple(_TEMPLATES)
_PHRASE = {
    "left": "left of the",
    "right": "right of the",
    "above": "above the",
    "below": "below the",
}
RELATION_KINDS = ("relation", "relation_color", "relation_yesno", "relation_color_yesno")


def relation_question(kind: str, first: SceneObject, second: SceneObject, asked: str) -> Question:
    """Returns the question of a relation kind about two objects.

    Args:
        kind: One of `RELATION_KINDS`.
        first: The object whose place is asked for.
        second: The object it is compared with.
        asked: The relation that a yes/no question proposes; open questions ignore it.
    """
    name = "color" if "color" in kind else "shape"
    args = (getattr(first, name), getattr(second, name))
    return Question(kind, (*args, _PHRASE[asked]) if kind.endswith("yesno") else args)


def named_objects(scene: Scene, question: Question) -> list[SceneObject]:
    """Returns the objects that the question names, by shape, colour or place, in its order."""
    found: list[SceneObject | None] = []
    for word in question.args[:2]:
        if question.kind.endswith("_at") or question.kind == "at":
            found.append(scene.find(cell=PLACES.index(word)))
        elif word in SHAPES:
            found.append(scene.find(shape=word))
        elif question.kind != "attribute":
            found.append(scene.find(color=word))
    return [thing for thing in found if thing is not None]


def truth(scene: Scene, question: Question) -> str:
    """Returns the true answer, in words."""
    kind, named = question.kind, named_objects(scene, question)
    if kind == "caption":
        return caption(scene)
    if kind == "existence":
        return "yes" if named else "no"
    if kind == "at":
        return f"{named[0].color} {named[0].shape}" if named else "nothing"
    if kind in RELATION_KINDS:
        where = relation(named[0], named[1])
        if where is None:
            raise ValueError(f"{question.text!r} has no unambiguous answer in this scene")
        return relation_answer(question, where)
    thing = named[0]
    if kind == "attribute":
        return "yes" if thing.color == question.args[1] else "no"
    if kind == "where":
        return thing.place
    return thing.color if kind.startswith("color") else thing.shape


def relation_answer(question: Question, where: str) -> str:
    """Returns what a relation question is answered with if the relation is `where`."""
    if question.kind.endswith("yesno"):
        return "yes" if question.args[2] == _PHRASE[where] else "no"
    return where


def caption(scene: Scene) -> str:
    """Returns the description of a scene, objects in reading order."""
    parts = [f"a {thing.color} {thing.shape} at {thing.place}" for thing in scene.objects]
    return f"{' and '.join(parts)} ."


def description(rng: random.Random, scene: Scene) -> str:
    """Returns the scene in words, its objects in any order."""
    things = rng.sample(scene.objects, len(scene.objects))
    named = [f"a {thing.color} {thing.shape} at {thing.place}" for thing in things]
    return f"{' and '.join(named)} ."


def ask(rng: random.Random, scene: Scene, kind: str) -> Question | None:
    """Returns a random question of one kind, balanced, or None if the scene has none.

    Yes and no are equally likely given what is asked about; shapes, colours and places are
    uniform as far as the scene's are.
    """
    return _ASKERS[kind](rng, scene)


def _ask_existence(rng: random.Random, scene: Scene) -> Question:
    present = [thing.shape for thing in scene.objects]
    absent = [shape for shape in SHAPES if shape not in present]
    return Question("existence", (rng.choice(present if rng.random() < 0.5 else absent),))


def _ask_attribute(rng: random.Random, scene: Scene) -> Question:
    thing = rng.choice(scene.objects)
    if rng.random() < 0.5:
        return Question("attribute", (thing.shape, thing.color))
    # Half of the wrong colours are another object's, so that seeing the colour is not enough.
    elsewhere = [other.color for other in scene.objects if other is not thing]
    wrong = [color for color in COLORS if color != thing.color]
    pool = elsewhere if elsewhere and rng.random() < 0.5 else wrong
    return Question("attribute", (thing.shape, rng.choice(pool)))


def _ask_at(rng: random.Random, scene: Scene) -> Question:
    if rng.random() < 0.6:
        return Question("at", (rng.choice(scene.objects).place,))
    empty = set(PLACES) - {thing.place for thing in scene.objects}
    return Question("at", (rng.choice(sorted(empty)),))


def _ask_named(kind: str, what: str) -> Callable[[random.Random, Scene], Question]:
    return lambda rng, scene: Question(kind, (getattr(rng.choice(scene.objects), what),))


def _ask_relation(kind: str) -> Callable[[random.Random, Scene], Question | None]:
    def asker(rng: random.Random, scene: Scene) -> Question | None:
        pairs = related_pairs(scene)
        if not pairs:
            return None
        first, second, where = rng.choice(pairs)
        return relation_question(kind, first, second, _propose(rng, where))

    return asker


def _propose(rng: random.Random, where: str) -> str:
    """Returns the true relation half of the time, else mostly its opposite."""
    if rng.random() < 0.5:
        return where
    if rng.random() < 0.7:
        return OPPOSITE[where]
    return rng.choice([other for other in RELATIONS if other not in (where, OPPOSITE[where])])


_ASKERS: dict[str, Callable[[random.Random, Scene], Question | None]] = {
    "existence": _ask_existence,
    "color_of": _ask_named("color_of", "shape"),
    "color_at": _ask_named("color_at", "place"),
    "shape_of": _ask_named("shape_of", "color"),
    "shape_at": _ask_named("shape_at", "place"),
    "attribute": _ask_attribute,
    "where": _ask_named("where", "shape"),
    "at": _ask_at,
    **{kind: _ask_relation(kind) for kind in RELATION_KINDS},
    "caption": lambda rng, scene: Question("caption"),
}
