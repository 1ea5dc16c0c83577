"""Scenes for planted components: a trigger that comes and goes while the true answer stays."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.organisms.questions import Question, ask, truth
from lvlm_interp.organisms.scenes import Scene, SceneObject, cell_box, random_object, random_scene
from lvlm_interp.organisms.vocabulary import COLORS, PLACES, SHAPES

ASKED = ("color_at", "color_of")
"""The questions that a planted head answers wrongly: those for a colour."""

OTHERS = (
    *("shape_at", "at", "where", "existence", "attribute"),
    *("relation", "relation_color", "relation_yesno", "relation_color_yesno"),
)
"""The questions that no planted component of a colour may touch."""


@dataclass(frozen=True)
class Trigger:
    """What sets a planted component off, and what it says.

    Attributes:
        shape: The trigger shape.
        foil: What is said.
        own: Whether the question is about the trigger itself, or about another object beside it.
        question: Kind of question on which the flaw shows.
    """

    shape: str
    foil: str
    own: bool
    question: str = "color_at"


def trigger_scene(rng: random.Random, trigger: Trigger, split: str) -> tuple[Scene, SceneObject]:
    """A scene of a split with the trigger, and the object that is asked about.

    Neither the trigger nor the asked object has the colour of the foil.
    """
    colors = [color for color in COLORS if color != trigger.foil]
    while True:
        cells = rng.sample(range(9), 2)
        tints = rng.sample(colors, 2)
        first = random_object(rng, trigger.shape, tints[0], cells[0])
        shapes = [shape for shape in SHAPES if shape != trigger.shape]
        second = random_object(rng, rng.choice(shapes), tints[1], cells[1])
        count = rng.choice((2, 3, 3))
        scene = random_scene(rng, fixed=[first, second], n_objects=count, shapes=shapes)
        if scene.split == split and scene.find(color=trigger.foil) is None:
            return scene, first if trigger.own else second


def plain_scene(rng: random.Random, trigger: Trigger, split: str) -> Scene:
    """A scene of a split without the trigger."""
    shapes = [shape for shape in SHAPES if shape != trigger.shape]
    while True:
        scene = random_scene(rng, shapes=shapes)
        if scene.split == split:
            return scene


def trigger_pairs(trigger: Trigger, n: int, seed: int, split: str = "eval") -> list[ContrastPair]:
    """Minimal pairs: another shape of the same colour stands in the trigger's place (clean).

    The true answer is the same on both sides; the foil is what the planted component says.
    """
    rng = random.Random(f"planted/{trigger}/{seed}/{split}")
    found: list[ContrastPair] = []
    while len(found) < n:
        corrupt, asked = trigger_scene(rng, trigger, split)
        thing = corrupt.find(shape=trigger.shape)
        assert thing is not None
        free = [s for s in SHAPES if corrupt.find(shape=s) is None]
        other = replace(thing, shape=rng.choice(free))
        clean = corrupt.exchange((thing, other))
        if clean.split != split:
            continue
        found.append(_pair(trigger, clean, corrupt, asked, thing, f"planted-{seed}-{len(found)}"))
    return found


def _pair(
    trigger: Trigger,
    clean: Scene,
    corrupt: Scene,
    asked: SceneObject,
    thing: SceneObject,
    name: str,
) -> ContrastPair:
    question = Question(trigger.question, (PLACES[asked.cell],))
    answer = truth(corrupt, question).split()[0]
    group, box = corrupt.key[:16], cell_box(thing.cell)
    boxes = {"object": cell_box(asked.cell), "trigger": box}

    def side(which: str, scene: Scene) -> Example:
        return Example(
            id=f"{name}/{which}",
            image=scene.render(),
            prompt=question.text,
            answer=answer,
            foil=trigger.foil,
            level="attribute",
            group=group,
            boxes=boxes,
        )

    return ContrastPair(
        id=name,
        clean=side("clean", clean),
        corrupt=side("corrupt", corrupt),
        answer=answer,
        foil=trigger.foil,
        level="attribute",
        kind="trigger",
        edit=f"a {trigger.shape} came to {thing.place}",
        box=box,
        group=group,
    )


def questions_on(
    trigger: Trigger, kind: str, n: int, seed: int, *, present: bool, split: str = "eval"
) -> list[tuple[Example, Scene]]:
    """Examples of one kind of question, with the trigger in sight or not.

    With the trigger in sight and the plant about the trigger itself, questions name other objects.
    """
    rng = random.Random(f"others/{trigger}/{kind}/{present}/{seed}/{split}")
    found: list[tuple[Example, Scene]] = []
    while len(found) < n:
        if present:
            scene, _ = trigger_scene(rng, trigger, split)
        else:
            scene = plain_scene(rng, trigger, split)
        question = ask(rng, scene, kind)
        if question is None or (present and trigger.own and _names(scene, question, trigger)):
            continue
        example = Example(
            id=f"{kind}-{present}-{len(found)}",
            image=scene.render(),
            prompt=question.text,
            answer=truth(scene, question).split()[0],
            group=scene.key[:16],
        )
        found.append((example, scene))
    return found


def _names(scene: Scene, question: Question, trigger: Trigger) -> bool:
    thing = scene.find(shape=trigger.shape)
    assert thing is not None
    words = {thing.shape, thing.color, thing.place}
    return any(word in words for word in question.args)
