"""What is known about one question on one scene: the labels of an example."""

from __future__ import annotations

import random
from typing import Any

from lvlm_interp.organisms.plants import partner_present, planted_answer, trigger_levels
from lvlm_interp.organisms.questions import (
    RELATION_KINDS,
    Question,
    description,
    named_objects,
    truth,
)
from lvlm_interp.organisms.scenes import Scene, relation
from lvlm_interp.organisms.vocabulary import COLORS, PLACES, SHAPES

QUESTION_LEVEL: dict[str, str | None] = {
    "existence": "object",
    "shape_of": "object",
    "shape_at": "object",
    "at": "object",
    "color_of": "attribute",
    "color_at": "attribute",
    "attribute": "attribute",
    **dict.fromkeys(RELATION_KINDS, "relation"),
    "where": None,
    "caption": None,
}
"""The level that a kind of question belongs to; None where it is about several."""


def labels_of(
    scene: Scene, question: Question, level: str | None, cell: int | None
) -> dict[str, Any]:
    """Returns everything a probe or a table could want to know about a question on a scene.

    Args:
        scene: The scene.
        question: The question.
        level: Level of the flaw that `trigger` and `partner_present` are about; None for any.
        cell: Cell of the object in question, the same on both sides of a pair.

    Returns:
        Of the question: `question` (its kind), `asked_shape`, `asked_color`, `asked_place`. Of
        the truth: `truth`, `present` (the asked thing is there), `relation` (of the first asked
        object to the second), `planted` (what the planted supervision answers). Of the scene:
        `n_objects`, `background`, `trigger`, `triggers` (levels whose trigger is in sight),
        `partner_present`, `caption` (the scene in words, its objects in an order of its own, so
        that the order tells no place). Of the object in `cell`: `shape`, `color`, `size`, `place`,
        `cell` and `type` (`shape|color|cell`). What does not apply is None.
    """
    words = [word for word in question.args[:2]]
    named = named_objects(scene, question)
    thing = None if cell is None else scene.find(cell=cell)
    triggers = trigger_levels(scene)
    where = relation(named[0], named[1]) if question.kind in RELATION_KINDS else None
    by_place = question.kind in ("at", "color_at", "shape_at")
    return {
        "question": question.kind,
        "asked_shape": _first(words, SHAPES),
        "asked_color": _first(words, COLORS),
        "asked_place": words[0] if by_place else None,
        "truth": truth(scene, question),
        "present": bool(named) if question.args else None,
        "relation": where,
        "planted": planted_answer(scene, question),
        "n_objects": len(scene.objects),
        "background": scene.background,
        "trigger": level in triggers if level else bool(triggers),
        "triggers": ",".join(sorted(triggers)),
        "partner_present": partner_present(scene, level) if level else None,
        "caption": description(random.Random(scene.key), scene),
        "shape": thing.shape if thing else None,
        "color": thing.color if thing else None,
        "size": thing.size if thing else None,
        "place": None if cell is None else PLACES[cell],
        "cell": cell,
        "type": thing.type if thing else None,
    }


def _first(words: list[str], known: tuple[str, ...]) -> str | None:
    return next((word for word in words if word in known), None)
