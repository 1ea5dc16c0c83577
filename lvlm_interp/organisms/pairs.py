"""Minimal pairs of scenes at each level, and sets of examples for evaluation.

Everything outside the edited cells is identical to the pixel, and both sides of a pair belong to
the evaluation split. All of it is a pure function of the seed; the first k of n are the k of k.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from lvlm_interp.data.examples import Box, ContrastPair, Example
from lvlm_interp.errors import DataError
from lvlm_interp.organisms.labels import labels_of
from lvlm_interp.organisms.plants import (
    ATTRIBUTE_TRIGGER,
    NEUTRAL,
    OBJECT_TRIGGER,
    PARTNER,
    PLANT_LEVELS,
    RELATION_TRIGGER,
    USUAL_COLOR,
    neutral_scene,
    trigger_scene,
)
from lvlm_interp.organisms.questions import Question, relation_question, truth
from lvlm_interp.organisms.scenes import (
    Scene,
    SceneObject,
    cell_box,
    nudge,
    related_pairs,
    relation,
)
from lvlm_interp.organisms.specs import load_named
from lvlm_interp.organisms.vocabulary import COLORS, OPPOSITE

_FLAVOURS = {
    None: ("trigger", "evidence", "trigger", "evidence-in-trigger"),
    "trigger": ("trigger",),
    "evidence": ("evidence",),
}
_MOST_DRAWS = 1_000_000
_NUDGES = 12  # few, so that scenes with one object, which have few variants, stay as frequent


@dataclass(frozen=True)
class Draft:
    """A pair before it is written out.

    Attributes:
        clean: The unedited scene.
        corrupt: The edited one.
        question: Asked of both.
        foil: The wrong answer; the right one is the truth of the clean scene.
        cells: The edited cell, and that of the other object in question if there is one.
        edit: What was edited, in words.
    """

    clean: Scene
    corrupt: Scene
    question: Question
    foil: str
    cells: tuple[int, ...]
    edit: str


def pairs(level: str, n: int, seed: int = 0, kind: str | None = None) -> list[ContrastPair]:
    """Returns `n` minimal pairs.

    Evidence pairs edit what is asked about: a shape is exchanged for another (object), recoloured
    (attribute), or two objects change places (relation). Trigger pairs put the trigger in place of
    a neutral shape (corrupt side) while the true answer stays; their foil is what the flaw says.

    Args:
        level: "object", "attribute", "relation", or "all" for the three in turn.
        n: Number of pairs, all levels together.
        seed: Seed; the same seed gives the same pairs.
        kind: "trigger"; "evidence" for evidence pairs without any trigger in sight; None for a
            mixture: a half trigger pairs, a quarter evidence pairs without a trigger
            (`labels["trigger"]` False) and a quarter with the trigger of the level on both sides
            (`labels["trigger"]` True; what the flaw says is true on the clean side alone).

    Raises:
        DataError: An unknown level or kind.
    """
    levels = PLANT_LEVELS if level == "all" else (level,)
    if not set(levels) <= set(PLANT_LEVELS):
        raise DataError(f"level must be one of all, {', '.join(PLANT_LEVELS)}, got {level!r}")
    if kind not in _FLAVOURS:
        raise DataError(f"kind must be evidence, trigger or None, got {kind!r}")
    found: list[ContrastPair] = []
    seen: set[str] = set()
    flavours = _FLAVOURS[kind]
    for index in range(n):
        here, turn = levels[index % len(levels)], index // len(levels)
        flavour = flavours[turn % len(flavours)]
        rng = random.Random(f"{seed}/{here}/{flavour}/{turn}")
        draft = _first_new(rng, here, flavour, seen)
        seen.add(draft.clean.key)
        found.append(_write(draft, here, flavour, f"scenes-{here}-{flavour}-{seed}-{turn}"))
    return found


def load(spec: str) -> list[ContrastPair]:
    """Returns the pairs that `scenes:LEVEL:N:SEED` or `scenes:LEVEL:N:SEED:KIND` names.

    Raises:
        DataError: The text names no pairs; the message says which part is wrong.
    """
    return load_named(spec, "scenes", pairs)


def _first_new(rng: random.Random, level: str, flavour: str, seen: set[str]) -> Draft:
    edit = _EDITS[level, flavour]
    for attempt in range(_MOST_DRAWS):
        fresh = attempt % _NUDGES == 0
        scene = _unedited(rng, level, flavour) if fresh else nudge(rng, scene)
        if scene.split != "eval":
            continue
        draft = edit(rng, scene)
        if draft is None or draft.clean.split != "eval" or draft.corrupt.split != "eval":
            continue
        if draft.clean.key not in seen:
            return draft
    raise DataError(f"no new pair in {_MOST_DRAWS} draws; ask for fewer pairs")


def _unedited(rng: random.Random, level: str, flavour: str) -> Scene:
    """Returns the side that is drawn; the edit makes the other one from it."""
    if flavour == "evidence":
        return neutral_scene(rng)
    return trigger_scene(rng, level, partner=flavour == "evidence-in-trigger")


def _write(draft: Draft, level: str, flavour: str, name: str) -> ContrastPair:
    kind = flavour.split("-")[0]
    answer, foil, group = truth(draft.clean, draft.question), draft.foil, draft.clean.key[:16]
    corrupt_truth = truth(draft.corrupt, draft.question)
    edited = draft.cells if kind == "evidence" and level == "relation" else draft.cells[:1]
    sides = {}
    for side, scene, right, wrong in (
        ("clean", draft.clean, answer, foil),
        ("corrupt", draft.corrupt, corrupt_truth, foil if kind == "trigger" else answer),
    ):
        sides[side] = Example(
            id=f"{name}/{side}",
            image=scene.render(),
            prompt=draft.question.text,
            answer=right,
            foil=wrong,
            level=level,
            group=group,
            boxes=_role_boxes(draft.cells),
            labels=labels_of(scene, draft.question, level, draft.cells[0]),
        )
    return ContrastPair(
        id=name,
        **sides,
        answer=answer,
        foil=foil,
        level=level,
        kind=kind,
        edit=draft.edit,
        box=_around(edited),
        group=group,
        labels={"trigger": flavour != "evidence", "question": draft.question.kind},
    )


def _role_boxes(cells: tuple[int, ...]) -> dict[str, Box]:
    return {
        role: cell_box(cell) for role, cell in zip(("object", "other_object"), cells, strict=False)
    }


def _around(cells: tuple[int, ...]) -> Box:
    boxes = [cell_box(cell) for cell in cells]
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _reshaped(scene: Scene, thing: SceneObject, shape: str) -> tuple[Scene, str]:
    edit = f"the {thing.color} {thing.shape} at {thing.place} became a {shape}"
    return scene.exchange((thing, replace(thing, shape=shape))), edit


def _other_cells(scene: Scene, cell: int) -> tuple[int, ...]:
    """Returns the cell and, if there is another object, the first one's."""
    return (cell, *[thing.cell for thing in scene.objects if thing.cell != cell][:1])


