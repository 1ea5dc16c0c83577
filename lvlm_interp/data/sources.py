"""Where data comes from: generated scenes, pairs and rows files, folders, benchmarks, data sets.

A source is one text, as the command line takes it:

- `scenes:LEVEL:N:SEED`, or whatever else a package registers under the entry-point group
  `lvlm_interp.data`: a name, then a colon; the registered function gets the whole
  text and gives pairs;
- a `pairs.jsonl`, one `ContrastPair` a line;
- a `rows.jsonl`, one `Example` a line (POPE's files are such), or a folder that holds one;
- `pope:FOLDER`, the folder of a benchmark as its authors give it;
- a folder that `datasets.Dataset.save_to_disk` wrote, with the same columns.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lvlm_interp.data.checks import check_pairs
from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.data.groups import with_groups
from lvlm_interp.data.lines import Line, Report, parse_all, read_lines
from lvlm_interp.data.rows import EXAMPLE_FIELDS, PAIR_FIELDS, parse_example, parse_pair
from lvlm_interp.errors import DataError
from lvlm_interp.models.inputs.images import open_image

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM

__all__ = ["data_hash", "example_hash", "load_examples", "load_pairs", "sides"]

BENCHMARKS = {"pope": "lvlm_interp.data.pope:read"}
"""Readers of `NAME:FOLDER`: each takes the folder and `http`, and gives lines of rows."""

_GROUP = "lvlm_interp.data"
_log = logging.getLogger(__name__)


def load_pairs(
    spec: str | os.PathLike[str],
    *,
    model: LVLM | None = None,
    skip_bad: bool = False,
    report: Report | None = None,
    http: bool = False,
) -> list[ContrastPair]:
    """Contrast pairs from a source.

    Args:
        spec: `scenes:LEVEL:N:SEED` or the path of a pairs file.
        model: Also check that its tokenizer tells each answer from its foil and gives both sides
            of a pair the same length.
        skip_bad: Leave wrong lines out instead of raising.
        report: Gets the error of each line left out; by default it is logged as a warning.
        http: Fetch images whose path is a network address.

    Raises:
        DataError: No such source, or a wrong line: its path, number and field, and what to do.
    """
    report = (report or _warn) if skip_bad else None
    generated = _generated(str(spec))
    if generated is not None:
        pairs, origins = generated, [str(pair.id) for pair in generated]
    else:
        path = _existing(spec)
        if not path.is_file():
            raise DataError(f"{path}: expected a pairs file (JSONL), got a folder.")
        pairs, origins = _read(read_lines(path, http=http), parse_pair, report)
        _check_some(pairs, path)
    return pairs if model is None else check_pairs(model, pairs, origins=origins, report=report)


def load_examples(
    spec: str | os.PathLike[str],
    *,
    skip_bad: bool = False,
    report: Report | None = None,
    http: bool = False,
) -> list[Example]:
    """Examples from a source; of pairs, both sides one after the other.

    Args:
        spec: See the module: scenes, a pairs or rows file, a folder, a benchmark.
        skip_bad: Leave wrong lines out instead of raising.
        report: Gets the error of each line left out; by default it is logged as a warning.
        http: Fetch images whose path is a network address.

    Raises:
        DataError: No such source, or a wrong line: its path, number and field, and what to do.
    """
    report = (report or _warn) if skip_bad else None
    generated = _generated(str(spec))
    if generated is not None:
        return sides(generated)
    benchmark = _benchmark(str(spec))
    if benchmark is not None:
        folder, read = benchmark
        return _check_some(_read(read(folder, http), parse_example, report)[0], folder)
    path = _existing(spec)
    if path.is_dir() and (path / "dataset_info.json").is_file():
        return _check_some(_read(_dataset_lines(path), parse_example, report)[0], path)
    path = _jsonl_of(path)
    if _holds_pairs(path):
        pairs, _ = _read(read_lines(path, http=http), parse_pair, report)
        return sides(_check_some(pairs, path))
    return _check_some(_read(read_lines(path, http=http), parse_example, report)[0], path)


def sides(pairs: Iterable[ContrastPair]) -> list[Example]:
    """Clean and corrupt side of each pair, one after the other."""
    return [side for pair in pairs for side in (pair.clean, pair.corrupt)]


def data_hash(items: Iterable[Example | ContrastPair]) -> str:
    """SHA-256 of the content of data, in order: pixels, words, boxes and labels.

    A path and an image in memory with the same pixels hash alike.
    """
    digest = sha256()
    for item in items:
        if isinstance(item, ContrastPair):
            text = [item.id, item.answer, item.foil, item.level, item.kind, item.group, item.box]
            digest.update(_canonical(text))
            item_sides = (item.clean, item.corrupt)
        else:
            item_sides = (item,)
        for side in item_sides:
            digest.update(example_hash(side).encode())
    return digest.hexdigest()


def example_hash(example: Example) -> str:
    """SHA-256 of one example: pixels in RGB, words, boxes and labels."""
    digest = sha256()
    for image in example.open_images():
        digest.update(f"{image.size}".encode())
        digest.update(image.tobytes())
    fields = [example.id, example.prompt, example.answer, example.foil, example.level]
    fields += [example.group, dict(example.boxes), dict(example.labels)]
    fields += [example.reply] if example.reply else []
    if example.objects or example.relations:
        fields.append([[vars(each) for each in example.objects], list(example.relations)])
    digest.update(_canonical(fields))
    return digest.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _read(
    lines: Iterator[tuple[str, Line | DataError]],
    parse: Callable[[Line], Any],
    report: Report | None,
) -> tuple[list[Any], list[str]]:
    """Everything that the lines hold, with its groups, and where each stood."""
    found, origins, digests = [], [], []
    for parsed, line in parse_all(lines, parse, report):
        found.append(parsed)
        origins.append(line.where)
        digests.append([picture.digest for picture in line.pictures])
    return with_groups(found, digests), origins


def _warn(error: DataError) -> None:
    _log.warning("skipped: %s", error)


def _generated(spec: str) -> list[ContrastPair] | None:
    """Pairs of a registered generator; None when the text is a path."""
    name, colon, _ = spec.partition(":")
    found = {entry.name: entry for entry in entry_points(group=_GROUP)}
    if colon and name in found and not os.path.exists(spec):
        return list(found[name].load()(spec))
    return None


def _benchmark(
    spec: str,
) -> tuple[Path, Callable[[Path, bool], Iterator[tuple[str, Line | DataError]]]] | None:
    """Folder and reader of a benchmark by name; None when the text is a path."""
    name, colon, folder = spec.partition(":")
    if not colon or name not in BENCHMARKS or os.path.exists(spec):
        return None
    module, _, attribute = BENCHMARKS[name].partition(":")
    return _existing(folder), getattr(import_module(module), attribute)


def _existing(spec: str | os.PathLike[str]) -> Path:
    path = Path(spec)
    if os.path.exists(path):  # Path.exists raises on a name that is too long
        return path
    known = {entry.name for entry in entry_points(group=_GROUP)} | set(BENCHMARKS)
    names = ", ".join(f"{name}:..." for name in sorted(known))
    raise DataError(
        f"{spec}: there is no such file or folder; give one, or generated data by name "
        f"({names or 'none is registered'}), such as scenes:object:200:0."
    )


def _jsonl_of(path: Path) -> Path:
    """The JSONL file that a path or a folder means."""
    if path.is_file():
        return path
    found = sorted(path.glob("*.jsonl"))
    if len(found) != 1:
        names = ", ".join(each.name for each in found) or "none"
        raise DataError(
            f"{path}: expected a folder with one .jsonl file (or one that datasets wrote), found "
            f"{names}; give the path of the file instead."
        )
    return found[0]


def _holds_pairs(path: Path) -> bool:
    for _, line in read_lines(path):
        if isinstance(line, Line):
            return "clean" in line.fields and "image" not in line.fields
    return False


def _dataset_lines(path: Path) -> Iterator[tuple[str, Line | DataError]]:
    try:
        from datasets import Dataset, load_from_disk
        from datasets import Image as Images
    except ImportError as error:
        raise DataError(
            f"{path} is a Hugging Face data set, and the package datasets is not installed: "
            "pip install datasets."
        ) from error
    found = load_from_disk(str(path))
    if not isinstance(found, Dataset):
        splits = ", ".join(map(str, found))
        raise DataError(f"{path} holds several splits ({splits}): give the folder of one of them.")
    pictures = [name for name, kind in found.features.items() if isinstance(kind, Images)]
    for name in pictures:
        found = found.cast_column(name, Images(decode=False))
    for number in range(len(found)):
        where = f"{path}, row {number}"
        try:
            fields: Mapping[str, Any] = dict(found[number])
        except Exception as error:  # other columns fail in the decoders that datasets chose
            yield where, DataError(f"{where}: it cannot be read ({error}).")
            continue
        held = {name: _Cell(found, number, name) for name in pictures if fields[name] is not None}
        yield where, Line(_without_nulls({**fields, **held}), where, path)


@dataclass(frozen=True)
class _Cell:
    """An image of a Hugging Face data set, read from its file when it is opened."""

    dataset: Any
    row: int
    column: str

    def open_image(self) -> Image.Image:
        """The picture."""
        return open_image(self.dataset[self.row][self.column])


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    # Arrow gives every row the keys of all rows, with None where a row had none.
    return {
        name: _without_nulls(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if value is not None
    }


def _check_some(found: list[Any], path: Path) -> list[Any]:
    if not found:
        fields = ", ".join(
            name for name, needed in (PAIR_FIELDS | EXAMPLE_FIELDS).items() if needed
        )
        raise DataError(f"{path}: it holds no usable line; expected JSON objects with {fields}.")
    return found
