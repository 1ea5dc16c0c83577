"""Lines of a user's data: fields read with checks, each error with the line and the field."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from lvlm_interp.data.examples import Annotated, Box, ContrastPair, Example, Relation
from lvlm_interp.data.jsonl import read_objects
from lvlm_interp.errors import DataError, InputError
from lvlm_interp.models.inputs.images import ImageSource, open_image, pixel_digest

__all__ = ["Line", "Picture", "Report", "parse_all", "read_lines"]

Report = Callable[[DataError], None]
Parsed = TypeVar("Parsed", ContrastPair, Example)

_BOX = "[left, top, right, bottom] in pixels with left < right and top < bottom"
_NORMALISED = 1000


@dataclass(frozen=True)
class Picture:
    """An image that was opened once, to know that it can be.

    Attributes:
        source: What to keep of it: the path, or what the record held.
        size: Width and height, upright.
        digest: Hash of its pixels.
    """

    source: ImageSource
    size: tuple[int, int]
    digest: str


class Line:
    """One record with its origin, whose fields are read with checks.

    Attributes:
        fields: The record.
        where: What to call it in an error: the path and the line number.
        folder: What relative image paths are relative to.
        http: Whether images may be fetched from the network.
        pictures: The images that were read from it so far.
    """

    def __init__(
        self, fields: Mapping[str, Any], where: str, folder: Path, *, http: bool = False
    ) -> None:
        self.fields, self.where, self.folder, self.http = fields, where, folder, http
        self.pictures: list[Picture] = []

    @property
    def number(self) -> str:
        """What the line is called where it has no id."""
        return self.where.rpartition(" ")[2]

    def check_names(self, known: Mapping[str, bool]) -> None:
        """Raise DataError for a field that is unknown, or one that is needed and missing."""
        for name in self.fields:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = (
                    f"did you mean {near[0]!r}?"
                    if near
                    else f"known fields: {', '.join(known)}; put what else is known into 'labels'."
                )
                raise self.error(name, f"there is no such field; {hint}")
        for name, needed in known.items():
            if needed and self.fields.get(name) is None:
                raise self.error(name, "it is missing; every line needs it.")

    def one_of(self, *names: str) -> str:
        """The one of some spellings of a field that the line has; the first where it has none."""
        given = [name for name in names if self.fields.get(name) is not None]
        if len(given) > 1:
            raise self.error(given[1], f"{given[0]!r} says the same already; keep one of the two.")
        return given[0] if given else names[0]

    def text(self, name: str) -> str | None:
        """A text that is not blank, or None where the field is absent."""
        value = self.fields.get(name)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise self.error(name, f"expected a text that is not blank, got {_shown(value)}.")
        return value

    def words(self, name: str) -> str:
        """A text that the line needs."""
        value = self.text(name)
        if value is None:
            raise self.error(name, "it is missing; every line needs it.")
        return value

    def name(self, name: str, default: str | None) -> str | None:
        """A text or a number that names something, as text."""
        value = self.fields.get(name)
        if isinstance(value, bool | list | dict | float) or value == "":
            raise self.error(name, f"expected a text or a whole number, got {_shown(value)}.")
        return default if value is None else str(value)

    def member(self, name: str, allowed: Collection[str], default: str | None = None) -> str | None:
        """One of a few words."""
        value = self.fields.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in allowed:
            raise self.error(name, f"expected one of {', '.join(allowed)}, got {_shown(value)}.")
        return value

    def image(self, name: str) -> ImageSource | list[ImageSource]:
        """One image or a list of them, each opened once; what is kept of each is its source."""
        value = self.fields.get(name)
        if isinstance(value, list | tuple):
            if not value:
                raise self.error(name, "expected an image or a list of some, got an empty list.")
            found = [self._picture(name, each) for each in value]
            self.pictures += found
            return found[0].source if len(found) == 1 else [each.source for each in found]
        self.pictures.append(self._picture(name, value))
        return self.pictures[-1].source

    def _picture(self, name: str, value: Any) -> Picture:
        if value is None:
            raise self.error(name, "it is missing; every line needs it.")
        if isinstance(value, str) and not value.strip():
            raise self.error(name, f"expected the path of an image, got {value!r}.")
        try:
            path = self._path(value)
            if path is None:
                image = open_image(value, http=self.http)
                return Picture(_kept(value, image), image.size, pixel_digest(image))
            stat = path.stat()
            size, digest = _opened(str(path), stat.st_mtime_ns, stat.st_size)
            return Picture(path, size, digest)
        except (InputError, OSError) as error:
            relative = isinstance(value, str) and "no image file" in str(error)
            hint = f" Paths are relative to {self.folder}." if relative else ""
            raise self.error(name, f"{error}{hint}") from error

    def _path(self, value: Any) -> Path | None:
        """The file that a text names, or None where it holds the image itself."""
        if not isinstance(value, str | os.PathLike):
            return None
        text = os.fspath(value)
        path = self.folder / text
        if os.path.isfile(path):
            return path
        if text[:5].lower() == "data:" or text[:7].lower() in ("http://", "https:/"):
            return None
        if len(text) > 255 and "/" not in text[:1] and "." not in text:
            return None  # base64
        open_image(path)  # says what is wrong with it
        return path

    def box(self, name: str, value: Any = None) -> Box | None:
        """Left, top, right, bottom in pixels of the line's first image; None where it is absent.

        Fractions of a pixel are rounded. A box that lies outside of the image is refused, and so
        is one that is written in fractions of the image.
        """
        value = self.fields.get(name) if value is None else value
        if value is None:
            return None
        if not (
            isinstance(value, list | tuple)
            and len(value) == 4
            and all(isinstance(side, int | float) and not isinstance(side, bool) for side in value)
            and all(math.isfinite(side) for side in value)
        ):
            raise self.error(name, f"expected {_BOX}, got {_shown(value)}.")
        if self._is_fraction(value):
            raise self.error(
                name,
                f"{_shown(value)} looks like fractions of the image; expected {_BOX}: multiply by "
                "its width and height.",
            )
        left, top, right, bottom = (round(side) for side in value)
        if not (left < right and top < bottom):
            hint = ""
            if value[2] > 0 and value[3] > 0 and value[0] >= 0 and value[1] >= 0:
                hint = "; if it is COCO's [x, y, width, height], add x and y to the last two"
            raise self.error(name, f"expected {_BOX}, got {_shown(value)}{hint}.")
        return self._inside(name, value, (left, top, right, bottom))

    def _is_fraction(self, value: list[float] | tuple[float, ...]) -> bool:
        broken = any(side != int(side) for side in value)
        written = any(isinstance(side, float) for side in value)
        most = max(value)
        return min(value) >= 0 and ((broken and most <= 2) or (written and most <= 1))

    def _inside(self, name: str, value: Any, box: Box) -> Box:
        if not self.pictures:
            if min(box) < 0:
                raise self.error(name, f"expected {_BOX}, got {_shown(value)}.")
            return box
        width, height = self.pictures[0].size
        # A side half a pixel out is a matter of rounding.
        outside = value[0] < -0.5 or value[1] < -0.5
        outside |= value[2] > width + 0.5 or value[3] > height + 0.5
        left, top = max(box[0], 0), max(box[1], 0)
        right, bottom = min(box[2], width), min(box[3], height)
        if not outside and left < right and top < bottom:
            return left, top, right, bottom
        hint = ""
        if min(value) >= 0 and max(value) <= _NORMALISED:
            hint = "; if it is in 0 to 1000, multiply by width / 1000 and height / 1000"
        raise self.error(
            name, f"{_shown(value)} lies outside of the image of {width} x {height} pixels{hint}."
        )

    def boxes(self, name: str) -> dict[str, Box]:
        """Boxes by their names, empty where the field is absent."""
        found = {}
        for key, value in self.mapping(name).items():
            box = None if value is None else self.box(name, value)
            if box is not None:
                found[str(key)] = box
        return found

    def objects(self, name: str) -> tuple[Annotated, ...]:
        """A list of things with `name`, and perhaps `attributes` and `box`."""
        return tuple(self._object(name, i, each) for i, each in enumerate(self._list(name)))

    def _object(self, name: str, index: int, value: Any) -> Annotated:
        shape = '{"name": ..., "attributes": [...], "box": [...]}'
        if not isinstance(value, Mapping):
            raise self.error(name, f"object {index}: expected {shape}, got {_shown(value)}.")
        if unknown := [key for key in value if key not in ("name", "attributes", "box")]:
            raise self.error(name, f"object {index} has no {unknown[0]!r}; expected {shape}.")
        called, attributes = value.get("name"), value.get("attributes")
        attributes = [attributes] if isinstance(attributes, str) else attributes or []
        if not isinstance(called, str) or not called.strip():
            raise self.error(name, f"object {index} needs a 'name', got {_shown(called)}.")
        if not isinstance(attributes, list | tuple) or not all(
            isinstance(each, str) and each.strip() for each in attributes
        ):
            raise self.error(
                name, f"object {index}: 'attributes' is a list of texts, got {_shown(attributes)}."
            )
        box = value.get("box")
        return Annotated(called, tuple(attributes), None if box is None else self.box(name, box))

    def relations(self, name: str, n_objects: int) -> tuple[Relation, ...]:
        """A list of `[i, "left of", j]` over the line's objects, which are numbered from 0."""
        found = []
        for value in self._list(name):
            if not (
                isinstance(value, list | tuple)
                and len(value) == 3
                and isinstance(value[1], str)
                and value[1].strip()
                and all(type(each) is int and 0 <= each < n_objects for each in value[::2])
                and value[0] != value[2]
            ):
                raise self.error(
                    name,
                    f'expected [i, "left of", j] with the numbers of two of its {n_objects} '
                    f"objects, from 0, got {_shown(value)}.",
                )
            found.append((value[0], value[1], value[2]))
        return tuple(found)

    def _list(self, name: str) -> list[Any]:
        value = self.fields.get(name)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            raise self.error(name, f"expected a list [...], got {_shown(value)}.")
        return list(value)

    def mapping(self, name: str) -> dict[str, Any]:
        """A mapping from names, empty where the field is absent."""
        value = self.fields.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(name, f"expected a mapping such as {{...}}, got {_shown(value)}.")
        return dict(value)

    def error(self, field: str, why: str) -> DataError:
        """The error of a field of this line."""
        return DataError(f"{self.where}, field {field!r}: {why}")