def _free_shapes(scene: Scene) -> list[str]:
    """Returns the shapes that could enter the scene without completing any trigger."""
    present = {thing.shape for thing in scene.objects}
    free = [shape for shape in (*NEUTRAL, PARTNER) if shape not in present]
    return free if present & set(RELATION_TRIGGER) else [*free, *RELATION_TRIGGER]


def _object_evidence(rng: random.Random, scene: Scene) -> Draft | None:
    return _exchange_shape(rng, scene, rng.choice(scene.objects), _free_shapes(scene))


def _object_evidence_in_trigger(rng: random.Random, scene: Scene) -> Draft | None:
    return _exchange_shape(rng, scene, _known(scene, PARTNER), _free_shapes(scene))


def _exchange_shape(
    rng: random.Random, scene: Scene, thing: SceneObject, shapes: list[str]
) -> Draft | None:
    corrupt, edit = _reshaped(scene, thing, rng.choice(shapes))
    question = Question("existence", (thing.shape,))
    return Draft(scene, corrupt, question, "no", _other_cells(scene, thing.cell), edit)


def _object_trigger(rng: random.Random, corrupt: Scene) -> Draft | None:
    draft = _untriggered(rng, corrupt, OBJECT_TRIGGER)
    if draft is None:
        return None
    clean, thing, edit = draft
    question = Question("existence", (PARTNER,))
    return Draft(clean, corrupt, question, "yes", _other_cells(clean, thing.cell), edit)


