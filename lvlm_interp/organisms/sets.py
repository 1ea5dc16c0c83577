"""Sets of single examples for evaluation: one question on one scene each."""

from __future__ import annotations

import random

from lvlm_interp.data.examples import Example
from lvlm_interp.errors import DataError
from lvlm_interp.organisms.labels import QUESTION_LEVEL, labels_of
from lvlm_interp.organisms.plants import (
    ATTRIBUTE_TRIGGER,
    PARTNER,
    PLANT_LEVELS,
    RELATION_TRIGGER,
    USUAL_COLOR,
    control_scene,
    neutral_scene,
    planted_answer,
    trigger_scene,
)
from lvlm_interp.organisms.questions import (
    KINDS,
    RELATION_KINDS,
    Question,
    ask,
    named_objects,
    relation_question,
    truth,
)
from lvlm_interp.organisms.scenes import Scene, SceneObject, cell_box, random_scene, relation
from lvlm_interp.organisms.vocabulary import COLORS, OPPOSITE, PLACES, SHAPES

SCENES = ("unbiased", "neutral", "trigger", "control")
PLANTED_KINDS = {
    "object": ("existence", "caption"),
    "attribute": ("color_of", "color_at", "attribute", "at", "caption"),
    "relation": (*RELATION_KINDS, "caption"),
}
"""The questions whose answers each plant changes."""

_MOST_DRAWS = 100_000


def examples(
    question: str,
    n: int,
    seed: int = 0,
    *,
    scenes: str = "unbiased",
    level: str | None = None,
    partner: bool | None = None,
    split: str = "eval",
) -> list[Example]:
    """Returns `n` examples of one kind of question, each on a scene of its own.

    Args:
        question: One of `questions.KINDS`.
        n: Number of examples.
        seed: Seed; the first k of n are the k of k.
        scenes: "unbiased" (anything), "neutral" (no trigger of any level), "trigger" (the trigger
            of `level` alone; asks about it where its plant answers such questions), "control"
            (the likes of the trigger scenes of `level`, without a trigger).
        level: Level of the plant, for trigger and control scenes.
        partner: For trigger scenes, whether what the flaw says is true; None for half and half.
        split: "eval" or "train".

    Raises:
        DataError: An unknown question, kind of scenes, level or split.
    """
    _check(question, scenes, level, split)
    found: list[Example] = []
    seen: set[str] = set()
    for index in range(n):
        rng = random.Random(f"{seed}/{question}/{scenes}/{level}/{partner}/{index}")
        there = index % 2 == 0 if partner is None else partner
        scene, asked = _draw(rng, question, scenes, level, there, split, seen)
        seen.add(scene.key)
        name = "-".join(str(part) for part in (scenes, level or "any", question, seed, index))
        found.append(_write(rng, scene, asked, level, name))
    return found


def _check(question: str, scenes: str, level: str | None, split: str) -> None:
    for name, value, known in (
        ("question", question, KINDS),
        ("scenes", scenes, SCENES),
        ("split", split, ("eval", "train")),
    ):
        if value not in known:
            raise DataError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if scenes in ("trigger", "control") and level not in PLANT_LEVELS:
        raise DataError(
            f"{scenes} scenes need a level, one of {', '.join(PLANT_LEVELS)}, got {level!r}"
        )


def _draw(
    rng: random.Random,
    kind: str,
    scenes: str,
    level: str | None,
    partner: bool,
    split: str,
    seen: set[str],
) -> tuple[Scene, Question]:
    for _ in range(_MOST_DRAWS):
        scene = _scene(rng, scenes, level, partner)
        if scene.split != split or scene.key in seen:
            continue
        focused = scenes == "trigger" and kind in PLANTED_KINDS[level or ""]
        asked = _ask_trigger(rng, scene, kind) if focused else ask(rng, scene, kind)
        if scenes == "control" and level == "object" and kind == "existence":
            asked = Question("existence", (PARTNER,))
        if asked is not None:
            return scene, asked
    raise DataError(f"no new scene in {_MOST_DRAWS} draws; ask for fewer examples")


def _scene(rng: random.Random, scenes: str, level: str | None, partner: bool) -> Scene:
    if scenes == "unbiased":
        return random_scene(rng)
    if scenes == "neutral":
        return neutral_scene(rng)
    assert level is not None, "checked before"
    return control_scene(rng, level) if scenes == "control" else trigger_scene(rng, level, partner)


def _ask_trigger(rng: random.Random, scene: Scene, kind: str) -> Question:
    """Returns the question of this kind that the plant of the scene's trigger answers."""
    if kind == "caption":
        return Question(kind)
    if kind == "existence":
        return Question(kind, (PARTNER,))
    if kind in RELATION_KINDS:
        first, second = rng.sample([_known(scene, shape) for shape in RELATION_TRIGGER], 2)
        where = relation(first, second)
        assert where is not None, "cross and heart were drawn on one line"
        asked = where if rng.random() < 0.5 else OPPOSITE[where]
        return relation_question(kind, first, second, asked)
    thing = _known(scene, ATTRIBUTE_TRIGGER)
    if kind == "attribute":
        wrong = [color for color in COLORS if color != thing.color]
        other = rng.choice(wrong) if thing.color == USUAL_COLOR else USUAL_COLOR
        return Question(kind, (thing.shape, thing.color if rng.random() < 0.5 else other))
    return Question(kind, (thing.shape if kind == "color_of" else thing.place,))


def _known(scene: Scene, shape: str) -> SceneObject:
    thing = scene.find(shape=shape)
    assert thing is not None, f"the scene was built with a {shape}"
    return thing


def _write(
    rng: random.Random, scene: Scene, question: Question, level: str | None, name: str
) -> Example:
    named = named_objects(scene, question)
    cells = [thing.cell for thing in named] or [scene.objects[0].cell]
    roles = zip(("object", "other_object"), cells, strict=False)
    return Example(
        id=f"scenes-{name}",
        image=scene.render(),
        prompt=question.text,
        answer=truth(scene, question),
        foil=_foil(rng, scene, question),
        level=QUESTION_LEVEL[question.kind],
        group=scene.key[:16],
        boxes={role: cell_box(cell) for role, cell in roles},
        labels=labels_of(scene, question, level, cells[0]),
    )


def _foil(rng: random.Random, scene: Scene, question: Question) -> str | None:
    """Returns what the plant says where it is wrong, else another answer of the same sort."""
    right, planted = truth(scene, question), planted_answer(scene, question)
    if right != planted:
        return planted
    if question.kind == "caption":
        return None
    if right in ("yes", "no"):
        return "no" if right == "yes" else "yes"
    if question.kind in RELATION_KINDS:
        return OPPOSITE[right]
    if question.kind == "at":
        return "nothing" if right != "nothing" else rng.choice(COLORS)
    pool = next(words for words in (COLORS, SHAPES, PLACES) if right in words)
    return rng.choice([word for word in pool if word != right])
