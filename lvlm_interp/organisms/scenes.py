"""Small scenes of flat shapes, exact to the pixel.

A scene is 48 x 48 pixels: 3 x 3 cells of 16 pixels, at most one shape in a cell, and every shape
stays inside its cell. With the model's 8 pixel patches a cell is exactly 2 x 2 patches. Within a
scene all shapes and all colours differ, so that "the ring" and "the red shape" name one object.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from PIL import Image, ImageDraw

from lvlm_interp.data.examples import Box
from lvlm_interp.organisms.vocabulary import COLORS, OPPOSITE, PLACES, SHAPES, SIZES

CELL = 16
GRID = 3
IMAGE_SIZE = CELL * GRID
EVAL_SHARE = 10
"""One scene in this many, by content hash, is kept for evaluation."""

RGB = {
    "red": (220, 45, 45),
    "green": (45, 165, 65),
    "blue": (50, 80, 225),
    "yellow": (235, 195, 30),
    "purple": (160, 60, 195),
    "cyan": (50, 200, 215),
}
BACKGROUNDS = {"light": (240, 240, 240), "dark": (30, 30, 30)}

_SUPERSAMPLING = 4
_RADIUS = {"small": 5.0, "large": 6.5}
_JITTER = (-1, 0, 1)
_N_OBJECTS = (1, 2, 2, 3, 3, 3, 4)


@dataclass(frozen=True)
class SceneObject:
    """One flat shape.

    Attributes:
        shape: One of `SHAPES`.
        color: One of `COLORS`.
        size: "small" or "large".
        row: Row of its cell, 0 at the top.
        col: Column of its cell, 0 at the left.
        dx: Offset from the middle of the cell to the right, in pixels.
        dy: Offset from the middle of the cell downwards, in pixels.
    """

    shape: str
    color: str
    size: str
    row: int
    col: int
    dx: int = 0
    dy: int = 0

    @property
    def cell(self) -> int:
        """Index of the cell in reading order, 0 to 8."""
        return GRID * self.row + self.col

    @property
    def place(self) -> str:
        """The word for its cell."""
        return PLACES[self.cell]

    @property
    def type(self) -> str:
        """`shape|color|cell`: what control tasks give one random label to."""
        return f"{self.shape}|{self.color}|{self.cell}"

    def at(self, cell: int) -> SceneObject:
        """Returns the same object in another cell."""
        return replace(self, row=cell // GRID, col=cell % GRID)


@dataclass(frozen=True)
class Scene:
    """A background with objects, kept in reading order.

    Attributes:
        objects: The objects; shapes, colours and cells all differ.
        background: "light" or "dark".
    """

    objects: tuple[SceneObject, ...]
    background: str = "light"

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.objects, key=lambda thing: (thing.row, thing.col)))
        object.__setattr__(self, "objects", ordered)
        for what in ("shape", "color", "cell"):
            values = [getattr(thing, what) for thing in ordered]
            if len(set(values)) < len(values):
                raise ValueError(f"each {what} may appear once in a scene, got {values}")

    @cached_property
    def key(self) -> str:
        """Content hash (sha256, hexadecimal): equal for scenes that render the same."""
        things = ";".join(
            f"{o.shape},{o.color},{o.size},{o.row},{o.col},{o.dx},{o.dy}" for o in self.objects
        )
        return hashlib.sha256(f"{self.background};{things}".encode()).hexdigest()

    @property
    def split(self) -> str:
        """Either "eval" or "train", from the content alone, so that no seed can mix the two."""
        return "eval" if int(self.key[:8], 16) % EVAL_SHARE == 0 else "train"

    def pixels(self) -> np.ndarray:
        """Returns the image as uint8 of shape (48, 48, 3)."""
        canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        canvas[:] = BACKGROUNDS[self.background]
        for thing in self.objects:
            rows, cols = _cell_slices(thing)
            canvas[rows, cols] = _painted(
                thing.shape, thing.color, thing.size, thing.dx, thing.dy, self.background
            )
        return canvas

    def render(self) -> Image.Image:
        """Returns the image as a PIL image, 48 x 48 RGB."""
        return Image.fromarray(self.pixels())

    def mask(self, index: int) -> np.ndarray:
        """Returns the pixels that object `index` touches, bool of shape (48, 48)."""
        thing = self.objects[index]
        mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
        mask[_cell_slices(thing)] = _coverage(thing.shape, thing.size, thing.dx, thing.dy) > 0
        return mask

    def box(self, index: int) -> Box:
        """Returns the tight box around object `index`, in pixels."""
        rows, cols = np.nonzero(self.mask(index))
        return int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1

    def cell_box(self, index: int) -> Box:
        """Returns the box of the cell that object `index` stands in, in pixels."""
        return cell_box(self.objects[index].cell)

    def find(
        self, *, shape: str | None = None, color: str | None = None, cell: int | None = None
    ) -> SceneObject | None:
        """Returns the one object with this shape, colour or cell, or None."""
        for thing in self.objects:
            if thing.shape == shape or thing.color == color or thing.cell == cell:
                return thing
        return None

    def exchange(self, *changes: tuple[SceneObject, SceneObject]) -> Scene:
        """Returns the scene with each first object of a pair replaced by the second."""
        new = dict(changes)
        return Scene(tuple(new.get(thing, thing) for thing in self.objects), self.background)


def cell_box(cell: int) -> Box:
    """Returns the box of a cell (0 to 8 in reading order), in pixels."""
    row, col = divmod(cell, GRID)
    return col * CELL, row * CELL, (col + 1) * CELL, (row + 1) * CELL


def relation(first: SceneObject, second: SceneObject) -> str | None:
    """Returns where `first` is of `second`, or None unless they share a row or a column."""
    if first.row == second.row and first.col != second.col:
        return "left" if first.col < second.col else "right"
    if first.col == second.col and first.row != second.row:
        return "above" if first.row < second.row else "below"
    return None


def related_pairs(scene: Scene) -> list[tuple[SceneObject, SceneObject, str]]:
    """Returns every ordered pair of objects with one unambiguous relation, and that relation."""
    found = []
    for index, first in enumerate(scene.objects):
        for second in scene.objects[index + 1 :]:
            where = relation(first, second)
            if where is not None:
                found += [(first, second, where), (second, first, OPPOSITE[where])]
    return found


def aligned_cells(rng: random.Random) -> tuple[int, int]:
    """Returns two cells of one row or of one column, in either order, uniformly."""
    line, (first, second) = rng.randrange(GRID), rng.sample(range(GRID), 2)
    if rng.random() < 0.5:
        return GRID * line + first, GRID * line + second
    return GRID * first + line, GRID * second + line


def random_object(rng: random.Random, shape: str, color: str, cell: int) -> SceneObject:
    """Returns the object with a random size and jitter."""
    row, col = divmod(cell, GRID)
    return SceneObject(
        shape, color, rng.choice(SIZES), row, col, rng.choice(_JITTER), rng.choice(_JITTER)
    )


def nudge(rng: random.Random, scene: Scene) -> Scene:
    """Returns the scene with a new size and offset for one object, and a new background.

    What a question could ask stays the same, and the content hash changes: far cheaper than a new
    scene where one is looked for that belongs to a split.
    """
    thing = rng.choice(scene.objects)
    moved = random_object(rng, thing.shape, thing.color, thing.cell)
    others = tuple(other for other in scene.objects if other is not thing)
    return Scene((*others, moved), rng.choice(tuple(BACKGROUNDS)))


def random_scene(
    rng: random.Random,
    *,
    fixed: Sequence[SceneObject] = (),
    shapes: Iterable[str] = SHAPES,
    n_objects: int | None = None,
) -> Scene:
    """Returns a scene with uniform shapes, colours, cells and sizes.

    Args:
        rng: The only source of chance.
        fixed: Objects that stand in the scene already.
        shapes: The shapes that the other objects may have.
        n_objects: How many objects in all; 1 to 4, mostly 2 or 3, where not given.
    """
    count = max(n_objects or rng.choice(_N_OBJECTS), len(fixed)) - len(fixed)
    used = {word for thing in fixed for word in (thing.shape, thing.color)}
    cells = {thing.cell for thing in fixed}
    objects = [
        random_object(rng, shape, color, cell)
        for shape, color, cell in zip(
            rng.sample([s for s in shapes if s not in used], count),
            rng.sample([c for c in COLORS if c not in used], count),
            rng.sample([c for c in range(GRID * GRID) if c not in cells], count),
            strict=True,
        )
    ]
    return Scene((*fixed, *objects), rng.choice(tuple(BACKGROUNDS)))


def _cell_slices(thing: SceneObject) -> tuple[slice, slice]:
    left, top, right, bottom = cell_box(thing.cell)
    return slice(top, bottom), slice(left, right)


@cache
def _painted(shape: str, color: str, size: str, dx: int, dy: int, background: str) -> np.ndarray:
    """Returns the cell as painted, uint8 of shape (16, 16, 3)."""
    alpha = _coverage(shape, size, dx, dy)[..., None] / 255.0
    back = np.array(BACKGROUNDS[background], float)
    return np.rint(back + alpha * (np.array(RGB[color], float) - back)).astype(np.uint8)


@cache
def _coverage(shape: str, size: str, dx: int, dy: int) -> np.ndarray:
    """Returns how much of each pixel of the cell the shape covers, 0 to 255."""
    image = Image.new("L", (CELL * _SUPERSAMPLING, CELL * _SUPERSAMPLING))
    middle_x, middle_y = (CELL / 2 + dx) * _SUPERSAMPLING, (CELL / 2 + dy) * _SUPERSAMPLING
    _draw(ImageDraw.Draw(image), shape, middle_x, middle_y, _RADIUS[size] * _SUPERSAMPLING)
    return np.asarray(image.resize((CELL, CELL), Image.Resampling.BOX))


def _draw(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float) -> None:
    def polygon(points: Iterable[tuple[float, float]]) -> None:
        draw.polygon([(x + r * px, y + r * py) for px, py in points], fill=255)

    def disc(radius: float, fill: int) -> None:
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)

    if shape == "circle":
        disc(r, 255)
    elif shape == "ring":
        disc(r, 255)
        disc(0.52 * r, 0)
    elif shape == "square":
        polygon([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)])
    elif shape == "diamond":
        polygon([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)])
    elif shape == "triangle":
        polygon([(0, -0.95), (1, 0.85), (-1, 0.85)])
    elif shape == "cross":
        polygon([(-1, -0.32), (1, -0.32), (1, 0.32), (-1, 0.32)])
        polygon([(-0.32, -1), (0.32, -1), (0.32, 1), (-0.32, 1)])
    elif shape == "star":
        polygon(_star_points())
    elif shape == "heart":
        polygon(_heart_points())
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")


def _star_points() -> list[tuple[float, float]]:
    points = []
    for step in range(10):
        radius, angle = (1.0 if step % 2 == 0 else 0.42), math.pi * (step / 5 - 0.5)
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _heart_points() -> list[tuple[float, float]]:
    points = []
    for step in range(60):
        t = 2 * math.pi * step / 60
        across = 16 * math.sin(t) ** 3
        up = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((across / 17, (-up - 2) / 16))
    return points