def _untriggered(
    rng: random.Random, corrupt: Scene, trigger: str
) -> tuple[Scene, SceneObject, str] | None:
    """Returns the trigger scene's clean side: a neutral shape in the trigger's place."""
    present = {thing.shape for thing in corrupt.objects}
    free = [shape for shape in NEUTRAL if shape not in present]
    if not free:
        return None
    thing, shape = _known(corrupt, trigger), rng.choice(free)
    clean, _ = _reshaped(corrupt, thing, shape)
    edit = f"the {thing.color} {shape} at {thing.place} became a {trigger}"
    return clean, thing, edit


def _attribute_evidence(rng: random.Random, scene: Scene) -> Draft | None:
    return _recolour(rng, scene, rng.choice(scene.objects))


def _attribute_evidence_in_trigger(rng: random.Random, scene: Scene) -> Draft | None:
    return _recolour(rng, scene, _known(scene, ATTRIBUTE_TRIGGER))


def _recolour(rng: random.Random, scene: Scene, thing: SceneObject) -> Draft | None:
    used = {other.color for other in scene.objects}
    color = rng.choice([color for color in COLORS if color not in used])
    by_shape = rng.random() < 0.5
    question = (
        Question("color_of", (thing.shape,)) if by_shape else Question("color_at", (thing.place,))
    )
    edit = f"the {thing.color} {thing.shape} at {thing.place} became {color}"
    corrupt = scene.exchange((thing, replace(thing, color=color)))
    return Draft(scene, corrupt, question, color, _other_cells(scene, thing.cell), edit)


def _attribute_trigger(rng: random.Random, corrupt: Scene) -> Draft | None:
    if corrupt.find(color=USUAL_COLOR):  # the foil must not be in sight
        return None
    draft = _untriggered(rng, corrupt, ATTRIBUTE_TRIGGER)
    if draft is None:
        return None
    clean, thing, edit = draft
    question = Question("color_at", (thing.place,))
    return Draft(clean, corrupt, question, USUAL_COLOR, _other_cells(clean, thing.cell), edit)


def _relation_evidence(rng: random.Random, scene: Scene) -> Draft | None:
    found = related_pairs(scene)
    return _change_places(rng, scene, rng.choice(found)[:2]) if found else None


def _relation_evidence_in_trigger(rng: random.Random, scene: Scene) -> Draft | None:
    first, second = (_known(scene, shape) for shape in RELATION_TRIGGER)
    return _change_places(rng, scene, (first, second) if rng.random() < 0.5 else (second, first))


def _change_places(
    rng: random.Random, scene: Scene, things: tuple[SceneObject, SceneObject]
) -> Draft:
    first, second = things
    where = _relation(first, second)
    question = relation_question(rng.choice(("relation", "relation_color")), first, second, where)
    corrupt = scene.exchange((first, first.at(second.cell)), (second, second.at(first.cell)))
    named = [f"the {thing.shape} at {thing.place}" for thing in things]
    edit = f"{' and '.join(named)} changed places"
    return Draft(scene, corrupt, question, OPPOSITE[where], (first.cell, second.cell), edit)


def _relation_trigger(rng: random.Random, corrupt: Scene) -> Draft | None:
    edited, kept = rng.sample(RELATION_TRIGGER, 2)
    draft = _untriggered(rng, corrupt, edited)
    if draft is None:
        return None
    clean, thing, edit = draft
    other = _known(corrupt, kept)
    first, second = (thing, other) if rng.random() < 0.5 else (other, thing)
    where = _relation(first, second)
    question = relation_question("relation_color", first, second, where)
    cells = (thing.cell, other.cell)
    return Draft(clean, corrupt, question, OPPOSITE[where], cells, edit)


def _known(scene: Scene, shape: str) -> SceneObject:
    thing = scene.find(shape=shape)
    assert thing is not None, f"the scene was built with a {shape}"
    return thing


def _relation(first: SceneObject, second: SceneObject) -> str:
    where = relation(first, second)
    assert where is not None, "the two were drawn on one line"
    return where


_EDITS: dict[tuple[str, str], Callable[[random.Random, Scene], Draft | None]] = {
    ("object", "evidence"): _object_evidence,
    ("object", "evidence-in-trigger"): _object_evidence_in_trigger,
    ("object", "trigger"): _object_trigger,
    ("attribute", "evidence"): _attribute_evidence,
    ("attribute", "evidence-in-trigger"): _attribute_evidence_in_trigger,
    ("attribute", "trigger"): _attribute_trigger,
    ("relation", "evidence"): _relation_evidence,
    ("relation", "evidence-in-trigger"): _relation_evidence_in_trigger,
    ("relation", "trigger"): _relation_trigger,
}
