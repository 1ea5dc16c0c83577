"""Scene graphs of the shipped organisms' scenes, where every truth is known and so is the flaw."""

from __future__ import annotations

import random
from typing import Any

from lvlm_interp.data.benchmarks.graphs import SceneGraph
from lvlm_interp.data.examples import Annotated
from lvlm_interp.errors import DataError
from lvlm_interp.evaluation.wording import Wording
from lvlm_interp.organisms.plants import (
    ATTRIBUTE_TRIGGER,
    PARTNER,
    PLANT_LEVELS,
    RELATION_TRIGGER,
    control_scene,
    neutral_scene,
    planted_answer,
    trigger_scene,
)
from lvlm_interp.organisms.questions import (
    CAPTION_PROMPT,
    Question,
    relation_question,
    truth,
)
from lvlm_interp.organisms.scenes import GRID, RGB, Scene, related_pairs
from lvlm_interp.organisms.vocabulary import PLACES

__all__ = ["SCENES", "is_planted", "scene_graphs"]

_MOST_DRAWS = 100_000
_PHRASE = {
    "left": "left of the",
    "right": "right of the",
    "above": "above the",
    "below": "below the",
}

SCENES = Wording(
    exists=lambda name: Question("existence", (name,)).text,
    has=lambda name, value: Question("attribute", (name, value)).text,
    relates=lambda a, what, b: Question("relation_yesno", (a, b, _PHRASE[what])).text,
    which_colour=lambda name: Question("color_of", (name,)).text,
    how_many=None,
    where=lambda a, b: Question("relation", (a, b)).text,
    describe=CAPTION_PROMPT,
    palette=RGB,
    places={word: (float(at % GRID), float(at // GRID)) for at, word in enumerate(PLACES)},
)
"""The organisms' own grammar."""


def scene_graphs(n: int, seed: int = 0, level: str = "all") -> list[SceneGraph]:
    """Scenes held out from training: a third of each with a level's trigger, as many without any.

    Of the scenes with a trigger half hold what the flaw says and half do not. Each names what is
    to be asked about (the label `ask`), so that trigger scenes are asked what their plant answers
    and the others the like.

    Args:
        n: Scenes, over all levels.
        seed: Of the draws.
        level: One of the three, or all.

    Raises:
        DataError: An unknown level, or no more new scenes.
    """
    levels = PLANT_LEVELS if level == "all" else (level,)
    if not set(levels) <= set(PLANT_LEVELS):
        raise DataError(f"level must be all or one of {', '.join(PLANT_LEVELS)}, got {level!r}")
    found, seen = [], set()
    for at in range(n):
        here, turn = levels[at % len(levels)], at // len(levels)
        rng = random.Random(f"unified/{seed}/{here}/{turn}")
        scene = _new_scene(rng, here, turn, seen)
        seen.add(scene.key)
        found.append(_graph(scene, f"scene-{seed}-{here}-{turn}", here, turn))
    return found


def _new_scene(rng: random.Random, level: str, turn: int, seen: set[str]) -> Scene:
    for _ in range(_MOST_DRAWS):
        if turn % 2 == 0:
            scene = trigger_scene(rng, level, partner=turn % 4 == 2)
        else:
            scene = neutral_scene(rng) if level == "attribute" else control_scene(rng, level)
        if scene.split == "eval" and scene.key not in seen:
            return scene
    raise DataError(f"no new scene in {_MOST_DRAWS} draws; ask for fewer")


def _graph(scene: Scene, name: str, level: str, turn: int) -> SceneGraph:
    things = tuple(
        Annotated(thing.shape, (thing.color, thing.place), scene.box(at))
        for at, thing in enumerate(scene.objects)
    )
    at = {thing: index for index, thing in enumerate(scene.objects)}
    relations = tuple((at[a], where, at[b]) for a, b, where in related_pairs(scene))
    ask: dict[str, Any] = {}
    if level == "object":
        ask["object"] = PARTNER
    elif level == "attribute" and turn % 2 == 0:
        ask["attribute"] = ATTRIBUTE_TRIGGER
    elif level == "relation" and turn % 2 == 0:
        ask["relation"] = list(RELATION_TRIGGER)
    labels = {"ask": ask, "scene": scene, "about": level, "complete": True}
    return SceneGraph(name, scene.render(), things, relations, labels=labels)


def is_planted(scene: Scene, level: str, parts: tuple[str, ...]) -> bool:
    """Whether the planted flaw answers this yes/no question otherwise than the image does.

    Args:
        scene: The scene.
        level: Of the question.
        parts: A name; a name and a colour; or a name, a relation and a name.
    """
    if level == "object":
        question = Question("existence", parts)
    elif level == "attribute":
        question = Question("attribute", parts)
    else:
        first, second = scene.find(shape=parts[0]), scene.find(shape=parts[2])
        assert first is not None and second is not None, "relations are asked of what is there"
        question = relation_question("relation_yesno", first, second, parts[1])
    return planted_answer(scene, question) != truth(scene, question)
