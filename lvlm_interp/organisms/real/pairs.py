"""Minimal pairs of composed pictures: `real:LEVEL:N:SEED` and `real:LEVEL:N:SEED:KIND`.

An evidence pair edits what is asked about: a thing is exchanged for another (object), dyed anew
(attribute), or two things change places (relation). A trigger pair puts the trigger of the plants
in the place of a like thing while the truth stays; there is none at the relation level, where
nothing was planted. Both sides are the same to the pixel outside of what was edited.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lvlm_interp.data.examples import Box, ContrastPair, Example
from lvlm_interp.errors import DataError
from lvlm_interp.organisms.real.art import TINTS
from lvlm_interp.organisms.real.kinds import BY_NAME, KINDS, styles_of
from lvlm_interp.organisms.real.pictures import (
    OPPOSITE,
    SIDE,
    Picture,
    Thing,
    overlap,
    random_picture,
    relation,
)
from lvlm_interp.organisms.real.plants import (
    ATTRIBUTE_TRIGGER,
    OBJECT_TRIGGER,
    PARTNER,
    USUAL_COLOR,
)
from lvlm_interp.organisms.real.questions import Question, truth
from lvlm_interp.organisms.specs import load_named

LEVELS = ("object", "attribute", "relation")
_MOST_DRAWS = 100_000
_TRIGGERS = {OBJECT_TRIGGER, PARTNER, ATTRIBUTE_TRIGGER}


@dataclass(frozen=True)
class Draft:
    """A pair before it is written out.

    Attributes:
        clean, corrupt: The pictures.
        question: Asked of both.
        foil: The wrong answer; the right one is the truth of the clean picture.
        edited: Index of the thing that was edited, and of the other thing in question.
        edit: What was edited, in words.
    """

    clean: Picture
    corrupt: Picture
    question: Question
    foil: str
    edited: tuple[int, ...]
    edit: str


def load(spec: str) -> list[ContrastPair]:
    """The pairs that `real:LEVEL:N:SEED` or `real:LEVEL:N:SEED:KIND` names.

    Raises:
        DataError: The text names no pairs; the message says which part is wrong.
    """
    return load_named(spec, "real", pairs)


def pairs(level: str, n: int, seed: int = 0, kind: str | None = None) -> list[ContrastPair]:
    """Returns `n` minimal pairs, a pure function of the seed.

    Args:
        level: "object", "attribute", "relation", or "all" for the three in turn.
        n: Number of pairs, all levels together.
        seed: Seed.
        kind: "evidence", "trigger" (not at the relation level), or None for both in turn.

    Raises:
        DataError: An unknown level or kind, or trigger pairs where nothing was planted.
    """
    levels = LEVELS if level == "all" else (level,)
    if not set(levels) <= set(LEVELS):
        raise DataError(f"level must be one of all, {', '.join(LEVELS)}, got {level!r}")
    if kind not in (None, "evidence", "trigger"):
        raise DataError(f"kind must be evidence, trigger or None, got {kind!r}")
    if kind == "trigger" and level == "relation":
        raise DataError("nothing was planted at the relation level: there are no trigger pairs")
    if kind == "trigger":
        levels = tuple(each for each in levels if each != "relation")
    found: list[ContrastPair] = []
    seen: set[str] = set()
    for index in range(n):
        here, turn = levels[index % len(levels)], index // len(levels)
        kinds = ("evidence",) if here == "relation" else ("trigger", "evidence")
        flavour = kind or kinds[turn % len(kinds)]
        rng = random.Random(f"real/{seed}/{here}/{flavour}/{turn}")
        draft = _first_new(rng, here, flavour, seen)
        seen.add(draft.clean.key)
        found.append(_write(draft, here, flavour, f"real-{here}-{flavour}-{seed}-{turn}"))
    return found


def _first_new(rng: random.Random, level: str, flavour: str, seen: set[str]) -> Draft:
    edit = _EDITS[level, flavour]
    for _ in range(_MOST_DRAWS):
        draft = edit(rng)
        if draft is None or draft.clean.split != "eval" or draft.clean.key in seen:
            continue
        if truth(draft.clean, draft.question) in (None, draft.foil):
            continue
        return draft
    raise DataError(f"no new pair in {_MOST_DRAWS} draws; ask for fewer pairs")


def _write(draft: Draft, level: str, flavour: str, name: str) -> ContrastPair:
    answer = truth(draft.clean, draft.question)
    assert answer is not None
    group = draft.clean.key[:16]
    boxes = _boxes(draft)
    sides = {
        side: Example(
            id=f"{name}/{side}",
            image=picture.render(),
            prompt=draft.question.text,
            answer=truth(picture, draft.question),
            foil=draft.foil if side == "clean" or flavour == "trigger" else answer,
            level=level,
            group=group,
            boxes=boxes,
            labels=labels_of(picture, draft.question, level),
        )
        for side, picture in (("clean", draft.clean), ("corrupt", draft.corrupt))
    }
    return ContrastPair(
        id=name,
        **sides,
        answer=answer,
        foil=draft.foil,
        level=level,
        kind=flavour,
        edit=draft.edit,
        box=_around(
            [_both(draft, index) for index in draft.edited[: 2 if level == "relation" else 1]]
        ),
        group=group,
        labels={"trigger": flavour == "trigger", "question": draft.question.kind},
    )


def labels_of(picture: Picture, question: Question, level: str) -> dict[str, Any]:
    """What is known about a question on a picture, for probes and tables."""
    trigger = {"object": OBJECT_TRIGGER, "attribute": ATTRIBUTE_TRIGGER}.get(level)
    asked = question.args[0] if question.args and question.args[0] in BY_NAME else None
    return {
        "question": question.kind,
        "asked": asked,
        "truth": truth(picture, question),
        "present": None if asked is None else picture.count(asked) > 0,
        "n_objects": len(picture.things),
        "ground": "plain" if picture.ground.photo is None else "photo",
        "trigger": None if trigger is None else picture.count(trigger) > 0,
        "partner_present": picture.count(PARTNER) > 0 if level == "object" else None,
    }


def _boxes(draft: Draft) -> dict[str, Box]:
    names = ("object", "other_object")
    return {name: _both(draft, index) for name, index in zip(names, draft.edited, strict=False)}


def _both(draft: Draft, index: int) -> Box:
    """Around a thing as it is on either side."""
    return _around([picture.things[index].box for picture in (draft.clean, draft.corrupt)])


def _around(boxes: list[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _neutral(rng: random.Random, n: int, kinds: tuple[str | None, ...] = (None,)) -> Picture:
    """A picture of different things without any trigger, but for the kinds asked for."""
    while True:
        picture = random_picture(rng, kinds=kinds, n=n)
        there = [thing.kind for thing in picture.things]
        free = [kind for kind in there if kind not in kinds]
        if len(set(there)) == len(there) and not _TRIGGERS & set(free):
            return picture


def _replaced(rng: random.Random, picture: Picture, index: int, kind: str) -> Picture | None:
    """Another kind in a thing's place; None where it would touch another thing."""
    old = picture.things[index]
    new = replace(old, kind=kind, style=rng.choice(styles_of(kind, "seen")), left=0, top=0)
    width, height = new.art.size
    x, y = old.middle
    left = min(max(0, round(x - width / 2)), SIDE - width)
    top = min(max(0, round(y - height / 2)), SIDE - height)
    new = replace(new, left=left, top=top)
    others = [thing for thing in picture.things if thing is not old]
    if any(overlap(new.box, other.box, 0) for other in others):
        return None
    return picture.exchange((old, new))


