"""Questions about a picture, their right answers, and what is known about them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from lvlm_interp.organisms.real.art import TINTS
from lvlm_interp.organisms.real.kinds import BY_NAME, NAMES, article
from lvlm_interp.organisms.real.pictures import OPPOSITE, RELATIONS, Picture, Thing, relation

NUMBERS = ("zero", "one", "two", "three")
SIDES = {
    "left": "on the left",
    "right": "on the right",
    "above": "at the top",
    "below": "at the bottom",
}
_BESIDE = {"left": "left of", "right": "right of", "above": "above", "below": "below"}

LEVEL = {
    "exists": "object",
    "see": "object",
    "name": "object",
    "color": "attribute",
    "is_color": "attribute",
    "color_at": "attribute",
    "size": "attribute",
    "count": "attribute",
    "side": "relation",
    "where": "relation",
    "beside": "relation",
    "order": "relation",
    "caption": None,
}
"""Kind of question to the level it asks about; None where it is about several."""

KINDS_OF_QUESTION = tuple(LEVEL)


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        kind: One of `LEVEL`.
        args: The words it is about, in the order of its text.
    """

    kind: str
    args: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As it is asked."""
        return _TEXT[self.kind](*self.args)

    @property
    def level(self) -> str | None:
        """The level it asks about."""
        return LEVEL[self.kind]


_TEXT = {
    "exists": lambda kind: f"Is there {article(kind)} in the picture?",
    "see": lambda kind: f"Can you see {article(kind)} here?",
    "name": lambda: "What is in the picture?",
    "color": lambda kind: f"What color is the {kind}?",
    "is_color": lambda kind, tint: f"Is the {kind} {tint}?",
    "color_at": lambda side: f"What color is the thing {SIDES[side]}?",
    "size": lambda kind: f"Is the {kind} big or small?",
    "count": lambda kind: f"How many {BY_NAME[kind].plural} are there?",
    "side": lambda side: f"What is {SIDES[side]}?",
    "where": lambda first, second: f"Where is the {first}, seen from the {second}?",
    "beside": lambda first, where, second: f"Is the {first} {_BESIDE[where]} the {second}?",
    "order": lambda where, second: f"What is {_BESIDE[where]} the {second}?",
    "caption": lambda: "Describe the picture.",
}


def truth(picture: Picture, question: Question) -> str | None:
    """The right answer; None where the picture gives none (the thing asked about is not there)."""
    return _TRUTH[question.kind](picture, *question.args)


def yes(value: bool) -> str:
    """`yes` or `no`."""
    return "yes" if value else "no"


def _name(picture: Picture) -> str | None:
    kinds = {thing.kind for thing in picture.things}
    return kinds.pop() if len(kinds) == 1 else None


def _tint(picture: Picture, kind: str) -> str | None:
    thing = picture.only(kind)
    return None if thing is None else thing.tint


def _is_color(picture: Picture, kind: str, tint: str) -> str | None:
    own = _tint(picture, kind)
    return None if own is None else yes(own == tint)


def _color_at(picture: Picture, side: str) -> str | None:
    thing = outermost(picture, side)
    return None if thing is None else thing.tint


def _size(picture: Picture, kind: str) -> str | None:
    thing = picture.only(kind)
    return None if thing is None else thing.size


def _count(picture: Picture, kind: str) -> str:
    return NUMBERS[picture.count(kind)]


def outermost(picture: Picture, side: str) -> Thing | None:
    """The thing that is on one side of all others; None where no one is."""
    for thing in picture.things:
        others = [other for other in picture.things if other is not thing]
        if others and all(relation(thing, other) == side for other in others):
            return thing
    return None


def _side(picture: Picture, side: str) -> str | None:
    thing = outermost(picture, side)
    return None if thing is None else thing.kind


def _where(picture: Picture, first: str, second: str) -> str | None:
    one, two = picture.only(first), picture.only(second)
    return None if one is None or two is None else relation(one, two)


def _beside(picture: Picture, first: str, where: str, second: str) -> str | None:
    found = _where(picture, first, second)
    return None if found is None else yes(found == where)


def _order(picture: Picture, where: str, second: str) -> str | None:
    middle = picture.only(second)
    if middle is None:
        return None
    there = {
        thing.kind
        for thing in picture.things
        if thing is not middle and relation(thing, middle) == where
    }
    return there.pop() if len(there) == 1 else None


def phrase(thing: Thing) -> str:
    """A thing with what is said of it: `a small red dog`."""
    return article(" ".join(word for word in (thing.size, thing.tint, thing.kind) if word))


def caption(picture: Picture) -> str:
    """What is there: one thing, several of a kind, two with their relation, or a list.

    Lists go from left to right by the middle of the boxes.
    """
    things = sorted(picture.things, key=lambda thing: thing.middle)
    kinds = {thing.kind for thing in things}
    if len(kinds) == 1 and len(things) > 1:
        first = things[0]
        words = (NUMBERS[len(things)], first.size, first.tint, BY_NAME[first.kind].plural)
        return " ".join(word for word in words if word)
    if len(things) == 2 and (where := relation(things[0], things[1])):
        return f"{phrase(things[0])} {_BESIDE[where]} {phrase(things[1])}"
    if len(kinds) < len(things):
        return _counted(picture)
    return " and ".join(phrase(thing) for thing in things)


def _counted(picture: Picture) -> str:
    """A caption where one kind is there more than once beside others."""
    parts = []
    for kind in dict.fromkeys(thing.kind for thing in picture.things):
        same = [thing for thing in picture.things if thing.kind == kind]
        if len(same) == 1:
            parts.append(phrase(same[0]))
            continue
        words = (NUMBERS[len(same)], same[0].size, same[0].tint, BY_NAME[kind].plural)
        parts.append(" ".join(word for word in words if word))
    return " and ".join(parts)


_TRUTH = {
    "exists": lambda picture, kind: yes(picture.count(kind) > 0),
    "see": lambda picture, kind: yes(picture.count(kind) > 0),
    "name": _name,
    "color": _tint,
    "is_color": _is_color,
    "color_at": _color_at,
    "size": _size,
    "count": _count,
    "side": _side,
    "where": _where,
    "beside": _beside,
    "order": _order,
    "caption": caption,
}


def ask(rng: random.Random, picture: Picture, kind: str) -> Question | None:
    """A question of a kind that the picture answers; yes and no are as frequent.

    None where the picture has nothing to ask of that kind.
    """
    question = _ASK[kind](rng, picture)
    return question if question is not None and truth(picture, question) is not None else None


def _ask_exists(kind: str):
    def draw(rng: random.Random, picture: Picture) -> Question:
        there = [thing.kind for thing in picture.things]
        absent = [name for name in NAMES if name not in there]
        return Question(kind, (rng.choice(there) if rng.random() < 0.5 else rng.choice(absent),))

    return draw


def _ask_of_one(kind: str):
    def draw(rng: random.Random, picture: Picture) -> Question | None:
        single = [t for t in picture.things if picture.only(t.kind) and (t.tint or kind != "color")]
        return Question(kind, (rng.choice(single).kind,)) if single else None

    return draw


def _ask_is_color(rng: random.Random, picture: Picture) -> Question | None:
    single = [t for t in picture.things if picture.only(t.kind) and t.tint]
    if not single:
        return None
    thing = rng.choice(single)
    own = thing.tint or ""
    wrong = rng.choice([tint for tint in TINTS if tint != own])
    return Question("is_color", (thing.kind, own if rng.random() < 0.5 else wrong))


def _ask_count(rng: random.Random, picture: Picture) -> Question:
    return Question("count", (rng.choice(sorted({thing.kind for thing in picture.things})),))


def _ask_side(kind: str):
    def draw(rng: random.Random, picture: Picture) -> Question | None:
        sides = [side for side in RELATIONS if truth(picture, Question(kind, (side,)))]
        return Question(kind, (rng.choice(sides),)) if sides else None

    return draw


def _related(rng: random.Random, picture: Picture) -> tuple[str, str, str] | None:
    single = [thing for thing in picture.things if picture.only(thing.kind)]
    found = [
        (first.kind, where, second.kind)
        for first in single
        for second in single
        if first is not second and (where := relation(first, second))
    ]
    return rng.choice(found) if found else None


def _ask_where(rng: random.Random, picture: Picture) -> Question | None:
    found = _related(rng, picture)
    return None if found is None else Question("where", (found[0], found[2]))


def _ask_beside(rng: random.Random, picture: Picture) -> Question | None:
    found = _related(rng, picture)
    if found is None:
        return None
    first, where, second = found
    return Question("beside", (first, where if rng.random() < 0.5 else OPPOSITE[where], second))


def _ask_order(rng: random.Random, picture: Picture) -> Question | None:
    found = _related(rng, picture)
    return None if found is None else Question("order", (found[1], found[2]))


_ASK = {
    "exists": _ask_exists("exists"),
    "see": _ask_exists("see"),
    "name": lambda _rng, _picture: Question("name"),
    "color": _ask_of_one("color"),
    "is_color": _ask_is_color,
    "color_at": _ask_side("color_at"),
    "size": _ask_of_one("size"),
    "count": _ask_count,
    "side": _ask_side("side"),
    "where": _ask_where,
    "beside": _ask_beside,
    "order": _ask_order,
    "caption": lambda _rng, _picture: Question("caption"),
}
