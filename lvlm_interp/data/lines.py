"""Lines of a user's data file: checked field by field, each error with its line number."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

from lvlm_interp.data.examples import KINDS, LEVELS, ContrastPair, Example
from lvlm_interp.errors import DataError

PAIR_FIELDS: dict[str, bool] = {
    **dict.fromkeys(("clean", "corrupt", "prompt", "answer", "foil", "level"), True),
    **dict.fromkeys(("corrupt_prompt", "box", "group", "kind", "id", "edit", "labels"), False),
}
"""Fields of a line of `pairs.jsonl`, and whether each is needed."""

EXAMPLE_FIELDS: dict[str, bool] = {
    **dict.fromkeys(("image", "prompt"), True),
    **dict.fromkeys(("id", "answer", "foil", "level", "group", "labels", "boxes"), False),
}
"""Fields of a line of an examples file, and whether each is needed."""

Report = Callable[[DataError], None]
Parsed = TypeVar("Parsed", ContrastPair, Example)


class Line:
    """One record with its origin, whose fields are read with checks.

    Attributes:
        fields: The record.
        where: What to call it in an error: the path and the line number.
        folder: What relative image paths are relative to.
    """

    def __init__(self, fields: Mapping[str, Any], where: str, folder: Path) -> None:
        self.fields, self.where, self.folder = fields, where, folder

    def check_names(self, known: Mapping[str, bool]) -> None:
        """Raise DataError for a field that is unknown, or one that is needed and missing."""
        for name in self.fields:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = (
                    f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(known)}."
                )
                raise self.error(name, f"there is no such field; {hint}")
        for name, needed in known.items():
            if needed and self.fields.get(name) is None:
                raise self.error(name, "it is missing; every line needs it.")

    def text(self, name: str) -> str | None:
        """A text that is not blank, or None where the field is absent."""
        value = self.fields.get(name)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise self.error(name, f"expected a text that is not blank, got {value!r}.")
        return value

    def words(self, name: str) -> str:
        """A text that the line needs."""
        value = self.text(name)
        if value is None:
            raise self.error(name, "it is missing; every line needs it.")
        return value

    def name(self, name: str, default: str) -> str:
        """A text or a number that names something, as text."""
        value = self.fields.get(name)
        if isinstance(value, bool | list | dict | float):
            raise self.error(name, f"expected a text or a whole number, got {value!r}.")
        return default if value is None else str(value)

    def member(self, name: str, allowed: Collection[str], default: str | None = None) -> str | None:
        """One of a few words."""
        value = self.fields.get(name, default)
        if value is not None and value not in allowed:
            raise self.error(name, f"expected one of {', '.join(allowed)}, got {value!r}.")
        return value

    def image(self, name: str) -> Path | Image.Image:
        """The path of an image that can be read, or an image that is in the record."""
        value = self.fields.get(name)
        if isinstance(value, Image.Image):
            return value
        path = self.folder / self.words(name)
        if not path.is_file():
            raise self.error(
                name, f"there is no image file {path}; paths are relative to {self.folder}."
            )
        try:
            with Image.open(path) as image:
                image.verify()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise self.error(
                name, f"{path} is not an image that Pillow can read; replace the file."
            ) from error
        return path

    def box(self, name: str, value: Any = None) -> tuple[int, int, int, int] | None:
        """Left, top, right, bottom in pixels, or None where the field is absent."""
        value = self.fields.get(name) if value is None else value
        if value is None:
            return None
        shape = "[left, top, right, bottom] in pixels with left < right and top < bottom"
        if not (
            isinstance(value, list | tuple)
            and len(value) == 4
            and all(isinstance(side, int | float) and not isinstance(side, bool) for side in value)
        ):
            raise self.error(name, f"expected {shape}, got {value!r}.")
        left, top, right, bottom = (round(side) for side in value)
        if not (0 <= left < right and 0 <= top < bottom):
            raise self.error(name, f"expected {shape}, got {value!r}.")
        return left, top, right, bottom

    def mapping(self, name: str) -> dict[str, Any]:
        """A mapping from names, empty where the field is absent."""
        value = self.fields.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(name, f"expected a mapping such as {{...}}, got {value!r}.")
        return dict(value)

    def error(self, field: str, why: str) -> DataError:
        """The error of a field of this line."""
        return DataError(f"{self.where}, field {field!r}: {why}")


def read_lines(path: Path) -> Iterator[tuple[str, Line | DataError]]:
    """Each line of a JSONL file that is not blank: where it stands, and the line or its error."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            where = f"{path}, line {number}"
            try:
                fields = json.loads(raw.decode("utf-8"))
            except UnicodeDecodeError:
                yield where, DataError(f"{where}: it is not UTF-8 text; save the file as UTF-8.")
                continue
            except json.JSONDecodeError as error:
                why = f"it is not valid JSON ({error.msg} at column {error.colno})"
                yield where, DataError(f"{where}: {why}; write one JSON object per line.")
                continue
            if not isinstance(fields, dict):
                got = type(fields).__name__
                yield where, DataError(f"{where}: expected a JSON object {{...}}, got a {got}.")
                continue
            yield where, Line(fields, where, path.parent)