def read_lines(path: Path, *, http: bool = False) -> Iterator[tuple[str, Line | DataError]]:
    """Each line of a JSONL file that is not blank: where it stands, and the line or its error."""
    for where, fields in read_objects(path):
        if isinstance(fields, DataError):
            yield where, fields
        else:
            yield where, Line(fields, where, path.parent, http=http)


def parse_all(
    lines: Iterator[tuple[str, Line | DataError]],
    parse: Callable[[Line], Parsed],
    report: Report | None,
) -> Iterator[tuple[Parsed, Line]]:
    """Every line parsed, one by one, and the line itself.

    Args:
        lines: From `read_lines`.
        parse: Makes one thing of one line.
        report: Gets the error of a wrong line, which is then skipped; None raises it.

    Raises:
        DataError: A wrong line, or one with the id of an earlier line.
    """
    first: dict[str, str] = {}
    for _, line in lines:
        try:
            if isinstance(line, DataError):
                raise line
            parsed = parse(line)
            _check_new(parsed, line, first)
        except DataError as error:
            if report is None:
                raise
            report(error)
            continue
        yield parsed, line


def _check_new(parsed: Any, line: Line, first: dict[str, str]) -> None:
    """Refuse an id that an earlier line has: tables join on it."""
    if parsed.id in first:
        given = "" if "id" in line.fields else " (its number, since it gives none)"
        raise line.error(
            "id",
            f"{parsed.id!r}{given} is the id of {first[parsed.id]} already; give each line an id "
            "of its own, or none to any.",
        )
    first[parsed.id] = line.where


@lru_cache(maxsize=1 << 16)
def _opened(path: str, _changed: int, _bytes: int) -> tuple[tuple[int, int], str]:
    """Size and pixel hash of a file; kept, since many questions are asked about one image."""
    image = open_image(path)
    return image.size, pixel_digest(image)


def _kept(value: Any, image: Any) -> ImageSource:
    """What stands for an image in memory: its bytes where it has some, else its pixels."""
    if isinstance(value, str) and value[:4].lower() == "http":
        return image
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
