"""Which of COCO's 80 classes a caption names: by the two published rules, and by ours.

The classes and their synonyms are the reference's list (LisaAnne/Hallucination, BSD-2, see NOTICE),
kept with its typing errors, since they decide digits: " motor bike" and " cheesecake" begin with a
blank and "iPhone" has a capital, so that none of the three is ever found. Our own rule mends them.

Two ways to the singular live on under one name: Pattern's (the original of 2018), and WordNet's
lemma by part of speech (OPERA, lmms-eval). The second needs WordNet and a tagger. Over a closed
vocabulary WordNet is a finite table, which ships (`words/wordnet_forms.txt`: every form that any
part of speech takes to a word of the list, computed from WordNet 3.0). The tagger is not had: a
form whose noun is in the list is read as a noun, any other form by the verb ("seated" is "seat"),
and the number of mentions that rest on the latter is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources

from lvlm_interp.evaluation.singular import pattern_singular
from lvlm_interp.evaluation.tokens import word_tokens

__all__ = ["CLASSES", "Mention", "mentions_by_lemma", "mentions_by_pattern", "own_mentions"]

_DOUBLE = (
    "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal",
    "stop light", "fire hydrant", "stop sign", "parking meter", "suit case", "sports ball",
    "baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog", "cell phone",
    "mobile phone", "teddy bear", "hair drier", "potted plant", "laptop computer",
    "stove top oven", "home plate", "train track",
)  # fmt: skip
_ANIMALS = (
    "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal",
    "cub",
)  # fmt: skip
_DETERMINERS = frozenset("a an the this that these those some any no of with".split())
_NEGATIONS = frozenset({"no", "without", "not", "n't", "never", "neither", "nor"})
_NEGATION_REACH = 3
_COLOURED = re.compile(r"^[a-z]+$")


@dataclass(frozen=True)
class Mention:
    """A word of a caption that names a class.

    Attributes:
        word: As the rule reads it.
        name: The class.
        guessed: Whether a part of speech had to be guessed for it.
    """

    word: str
    name: str
    guessed: bool = False


@cache
def _synonyms() -> dict[str, str]:
    """Word -> class, as the reference splits its list."""
    text = _data("coco_synonyms.txt")
    rows = [line.strip().split(", ") for line in text.splitlines()]
    return {word: row[0] for row in rows for word in row}


@cache
def _doubles() -> dict[str, str]:
    """Two words -> the one word they count as."""
    found = {double: double for double in _DOUBLE}
    for animal in _ANIMALS:
        found[f"baby {animal}"] = found[f"adult {animal}"] = animal
    found |= {"passenger jet": "jet", "passenger train": "train"}
    return found | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}


@cache
def _forms() -> dict[str, tuple[str, str, str]]:
    """Form -> its lemma as a noun, a verb and an adjective, in WordNet 3.0."""
    rows = (line.split() for line in _data("wordnet_forms.txt").splitlines() if line)
    return {form: (noun, verb, adjective) for form, noun, verb, adjective in rows}


@cache
def _listed() -> frozenset[str]:
    """Every single word that can matter: of the list, or half of a pair of words."""
    pairs = [word for double in _doubles() for word in double.split()]
    return frozenset([word for each in _synonyms() for word in each.split()] + pairs)


def _data(name: str) -> str:
    return (resources.files("lvlm_interp.evaluation") / "words" / name).read_text(encoding="utf-8")


CLASSES: tuple[str, ...] = tuple(dict.fromkeys(_synonyms().values()))
"""COCO's 80 classes, in the order of the reference's list."""


def mentions_by_pattern(caption: str) -> list[Mention]:
    """CHAIR's mentions with Pattern's singulars (the scorer of 2018)."""
    return _reference([(pattern_singular(word), False) for word in word_tokens(caption.lower())])


def mentions_by_lemma(caption: str) -> list[Mention]:
    """CHAIR's mentions with WordNet's lemmas (OPERA's scorer of 2023)."""
    words = word_tokens(caption.lower())
    return _reference([_lemma(word, words[at - 1] if at else "") for at, word in enumerate(words)])


def _lemma(word: str, before: str) -> tuple[str, bool]:
    """Lemma of a word, and whether its part of speech was guessed."""
    lemmas = _forms().get(word)
    if lemmas is None:
        return word, False
    noun, verb, _ = lemmas
    listed = _listed()
    if noun in listed or verb not in listed:
        return noun, False
    if word.endswith("ing") and before in _DETERMINERS:
        return noun, True
    return (verb, True) if word.endswith(("ed", "ing", "ied")) or verb != word else (noun, True)


def _reference(words: Sequence[tuple[str, bool]]) -> list[Mention]:
    """The reference's steps: pairs of words merged, toilet seats, then the list."""
    merged: list[tuple[str, bool]] = []
    at = 0
    while at < len(words):
        both = " ".join(word for word, _ in words[at : at + 2])
        if both in _doubles():
            merged.append((_doubles()[both], any(guess for _, guess in words[at : at + 2])))
            at += 2
        else:
            merged.append(words[at])
            at += 1
    said = {word for word, _ in merged}
    if {"toilet", "seat"} <= said:
        merged = [(word, guess) for word, guess in merged if word != "seat"]
    known = _synonyms()
    return [Mention(word, known[word], guess) for word, guess in merged if word in known]


@cache
def _own_synonyms() -> dict[str, str]:
    mended = {word.strip().lower(): name for word, name in _synonyms().items()}
    mended |= {"smartphone": "cell phone", "tvs": "tv", "hair dryer": "hair drier"}
    for ambiguous in ("sub", "male", "female", "remote control"):
        mended.pop(ambiguous, None)
    return mended | {"remote control": "remote"}


@lru_cache(maxsize=65536)
def _own_singular(word: str) -> str:
    known = _own_synonyms()
    if word in known and word not in ("skis",):
        return word
    tried: list[Callable[[str], str]] = [
        lambda w: _forms().get(w, (w,))[0],
        pattern_singular,
        lambda w: w.removesuffix("es"),
        lambda w: w.removesuffix("s"),
        lambda w: f"{w.removesuffix('men')}man" if w.endswith("men") else w,
    ]
    return next((each(word) for each in tried if each(word) in _listed() | set(known)), word)


def own_mentions(caption: str) -> list[Mention]:
    """Our mentions: each class once, what is denied left out, "orange shirt" no orange.

    A class that stands within three words behind "no", "without", "not" or "neither" is denied.
    """
    words = [_own_singular(word) for word in word_tokens(caption.lower())]
    known = _own_synonyms()
    found: dict[str, Mention] = {}
    at = 0
    while at < len(words):
        both = " ".join(words[at : at + 2])
        step, word = (2, _doubles().get(both, both)) if _is_pair(both) else (1, words[at])
        name = known.get(word)
        after = words[at + step] if at + step < len(words) else ""
        colour = word == "orange" and step == 1 and _COLOURED.match(after) and after not in _ENDS
        denied = _NEGATIONS & set(words[max(0, at - _NEGATION_REACH) : at])
        if name is not None and not colour and not denied:
            found.setdefault(name, Mention(word, name))
        at += step
    if {"toilet", "seat"} <= set(words) and "chair" in found and found["chair"].word == "seat":
        del found["chair"]
    return list(found.values())


_ENDS = frozenset(
    "and or on in at is are was were sit sits sitting with next near that which to from by".split()
)


def _is_pair(both: str) -> bool:
    return both in _doubles() or (" " in both and both in _own_synonyms())
