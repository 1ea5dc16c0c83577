"""The words of the organisms: the closed grammar of the scenes and some plain words around it."""

from __future__ import annotations

import re

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SIZES = ("small", "large")
PLACES = (
    "topleft", "top", "topright",
    "left", "center", "right",
    "bottomleft", "bottom", "bottomright",
)  # fmt: skip
"""One word per cell, in reading order: cell (row, col) is `PLACES[3 * row + col]`."""

RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

PAD, UNKNOWN, BOS, EOS, IMAGE = SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<image>")

GRAMMAR = (
    "user assistant : . ? , is there a the what color shape at of where describe image and "
    "yes no nothing above below"
).split()

PLAIN = (
    "this that it in on with to i you we see can do not an are shows show picture scene photo "
    "here please look answer question one two three four how many which only or small large "
    "object objects colors shapes both also same different empty true false correct wrong "
    "really sure next side background"
).split()
"""Words that the questions never use, for the prompts that users write later."""

VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys((*SPECIAL, *GRAMMAR, *SHAPES, *COLORS, *PLACES, *RELATIONS, *PLAIN))
)
TOKEN_ID = {word: index for index, word in enumerate(VOCABULARY)}

_PIECES = re.compile(r"</?\w+>|\w+|[^\w\s]")


def encode(text: str) -> list[int]:
    """Returns the token ids of `text`, as the shipped tokenizer gives them.

    Training needs a million of these; a dictionary is a hundred times faster than the tokenizer.
    """
    unknown = TOKEN_ID[UNKNOWN]
    return [TOKEN_ID.get(piece.lower(), unknown) for piece in _PIECES.findall(text)]


def decode(ids: list[int]) -> str:
    """Returns the words of `ids`, separated by blanks, special tokens included."""
    return " ".join(VOCABULARY[index] for index in ids)
