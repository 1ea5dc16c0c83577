"""Words of a caption, cut as NLTK's `word_tokenize` cuts them.

Only what reaches a closed vocabulary matters here: hyphens and slashes stay inside a word
("man-made", "man/woman" are one token each), punctuation, quotes and clitics are cut off, and a
full stop is cut from every word but an abbreviation, as the sentence splitter before it does.
"""

from __future__ import annotations

import re

__all__ = ["word_tokens"]

_PADDED = re.compile(
    r"([\u00ab\u201c\u2018\u201e\u00bb\u201d\u2019\u2012-\u2015;@#$%&?!*\[\](){}<>\"`]|\.{2,}|--|'')"
)
_COMMA = re.compile(r"([:,])(?=\D|$)")
_CLITIC = re.compile(r"^(.*[^'])('s|'m|'d|'ll|'re|'ve|n't|')$", re.IGNORECASE)
_QUOTE = re.compile(r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", re.IGNORECASE)
_SHORT = frozenset(
    "mr mrs ms dr st ave inc co corp ltd vs etc no jr sr u.s u.k e.g i.e a.m p.m approx".split()
)


def word_tokens(text: str) -> list[str]:
    """Tokens of a text, in order; case is kept.

    Args:
        text: A caption.
    """
    text = _QUOTE.sub("' ", text)
    text = _COMMA.sub(r" \1 ", _PADDED.sub(r" \1 ", text))
    found: list[str] = []
    for piece in text.split():
        stem = piece[:-1]
        stop = piece.endswith(".") and not stem.endswith(".") and len(stem) > 1
        stop = stop and stem.lower() not in _SHORT
        word = stem if stop else piece
        clitic = _CLITIC.match(word)
        found += list(clitic.groups()) if clitic else [word]
        found += ["."] if stop else []
    return found
