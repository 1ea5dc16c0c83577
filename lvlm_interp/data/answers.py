"""Answers as words: when two are the same, and what the other one of yes and no is."""

from __future__ import annotations

import re

__all__ = ["negation", "same_answer"]

_OPPOSITE = {"yes": "no", "no": "yes"}
_YES_NO = re.compile(r"(\s*)(yes|no)([.!]?\s*)", re.IGNORECASE)


def negation(answer: str) -> str | None:
    """The other one of yes and no in the same spelling; None for other answers.

    A model that answers in capitals is asked about "Yes" and "No": two spellings of one word would
    be compared otherwise.
    """
    found = _YES_NO.fullmatch(answer)
    if found is None:
        return None
    before, word, behind = found.groups()
    other = _OPPOSITE[word.lower()]
    if word.isupper():
        other = other.upper()
    elif word[0].isupper():
        other = other.capitalize()
    return f"{before}{other}{behind}"


def same_answer(first: str, second: str) -> bool:
    """Whether two answers are one word in two spellings: case and outer white space aside."""
    return " ".join(first.split()).casefold() == " ".join(second.split()).casefold()
