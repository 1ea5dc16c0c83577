"""What a description claims of an image: closed words, compared with what is known of it.

Read are the names of the benchmark's things, attributes that stand right before a name or behind
"NAME is", relations of the form NAME (is) WHAT the NAME, and places behind "at". What the
annotation does not decide (the colour of a thing whose colour is not given, a relation between two
things without one) is no claim. An attribute counts only where its thing is there, and a relation
where both are: else the invented thing is the error, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lvlm_interp.data.examples import Annotated, Example, Relation
from lvlm_interp.evaluation import severity
from lvlm_interp.evaluation.singular import pattern_singular
from lvlm_interp.evaluation.tokens import word_tokens
from lvlm_interp.evaluation.wording import Wording, kind_of

__all__ = ["Claim", "claims"]

_SKIP = frozenset("is are was were the a an to of".split())
_DENY = frozenset("no not n't without".split())


@dataclass(frozen=True)
class Claim:
    """One fact of an image or one false claim about it.

    Attributes:
        level: object, attribute or relation.
        statement: In words.
        truth: yes where it is true of the image, else no.
        said: yes, no (denied), or none (a fact that the text does not mention).
        delta: What the error costs; None where it is none.
    """

    level: str
    statement: str
    truth: str
    said: str
    delta: float | None


@dataclass(frozen=True)
class _Mention:
    """A name in the text, where it stands, and the words before it."""

    name: str
    at: int
    end: int
    denied: bool


def claims(
    text: str,
    example: Example,
    names: Sequence[str],
    wording: Wording,
    kinds: Mapping[str, str] | None = None,
) -> list[Claim]:
    """Facts of the image, each named or not, and the false claims of a description.

    Args:
        text: The description.
        example: With `objects` and `relations` of the image.
        names: Names that can be claimed.
        wording: Palette and places.
        kinds: Supercategory of a name.
    """
    tokens = [token.lower() for token in word_tokens(text)]
    mentions = list(_mentions(tokens, names))
    return [
        *_objects(mentions, example.objects, kinds or {}),
        *_attributes(tokens, mentions, example.objects, wording),
        *_places(tokens, mentions, example.objects, wording),
        *_relations(tokens, mentions, example.objects, example.relations),
    ]


def _mentions(tokens: Sequence[str], names: Sequence[str]) -> Iterator[_Mention]:
    by_words = {tuple(name.lower().split()): name for name in names}
    longest = max((len(words) for words in by_words), default=0)
    at = 0
    while at < len(tokens):
        for length in range(min(longest, len(tokens) - at), 0, -1):
            words = tuple(tokens[at : at + length])
            single = (*words[:-1], pattern_singular(words[-1]))
            name = by_words.get(words, by_words.get(single))
            if name is not None:
                denied = bool(_DENY & set(tokens[max(0, at - 3) : at]))
                yield _Mention(name, at, at + length, denied)
                at += length - 1
                break
        at += 1


def _objects(
    mentions: Sequence[_Mention], things: Sequence[Annotated], kinds: Mapping[str, str]
) -> Iterator[Claim]:
    there = {thing.name for thing in things}
    named = {mention.name: mention.denied for mention in mentions}
    for name in sorted(there):
        if name not in named:
            yield Claim("object", f"there is a {name}", "yes", "none", None)
        elif named[name]:
            yield Claim("object", f"there is a {name}", "yes", "no", severity.DENIAL)
        else:
            yield Claim("object", f"there is a {name}", "yes", "yes", None)
    for name, denied in named.items():
        if name in there:
            continue
        like = kinds.get(name)
        unnamed = like is not None and any(
            kinds.get(other) == like and other not in named for other in there
        )
        cost = None if denied else severity.invented_object(unnamed)
        yield Claim("object", f"there is a {name}", "no", "no" if denied else "yes", cost)


def _attributes(
    tokens: Sequence[str],
    mentions: Sequence[_Mention],
    things: Sequence[Annotated],
    wording: Wording,
) -> Iterator[Claim]:
    known = {
        thing.name: [w for w in thing.attributes if kind_of(w, wording.palette) == "colour"]
        for thing in things
    }
    told: dict[str, set[str]] = {}
    for mention in mentions:
        if mention.name in known and not mention.denied:
            told.setdefault(mention.name, set()).update(_colours(tokens, mention, wording))
    for name, colours in known.items():
        for colour in colours:
            said = "yes" if colour in told.get(name, ()) else "none"
            yield Claim("attribute", f"the {name} is {colour}", "yes", said, None)
        for colour in sorted(told.get(name, set()) - set(colours)):
            if colours:
                cost = min(severity.colour(colour, true, wording.palette) for true in colours)
                yield Claim("attribute", f"the {name} is {colour}", "no", "yes", cost)


def _colours(tokens: Sequence[str], mention: _Mention, wording: Wording) -> set[str]:
    found, at = set(), mention.at - 1
    while at >= 0 and (tokens[at] in wording.palette or tokens[at] == "and"):
        found |= {tokens[at]} & set(wording.palette)
        at -= 1
    behind = tokens[mention.end : mention.end + 2]
    if len(behind) == 2 and behind[0] in ("is", "are") and behind[1] in wording.palette:
        found.add(behind[1])
    return found


def _places(
    tokens: Sequence[str],
    mentions: Sequence[_Mention],
    things: Sequence[Annotated],
    wording: Wording,
) -> Iterator[Claim]:
    if not wording.places:
        return
    told = {
        mention.name: tokens[mention.end + 1]
        for mention in mentions
        if tokens[mention.end : mention.end + 1] == ["at"]
        and mention.end + 1 < len(tokens)
        and tokens[mention.end + 1] in wording.places
    }
    grid = list(wording.places.values())
    for thing in things:
        true = next((word for word in thing.attributes if word in wording.places), None)
        if true is None:
            continue
        said = told.get(thing.name)
        mark = "yes" if said == true else "none"
        yield Claim("relation", f"the {thing.name} is at {true}", "yes", mark, None)
        if said is not None and said != true:
            cost = severity.place(wording.places[said], wording.places[true], grid)
            yield Claim("relation", f"the {thing.name} is at {said}", "no", "yes", cost)


def _relations(
    tokens: Sequence[str],
    mentions: Sequence[_Mention],
    things: Sequence[Annotated],
    relations: Sequence[Relation],
) -> Iterator[Claim]:
    """Of what is said between two mentions that follow each other, what the annotation decides."""
    known: dict[tuple[str, str], set[str]] = {}
    for first, what, second in relations:
        known.setdefault((things[first].name, things[second].name), set()).add(what)
    words = {what for each in known.values() for what in each} | set(severity.DIRECTIONS)
    told: set[tuple[str, str, str]] = set()
    for one, two in pairwise(mentions):
        between = " ".join(w for w in tokens[one.end : two.at] if w not in _SKIP)
        if between in words and not (one.denied or two.denied):
            told.add((one.name, between, two.name))
    for first, what, second in sorted(told):
        true = known.get((first, second))
        if true is None:
            back = known.get((second, first), set())
            if what in back and what not in severity.DIRECTIONS:
                statement = f"the {first} {what} the {second}"
                yield Claim("relation", statement, "no", "yes", severity.relation(swapped=True))
            continue
        yield _relation_claim(first, what, second, true)


def _relation_claim(first: str, what: str, second: str, true: set[str]) -> Claim:
    words = f"is {what} of" if what in ("left", "right") else what
    statement = f"the {first} {words} the {second}"
    if what in true:
        return Claim("relation", statement, "yes", "yes", None)
    spatial = [each for each in true if each in severity.DIRECTIONS]
    if what in severity.DIRECTIONS and spatial:
        cost = min(severity.spatial(what, each) for each in spatial)
    else:
        cost = severity.relation(swapped=False)
    return Claim("relation", statement, "no", "yes", cost)
