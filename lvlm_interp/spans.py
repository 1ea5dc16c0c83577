"""Which characters of the text each token stands for, and where words stand in it.

Characters are counted in the text that went into the tokenizer, by the tokenizer's own offsets:
decoding one token at a time loses characters of several tokens, and words that it does not know.
Where that text is not known (inputs that came as tensors), the decoded text takes its place.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

import numpy as np

__all__ = ["Spans", "Written", "spans_of", "words_pattern"]

_MARK = "\ufffd"

# Scripts that are written without blanks between words (UAX 29, section 4): Thai, Lao, Myanmar,
# Khmer, kana, ideographs and their extensions.
_NO_BLANKS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)


@dataclass(frozen=True)
class Written:
    """The text that a model reads, and where the user's words stand in it.

    Attributes:
        words: The user's prompt.
        text: All of it, template and marks of images included, before images take their tokens.
        start, end: Place of the prompt in it; both -1 where the template changed the words.
    """

    words: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Spans:
    """Characters of some tokens.

    Attributes:
        text: What they are characters of.
        starts, ends: First character of each token and the one behind its last; shape `token`.
            Tokens that share a character both have it; one that adds nothing is empty.
    """

    text: str
    starts: np.ndarray
    ends: np.ndarray

    def meet(self, start: int, end: int) -> np.ndarray:
        """Indices of the tokens that have a character from `start` to before `end`."""
        return np.flatnonzero((self.starts < end) & (self.ends > start) & (self.starts < self.ends))


@lru_cache(maxsize=2048)
def spans_of(tokenizer: Any, ids: tuple[int, ...], text: str | None = None) -> Spans:
    """Characters of a row's text tokens.

    Kept, since the rows of a data set share their template and often their question.

    Args:
        tokenizer: Of the model.
        ids: Its tokens, without those of images and marks.
        text: What the tokens were made of; None decodes them.
    """
    if text is None:
        return _of_decoded(tokenizer, ids)
    found = _encoded(tokenizer, text)
    return _of_decoded(tokenizer, ids) if found is None else _aligned(ids, *found, text)


def words_pattern(words: str) -> re.Pattern[str]:
    """A pattern that finds words or phrases as whole words, in any case and either composition.

    A word ends where a letter, digit or combining mark does not follow; in scripts without blanks
    any place will do.
    """
    forms = {unicodedata.normalize(form, words) for form in ("NFC", "NFD")} | {words}
    return re.compile("|".join(map(_form_pattern, sorted(forms))), re.IGNORECASE)


def _form_pattern(words: str) -> str:
    inside = rf"(?:\w|[{_combining()}])"
    pieces = re.findall(rf"{inside}+|[^\w\s]|\s+", words.strip())
    pattern = ""
    for before, piece in zip(["", *pieces], pieces, strict=False):
        if piece.isspace():
            pattern += r"\s+" if _is_word(before[-1]) else r"\s*"
            continue
        # Some tokenizers set marks apart from words.
        pattern += (r"\s*" if before and not before.isspace() else "") + re.escape(piece)
    ends = [each for each in (words.strip()[:1], words.strip()[-1:]) if each]
    letters = rf"(?:(?![{_NO_BLANKS}])\w|[{_combining()}])"
    behind = rf"(?<![{_combining()}])(?<!(?![{_NO_BLANKS}])\w)" if _bound(ends[0]) else ""
    ahead = rf"(?!{letters})" if _bound(ends[-1]) else rf"(?![{_combining()}])"
    return behind + pattern + ahead


def _is_word(letter: str) -> bool:
    return letter.isalnum() or letter == "_" or unicodedata.category(letter).startswith("M")


def _bound(letter: str) -> bool:
    """Whether a word that begins or ends with this letter needs a boundary there."""
    return _is_word(letter) and not re.match(f"[{_NO_BLANKS}]", letter)


@lru_cache(maxsize=1)
def _combining() -> str:
    """Combining marks as ranges for a character class; a word in `re` leaves them out."""
    ranges: list[list[int]] = []
    for code in range(0x300, min(0x20000, sys.maxunicode)):
        if unicodedata.category(chr(code)).startswith("M"):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in ranges)


def _encoded(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]] | None:
    """Tokens of a text with their offsets; None where the tokenizer gives none."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(found["input_ids"]), list(found["offset_mapping"])


def _aligned(
    ids: tuple[int, ...], made: list[int], offsets: list[tuple[int, int]], text: str
) -> Spans:
    """Offsets of a row's tokens, which are those of the text but for what a processor put in.

    What it put in or joined stands for the characters between its neighbours.
    """
    starts, ends = np.full(len(ids), -1), np.full(len(ids), -1)
    for block in SequenceMatcher(None, made, ids, autojunk=False).get_matching_blocks():
        for step in range(block.size):
            starts[block.b + step], ends[block.b + step] = offsets[block.a + step]
    known = np.flatnonzero(starts >= 0)
    for gap in np.split(np.flatnonzero(starts < 0), _breaks(np.flatnonzero(starts < 0))):
        if len(gap):
            before, after = known[known < gap[0]], known[known > gap[-1]]
            start = ends[before[-1]] if len(before) else 0
            end = starts[after[0]] if len(after) else start
            starts[gap], ends[gap] = start, max(start, end)
    return Spans(text, starts, ends)


def _breaks(indices: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.diff(indices) > 1) + 1


def _of_decoded(tokenizer: Any, ids: tuple[int, ...]) -> Spans:
    """Offsets in the decoded text: by encoding it again, or where that differs by its growth."""
    text = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    found = _encoded(tokenizer, text)
    if found is not None and tuple(found[0]) == ids:
        pairs = np.array(found[1]).reshape(-1, 2)
        return Spans(text, pairs[:, 0], pairs[:, 1])
    whole = [0]
    shared = [False]
    for i in range(len(ids)):
        grown = tokenizer.decode(list(ids[: i + 1]), clean_up_tokenization_spaces=False)
        n = next((k for k, (a, b) in enumerate(zip(grown, text, strict=False)) if a != b), None)
        whole.append(max(whole[-1], min(len(grown), len(text)) if n is None else n))
        # The first bytes of a character decode to a mark that the whole text has not.
        shared.append(n is not None and grown[n] == _MARK)
    starts = np.array(whole[:-1])
    return Spans(text, starts, np.array(whole[1:]) + np.array(shared[1:], int))