def parse_all(
    lines: Iterator[tuple[str, Line | DataError]],
    parse: Callable[[Line], Parsed],
    report: Report | None,
) -> tuple[list[Parsed], list[str]]:
    """Every line parsed, and where each stood.

    Args:
        lines: From `read_lines`.
        parse: Makes one thing of one line.
        report: Gets the error of a wrong line, which is then skipped; None raises it.

    Raises:
        DataError: A wrong line, or one with the id of an earlier line.
    """
    found: list[Parsed] = []
    origins: list[str] = []
    first: dict[str, str] = {}
    for where, line in lines:
        try:
            if isinstance(line, DataError):
                raise line
            parsed = parse(line)
            _check_new(parsed, line, first)
            found.append(parsed)
            origins.append(where)
        except DataError as error:
            if report is None:
                raise
            report(error)
    return found, origins


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


def parse_pair(line: Line) -> ContrastPair:
    """One line of a pairs file.

    Raises:
        DataError: A field is unknown, missing or wrong.
    """
    line.check_names(PAIR_FIELDS)
    answer, foil = line.words("answer"), line.words("foil")
    if answer == foil:
        raise line.error("foil", f"it must differ from the answer; both are {answer!r}.")
    level, kind = line.member("level", LEVELS), line.member("kind", KINDS, "evidence")
    assert level is not None and kind is not None
    name = line.name("id", line.where.rpartition(" ")[2])
    group = line.name("group", str(line.fields["clean"]))
    box, prompt = line.box("box"), line.words("prompt")
    common = {"level": level, "group": group, "boxes": {"object": box} if box else {}}
    labels = line.mapping("labels")
    truth = foil if kind == "evidence" else answer
    sides = {
        "clean": (prompt, answer, foil),
        "corrupt": (
            line.text("corrupt_prompt") or prompt,
            truth,
            answer if truth == foil else foil,
        ),
    }
    examples = {
        side: Example(
            f"{name}/{side}",
            line.image(side),
            words,
            right,
            wrong,
            labels=labels | {"truth": right},
            **common,
        )
        for side, (words, right, wrong) in sides.items()
    }
    return ContrastPair(
        name, **examples, answer=answer, foil=foil, level=level, kind=kind,
        edit=line.text("edit") or "", box=box, group=group, labels=labels,
    )  # fmt: skip


def parse_example(line: Line) -> Example:
    """One line of an examples file.

    Raises:
        DataError: A field is unknown, missing or wrong.
    """
    line.check_names(EXAMPLE_FIELDS)
    answer, foil = line.text("answer"), line.text("foil")
    if answer is not None and answer == foil:
        raise line.error("foil", f"it must differ from the answer; both are {answer!r}.")
    image = line.image("image")
    boxes = {name: line.box("boxes", box) for name, box in line.mapping("boxes").items() if box}
    labels = line.mapping("labels")
    return Example(
        id=line.name("id", line.where.rpartition(" ")[2]),
        image=image,
        prompt=line.words("prompt"),
        answer=answer,
        foil=foil,
        level=line.member("level", LEVELS),
        group=line.name("group", str(image) if isinstance(image, Path) else line.where),
        boxes={name: box for name, box in boxes.items() if box is not None},
        labels=labels if answer is None else {"truth": answer} | labels,
    )