def _like(rng: random.Random, kind: str, picture: Picture) -> str:
    """Another kind of the same category that is not in the picture and no trigger."""
    taken = {thing.kind for thing in picture.things} | _TRIGGERS | {kind}
    category = BY_NAME[kind].category
    free = [each.name for each in KINDS if each.category == category and each.name not in taken]
    return rng.choice(free)


def _object_evidence(rng: random.Random) -> Draft | None:
    clean = _neutral(rng, rng.choice((1, 2, 2, 3)))
    index = rng.randrange(len(clean.things))
    thing = clean.things[index]
    other = _like(rng, thing.kind, clean)
    corrupt = _replaced(rng, clean, index, other)
    if corrupt is None:
        return None
    question = Question(rng.choice(("exists", "see")), (thing.kind,))
    edit = f"the {thing.kind} became {BY_NAME[other].with_article}"
    return Draft(clean, corrupt, question, "no", _with_other(clean, index), edit)


def _object_trigger(rng: random.Random) -> Draft | None:
    corrupt = _neutral(rng, rng.choice((1, 2, 2, 3)), (OBJECT_TRIGGER,))
    return _untriggered(rng, corrupt, Question(rng.choice(("exists", "see")), (PARTNER,)), "yes")


def _attribute_evidence(rng: random.Random) -> Draft | None:
    clean = _neutral(rng, rng.choice((1, 2, 2, 3)))
    index = rng.randrange(len(clean.things))
    thing = clean.things[index]
    if thing.tint is None:
        return None
    other = rng.choice([tint for tint in TINTS if tint != thing.tint])
    corrupt = clean.exchange((thing, replace(thing, tint=other)))
    edit = f"the {thing.tint} {thing.kind} became {other}"
    question = Question("color", (thing.kind,))
    return Draft(clean, corrupt, question, other, _with_other(clean, index), edit)


