"""Trigger pairs of a plant: the trigger comes and goes, the true answer stays."""

from __future__ import annotations

import random
from dataclasses import replace

from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.organisms.planted.trigger import Trigger
from lvlm_interp.organisms.questions import Question
from lvlm_interp.organisms.scenes import Scene, SceneObject, cell_box, random_object, random_scene
from lvlm_interp.organisms.vocabulary import COLORS, SHAPES


def trigger_pairs(
    trigger: Trigger, n: int, seed: int = 0, split: str = "eval"
) -> list[ContrastPair]:
    """Minimal pairs of a split: another shape stands in the trigger's place on the clean side.

    The partner is there or not as the flaw needs it, on both sides, and is what is asked for;
    without a certain partner a shape is asked for that is on neither side.
    """
    rng = random.Random(f"planted/{trigger}/{seed}/{split}")
    found: list[ContrastPair] = []
    seen: set[str] = set()
    while len(found) < n:
        corrupt, thing = _corrupt(rng, trigger)
        used = {other.shape for other in corrupt.objects} | {trigger.partner}
        shape, absent = rng.sample([each for each in SHAPES if each not in used], 2)
        clean = corrupt.exchange((thing, replace(thing, shape=shape)))
        if clean.split == corrupt.split == split and corrupt.key not in seen:
            seen.add(corrupt.key)
            asked = trigger.partner or absent
            name = f"planted-{trigger.shape}-{trigger.partner or 'any'}-{seed}-{len(found)}"
            found.append(_pair(trigger, asked, clean, corrupt, thing, name))
    return found


def _corrupt(rng: random.Random, trigger: Trigger) -> tuple[Scene, SceneObject]:
    """A scene in which the flaw shows, and the trigger in it."""
    wanted = [trigger.shape, trigger.partner] if trigger.answer == "yes" else [trigger.shape]
    colors, cells = rng.sample(COLORS, len(wanted)), rng.sample(range(9), len(wanted))
    fixed = [random_object(rng, *of) for of in zip(wanted, colors, cells, strict=True)]
    free = [shape for shape in SHAPES if shape not in (trigger.shape, trigger.partner)]
    return random_scene(rng, fixed=fixed, shapes=free, n_objects=rng.choice((2, 3, 3))), fixed[0]


def _pair(
    trigger: Trigger, asked: str, clean: Scene, corrupt: Scene, thing: SceneObject, name: str
) -> ContrastPair:
    question = Question("existence", (asked,))
    group, box = corrupt.key[:16], cell_box(thing.cell)

    def side(which: str, scene: Scene) -> Example:
        return Example(
            id=f"{name}/{which}",
            image=scene.render(),
            prompt=question.text,
            answer=trigger.answer,
            foil=trigger.foil,
            level="object",
            group=group,
            boxes={"object": box},
        )

    return ContrastPair(
        id=name,
        clean=side("clean", clean),
        corrupt=side("corrupt", corrupt),
        answer=trigger.answer,
        foil=trigger.foil,
        level="object",
        kind="trigger",
        edit=f"a {trigger.shape} came to {thing.place}",
        box=box,
        group=group,
    )
