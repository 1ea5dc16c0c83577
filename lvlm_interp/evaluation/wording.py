"""The words in which the unified benchmark asks: plain English, or the grammar of the organisms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lvlm_interp.evaluation.colours import PALETTE, Rgb

__all__ = ["ENGLISH", "PROPERTIES", "Wording", "kind_of"]

PROPERTIES: Mapping[str, tuple[str, ...]] = {
    "size": ("tiny", "small", "medium", "large", "huge"),
    "material": ("wooden", "metal", "plastic", "glass", "stone", "leather", "paper", "brick"),
    "texture": ("smooth", "rough", "furry", "shiny", "striped", "dotted"),
}
"""Kinds of attribute beside colour, and the words of each; sizes are in their order."""

SIZES: Mapping[str, float] = {"tiny": 1, "small": 2, "medium": 4, "large": 8, "huge": 16}
"""Each size word twice the one before: what |log ratio| is taken of, where no other is given."""

_SPATIAL = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}


@dataclass(frozen=True)
class Wording:
    """How each kind of question is put.

    Attributes:
        exists: From a name.
        has: From a name and an attribute.
        relates: From a name, a relation and another name.
        which_colour: From a name.
        how_many: From a name; None asks no counts.
        where: From two names; None asks no open relations.
        describe: Asks for a description.
        palette: Colours that can be said.
        places: Words for places, with their coordinates; empty where there are none.
    """

    exists: Callable[[str], str]
    has: Callable[[str, str], str]
    relates: Callable[[str, str, str], str]
    which_colour: Callable[[str], str]
    how_many: Callable[[str], str] | None
    where: Callable[[str, str], str] | None
    describe: str
    palette: Mapping[str, Rgb]
    places: Mapping[str, tuple[float, float]]


def _a(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _relates(first: str, predicate: str, second: str) -> str:
    return f"Is the {first} {_SPATIAL.get(predicate, predicate)} the {second}?"


ENGLISH = Wording(
    exists=lambda name: f"Is there {_a(name)} in the image?",
    has=lambda name, value: f"Is the {name} {value}?",
    relates=_relates,
    which_colour=lambda name: f"What color is the {name}?",
    how_many=lambda name: f"How many of these are in the image: {name}?",
    where=lambda first, second: (
        f"Where is the {first} as seen from the {second}: left, right, above or below?"
    ),
    describe="Please describe this image in detail.",
    palette=PALETTE,
    places={},
)


def kind_of(attribute: str, palette: Mapping[str, Rgb]) -> str | None:
    """Colour, size, material or texture; None for a word that no kind has."""
    if attribute in palette:
        return "colour"
    return next((kind for kind, words in PROPERTIES.items() if attribute in words), None)