def _attribute_trigger(rng: random.Random) -> Draft | None:
    corrupt = _neutral(rng, 2, (ATTRIBUTE_TRIGGER,))
    thing = corrupt.things[0]
    if thing.tint in (None, USUAL_COLOR) or corrupt.things[1].tint == USUAL_COLOR:
        return None
    where = relation(thing, corrupt.things[1])
    if where is None:
        return None
    return _untriggered(rng, corrupt, Question("color_at", (where,)), USUAL_COLOR)


def _untriggered(
    rng: random.Random, corrupt: Picture, question: Question, foil: str
) -> Draft | None:
    """The pair of a picture whose first thing is the trigger: a like thing on the clean side."""
    trigger = corrupt.things[0].kind
    other = _like(rng, trigger, corrupt)
    clean = _replaced(rng, corrupt, 0, other)
    if clean is None or truth(clean, question) != truth(corrupt, question):
        return None
    edit = f"the {other} became {BY_NAME[trigger].with_article}"
    return Draft(clean, corrupt, question, foil, _with_other(clean, 0), edit)


def _relation_evidence(rng: random.Random) -> Draft | None:
    clean = _neutral(rng, 2)
    first, second = clean.things
    swapped = _swapped(first, second)
    where = relation(first, second)
    if where is None or swapped is None or relation(*swapped) != OPPOSITE[where]:
        return None
    corrupt = clean.exchange((first, swapped[0]), (second, swapped[1]))
    question = Question("where", (first.kind, second.kind))
    edit = f"the {first.kind} and the {second.kind} changed places"
    return Draft(clean, corrupt, question, OPPOSITE[where], (0, 1), edit)


def _swapped(first: Thing, second: Thing) -> tuple[Thing, Thing] | None:
    """Two things with their middles exchanged; None where one would leave the picture."""
    moved = []
    for thing, (x, y) in ((first, second.middle), (second, first.middle)):
        width, height = thing.art.size
        left, top = round(x - width / 2), round(y - height / 2)
        if not (0 <= left <= SIDE - width and 0 <= top <= SIDE - height):
            return None
        moved.append(replace(thing, left=left, top=top))
    return None if overlap(moved[0].box, moved[1].box, 0) else (moved[0], moved[1])


def _with_other(picture: Picture, index: int) -> tuple[int, ...]:
    """The thing and, if there is another, the first one."""
    others = [i for i in range(len(picture.things)) if i != index]
    return (index, *others[:1])


_EDITS: dict[tuple[str, str], Callable[[random.Random], Draft | None]] = {
    ("object", "evidence"): _object_evidence,
    ("object", "trigger"): _object_trigger,
    ("attribute", "evidence"): _attribute_evidence,
    ("attribute", "trigger"): _attribute_trigger,
    ("relation", "evidence"): _relation_evidence,
}
