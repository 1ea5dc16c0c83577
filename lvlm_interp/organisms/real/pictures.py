"""Composed pictures of real things: emoji or photo cut-outs on plain and photographed grounds.

A picture is 112 x 112 pixels and holds one to three things that do not overlap, each big or small,
dyed in a colour or as its art has it. Boxes and masks are exact, since the picture is composed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from lvlm_interp.data.examples import Box
from lvlm_interp.organisms.real.art import TINTS, grounds, scaled
from lvlm_interp.organisms.real.kinds import NAMES, styles_of

SIDE = 112
BIG = (46, 54)
SMALL = (26, 32)
"""Longer side of a thing in pixels, least and most."""

RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

_N_THINGS = (1, 2, 2, 2, 2, 3, 3)
_DYED_SHARE = 0.5
_SAME_KIND_SHARE = 0.2
_APART = 20
"""Pixels between the middles of two things from which one is beside the other."""
_SLANT = 1.4
"""How much further apart they must be along that axis than along the other."""
_TRIES = 60
EVAL_SHARE = 10


@dataclass(frozen=True)
class Thing:
    """One thing in a picture.

    Attributes:
        kind: Name of its kind.
        style: Of its art.
        tint: Colour in which it is dyed, or None.
        side: Its longer side in pixels.
        left, top: Of its box, in pixels.
        mirrored: Whether left and right are exchanged.
    """

    kind: str
    style: str
    tint: str | None
    side: int
    left: int
    top: int
    mirrored: bool

    @cached_property
    def art(self) -> Image.Image:
        """What is pasted, with its transparency."""
        return scaled(self.kind, self.style, self.tint, self.side, self.mirrored)

    @property
    def size(self) -> str:
        """`big` or `small`."""
        return "big" if self.side >= BIG[0] else "small"

    @property
    def box(self) -> Box:
        """Left, top, right, bottom; right and bottom are exclusive."""
        width, height = self.art.size
        return self.left, self.top, self.left + width, self.top + height

    @property
    def middle(self) -> tuple[float, float]:
        """Of its box."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Ground:
    """What the things lie on.

    Attributes:
        photo: Index of a photograph, or None for a plain one.
        color: Red, green and blue at the top (plain), or gains of the photograph in percent.
        other: The same at the bottom of a plain ground.
        corner: Left and top of the cut of the photograph.
    """

    photo: int | None
    color: tuple[int, int, int]
    other: tuple[int, int, int]
    corner: tuple[int, int] = (0, 0)

    def render(self) -> Image.Image:
        """The ground as an image."""
        if self.photo is None:
            along = np.linspace(0, 1, SIDE)[:, None, None]
            ramp = (1 - along) * np.array(self.color) + along * np.array(self.other)
            return Image.fromarray(np.broadcast_to(ramp, (SIDE, SIDE, 3)).round().astype(np.uint8))
        left, top = self.corner
        cut = grounds()[self.photo].crop((left, top, left + SIDE, top + SIDE))
        gained = np.asarray(cut, dtype=np.float32) * np.array(self.color, dtype=np.float32) / 100
        return Image.fromarray(gained.clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Picture:
    """Things on a ground; equal pictures are equal to the pixel."""

    things: tuple[Thing, ...]
    ground: Ground

    @cached_property
    def key(self) -> str:
        """Hash of the content."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def split(self) -> str:
        """`eval` for one picture in ten, by content; `train` for the others."""
        return "eval" if int(self.key[:8], 16) % EVAL_SHARE == 0 else "train"

    def render(self) -> Image.Image:
        """The picture in RGB."""
        image = self.ground.render()
        for thing in self.things:
            image.paste(thing.art, (thing.left, thing.top), thing.art)
        return image

    def mask(self, index: int) -> np.ndarray:
        """Where one thing is; boolean, shape `SIDE SIDE`."""
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        left, top, right, bottom = self.things[index].box
        mask[top:bottom, left:right] = np.asarray(self.things[index].art)[..., 3] > 127
        return mask

    def count(self, kind: str) -> int:
        """How many things of a kind there are."""
        return sum(thing.kind == kind for thing in self.things)

    def only(self, kind: str) -> Thing | None:
        """The one thing of a kind; None if there is none or more than one."""
        found = [thing for thing in self.things if thing.kind == kind]
        return found[0] if len(found) == 1 else None

    def exchange(self, *changes: tuple[Thing, Thing]) -> Picture:
        """The picture with things replaced by others."""
        new = dict(changes)
        return replace(self, things=tuple(new.get(thing, thing) for thing in self.things))

    def graph(self) -> dict[str, Any]:
        """Objects with attributes and boxes, and relations between their indices."""
        objects = [
            {
                "name": thing.kind,
                "attributes": [word for word in (thing.size, thing.tint) if word],
                "box": list(thing.box),
            }
            for thing in self.things
        ]
        relations = [
            [i, where, j]
            for i, first in enumerate(self.things)
            for j, second in enumerate(self.things)
            if i != j and (where := relation(first, second))
        ]
        return {"objects": objects, "relations": relations}


def relation(first: Thing, second: Thing) -> str | None:
    """Where the first is, seen from the second; None where neither axis decides."""
    dx, dy = (a - b for a, b in zip(first.middle, second.middle, strict=True))
    if abs(dx) >= _APART and abs(dx) >= _SLANT * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= _APART and abs(dy) >= _SLANT * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def overlap(first: Box, second: Box, margin: int = 2) -> bool:
    """Whether two boxes come closer than a margin."""
    return not (
        first[2] + margin <= second[0]
        or second[2] + margin <= first[0]
        or first[3] + margin <= second[1]
        or second[3] + margin <= first[1]
    )


def random_picture(
    rng: random.Random,
    *,
    kinds: Sequence[str | None] = (),
    n: int | None = None,
    styles: Sequence[str] | None = None,
    split: str = "seen",
) -> Picture:
    """A picture drawn at random.

    Args:
        rng: The source of randomness.
        kinds: Kinds that the first things must have; None leaves one open.
        n: Number of things; drawn if not given.
        styles: Styles to draw from; those of the split by default.
        split: `seen` or `unseen` pictures of the kinds.
    """
    while True:
        wanted = n or max(rng.choice(_N_THINGS), len(kinds))
        things = _place(rng, _kinds(rng, kinds, wanted, split), styles, split)
        if things is not None:
            return Picture(tuple(things), random_ground(rng))


def _kinds(rng: random.Random, fixed: Sequence[str | None], n: int, split: str) -> list[str]:
    pool = [name for name in NAMES if styles_of(name, split)]
    found: list[str] = []
    for index in range(n):
        given = fixed[index] if index < len(fixed) else None
        if given is None and found and not fixed and rng.random() < _SAME_KIND_SHARE:
            found.append(found[0])
            continue
        taken = {*found, *(kind for kind in fixed if kind)}
        found.append(given or rng.choice([name for name in pool if name not in taken]))
    return found


def _place(
    rng: random.Random, kinds: Sequence[str], styles: Sequence[str] | None, split: str
) -> list[Thing] | None:
    things: list[Thing] = []
    for kind in kinds:
        twin = next((thing for thing in things if thing.kind == kind), None)
        for _ in range(_TRIES):
            thing = random_thing(rng, kind, styles or styles_of(kind, split), len(kinds))
            if twin is not None:  # several of a kind share what a caption says of them
                thing = moved(replace(thing, tint=twin.tint, side=twin.side, style=twin.style), rng)
            if not any(overlap(thing.box, other.box) for other in things):
                things.append(thing)
                break
        else:
            return None
    return things


def random_thing(rng: random.Random, kind: str, styles: Sequence[str], n_things: int = 1) -> Thing:
    """One thing of a kind, anywhere; small ones are more frequent in company."""
    least, most = rng.choice((BIG, SMALL) if n_things < 3 else (BIG, SMALL, SMALL))
    tint = rng.choice(tuple(TINTS)) if rng.random() < _DYED_SHARE else None
    thing = Thing(
        kind, rng.choice(tuple(styles)), tint, rng.randint(least, most), 0, 0, rng.random() < 0.5
    )
    return moved(thing, rng)


def moved(thing: Thing, rng: random.Random) -> Thing:
    """The thing somewhere else inside the picture."""
    width, height = replace(thing, left=0, top=0).art.size
    return replace(thing, left=rng.randint(0, SIDE - width), top=rng.randint(0, SIDE - height))


def random_ground(rng: random.Random) -> Ground:
    """Plain (with a slope of brightness or without) or a cut of a photograph."""
    if rng.random() < 0.5:
        photo = rng.randrange(len(grounds()))
        width, height = grounds()[photo].size
        gains = (rng.randint(70, 130), rng.randint(70, 130), rng.randint(70, 130))
        corner = (rng.randint(0, width - SIDE), rng.randint(0, height - SIDE))
        return Ground(photo, gains, gains, corner)
    base = rng.choice((40, 90, 140, 190, 235))
    color = tuple(max(0, min(255, base + rng.randint(-25, 25))) for _ in range(3))
    slope = rng.choice((0, 0, rng.randint(-60, 60)))
    other = tuple(max(0, min(255, value + slope)) for value in color)
    return Ground(None, color, other)  # pyright: ignore[reportArgumentType]
