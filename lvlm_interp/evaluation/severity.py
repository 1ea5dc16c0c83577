r"""How bad a false commitment is: delta in (0, 1], by a written rule for each kind.

A commitment is what a reply takes a stand on. What is true has no delta; what is false has one:

- an object that is not there: 1, or 1/2 where something of its supercategory is there and is not
  named itself (a bus for a car is half as bad as a bus for nothing);
- a denial of what is there, with nothing in its place: 1/2;
- a colour: :math:`\Delta E_{00}(said, true) / \max_c \Delta E_{00}(c, true)` over the palette;
- a count: :math:`|n - m| / \max(n, m)`;
- a place: its distance from the true one over the largest distance between two places;
- a spatial relation: :math:`(1 - \cos \alpha)/2` with the angle between said and true direction, so
  that the reversed one has 1 and a neighbouring one 1/2;
- another relation: 1 where the roles are swapped, else 1/2;
- a size: :math:`|\log(said/true)|` over the largest there is;
- a material, a texture or anything without an order: 1/2; with an order, steps over the most steps.

Up to 1/3 is minor, up to 2/3 moderate, above it major.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lvlm_interp.errors import UsageError
from lvlm_interp.evaluation.colours import PALETTE, Rgb, ciede2000, lab_of

__all__ = [
    "DENIAL",
    "DIRECTIONS",
    "OPPOSITE",
    "colour",
    "count",
    "grade",
    "invented_object",
    "place",
    "property_of",
    "relation",
    "size",
    "spatial",
]

DENIAL = 0.5
"""Delta of denying what is there without naming something else."""

UNORDERED = 0.5

DIRECTIONS: Mapping[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "above": (0.0, -1.0),
    "below": (0.0, 1.0),
}
"""Unit vectors in image coordinates, where y points down."""

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_GRADES = ((1 / 3, "minor"), (2 / 3, "moderate"), (1.0, "major"))
_SLACK = 1e-12


def invented_object(supercategory_is_there_unnamed: bool) -> float:
    """Delta of an object that is not in the image.

    Args:
        supercategory_is_there_unnamed: Whether the image holds something of the object's
            supercategory that the reply does not name.
    """
    return 0.5 if supercategory_is_there_unnamed else 1.0


def colour(said: str, true: str, palette: Mapping[str, Rgb] = PALETTE) -> float:
    """Delta of a colour: CIEDE2000 from the true one over the largest from the true one.

    Raises:
        UsageError: A colour is not in the palette.
    """
    for name in (said, true):
        if name not in palette:
            raise UsageError(f"no colour {name!r} in the palette {', '.join(palette)}")
    truth = lab_of(palette[true])
    largest = max(ciede2000(lab_of(rgb), truth) for rgb in palette.values())
    return ciede2000(lab_of(palette[said]), truth) / largest


def count(said: int, true: int) -> float:
    """Delta of a count: |n - m| / max(n, m); 0 where both are 0.

    Raises:
        UsageError: A count is negative.
    """
    if said < 0 or true < 0:
        raise UsageError(f"counts cannot be negative, got {said} and {true}")
    return 0.0 if said == true else abs(said - true) / max(said, true)


def place(
    said: tuple[float, float],
    true: tuple[float, float],
    places: Sequence[tuple[float, float]],
) -> float:
    """Delta of a place: its distance from the true one over the largest between two places.

    Args:
        said: Coordinates of the place that was said.
        true: Of the true place.
        places: Of all places that can be said.

    Raises:
        UsageError: There are not two places.
    """
    largest = max((math.dist(a, b) for a in places for b in places), default=0.0)
    if largest == 0:
        raise UsageError("expected at least two places")
    return math.dist(said, true) / largest


def spatial(said: str | tuple[float, float], true: str | tuple[float, float]) -> float:
    """Delta of a spatial relation: (1 - cos angle) / 2.

    Args:
        said: left, right, above, below, or a direction in image coordinates.
        true: The same; from boxes, the way from the second object's middle to the first's.

    Raises:
        UsageError: An unknown word, or a direction of no length.
    """
    one, two = _direction(said), _direction(true)
    cosine = (one[0] * two[0] + one[1] * two[1]) / (math.hypot(*one) * math.hypot(*two))
    return (1 - max(-1.0, min(1.0, cosine))) / 2


def relation(swapped: bool) -> float:
    """Delta of a relation that is not spatial: 1 where subject and object are swapped."""
    return 1.0 if swapped else UNORDERED


def size(said: float, true: float, sizes: Sequence[float]) -> float:
    """Delta of a size: |log(said / true)| over the largest log ratio of two sizes.

    Raises:
        UsageError: A size is not positive, or there are not two sizes.
    """
    if min(said, true, *sizes) <= 0 or max(sizes) == min(sizes):
        raise UsageError(f"expected two positive sizes or more, got {list(sizes)}")
    return abs(math.log(said / true)) / math.log(max(sizes) / min(sizes))


def property_of(said: str, true: str, order: Sequence[str] = ()) -> float:
    """Delta of a property without a measure: steps over the most steps where an order is given.

    Raises:
        UsageError: An order is given and a word is not in it.
    """
    if said == true:
        return 0.0
    if not order:
        return UNORDERED
    if said not in order or true not in order:
        raise UsageError(f"{said!r} or {true!r} is not in the order {', '.join(order)}")
    return abs(order.index(said) - order.index(true)) / (len(order) - 1)


def grade(delta: float) -> str:
    """Minor, moderate or major.

    Raises:
        UsageError: Delta is not in (0, 1].
    """
    if not 0 < delta <= 1 + _SLACK:
        raise UsageError(f"delta must be above 0 and at most 1, got {delta}")
    return next((name for bound, name in _GRADES if delta <= bound + _SLACK), "major")


def _direction(what: str | tuple[float, float]) -> tuple[float, float]:
    if isinstance(what, str):
        if what not in DIRECTIONS:
            raise UsageError(f"no direction {what!r}; there are {', '.join(DIRECTIONS)}")
        return DIRECTIONS[what]
    if math.hypot(*what) == 0:
        raise UsageError("a direction needs a length")
    return what
