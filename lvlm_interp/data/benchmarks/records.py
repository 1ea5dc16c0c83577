"""Records of a benchmark's own file: a JSON array, JSON lines (CRLF or not), or a table."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_interp.errors import DataError

__all__ = ["Record", "Report", "one_file", "read_json", "read_records", "read_text"]

Report = Callable[[DataError], None]
"""Gets the error of a record that is left out."""

_FOREIGN = (".xlsx", ".xls", ".pkl", ".pickle", ".parquet")
_TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Record:
    """One record and where it stands.

    Attributes:
        fields: What it says.
        where: Path and line, or path and number, for an error.
    """

    fields: Mapping[str, Any]
    where: str

    def text(self, *names: str) -> str:
        """The first of these fields as text.

        Raises:
            DataError: None of them is there, or it is neither text nor a number.
        """
        for name in names:
            value = self.fields.get(name)
            if value is not None:
                return self._as_text(name, value)
        raise DataError(
            f"{self.where}: expected a field {' or '.join(map(repr, names))}, got "
            f"{', '.join(map(str, self.fields)) or 'none'}."
        )

    def _as_text(self, name: str, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise DataError(
                f"{self.where}, field {name!r}: expected a text or a whole number, got {value!r}."
            )
        return str(value)


def read_records(path: str | os.PathLike[str], *, report: Report | None = None) -> list[Record]:
    """All records of a file.

    A file whose first character is `[` is one JSON array; `.csv` and `.tsv` are tables with a
    header; everything else is JSON lines, blank lines left out, with either end of line.

    Args:
        path: The file.
        report: Gets the error of a line that is no JSON object, which is then left out; None
            raises it.

    Raises:
        DataError: No such file, no UTF-8, no JSON, or a record that is no object.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    if path.suffix.lower() in _FOREIGN:
        raise DataError(f"{path}: a {path.suffix} file is not read; save it as .tsv or JSON lines.")
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if path.suffix in _TABLES:
        return _table(path, raw)
    if raw.lstrip()[:1] == b"[":
        return _array(path, raw, report)
    return _lines(path, raw, report)


def read_json(path: str | os.PathLike[str]) -> Any:
    """A file that is one JSON value.

    Raises:
        DataError: No such file, or not JSON in UTF-8.
    """
    path = Path(path)
    try:
        return json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: it is not valid JSON in UTF-8 ({error}).") from error


def read_text(path: str | os.PathLike[str]) -> str:
    """A file of UTF-8 text.

    Raises:
        DataError: No such file, or other bytes.
    """
    try:
        return Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"{path}: it cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: it is not UTF-8 text; save the file as UTF-8.") from error


def one_file(folder: str | os.PathLike[str], *patterns: str) -> Path:
    """The one file of a folder that fits the first pattern that any file fits.

    Args:
        folder: A folder, looked through with everything below it; or the file itself.
        patterns: Globs, the best first.

    Raises:
        DataError: None fits, or several do.
    """
    root = Path(folder)
    if root.is_file():
        return root
    for pattern in patterns:
        found = sorted(path for path in root.rglob(pattern) if path.is_file())
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(root)) for path in found[:4])
            raise DataError(
                f"{root}: expected one file {pattern}, found {len(found)} ({names}); give the path "
                "of one of them."
            )
        if found:
            return found[0]
    raise DataError(f"{root}: expected a file {' or '.join(patterns)}, found none.")


def _array(path: Path, raw: bytes, report: Report | None) -> list[Record]:
    try:
        values = json.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        # Lines that happen to begin with a bracket are lines all the same.
        if b"\n" in raw.strip() and report is not None:
            return _lines(path, raw, report)
        raise DataError(f"{path}: it is no JSON array in UTF-8 ({error}).") from error
    if not isinstance(values, list):
        raise DataError(f"{path}: expected a JSON array, got a {type(values).__name__}.")
    found = []
    for number, value in enumerate(values, 1):
        where = f"{path}, record {number}"
        if isinstance(value, dict):
            found.append(Record(value, where))
        else:
            _refuse(f"{where}: expected an object, got a {type(value).__name__}.", report)
    return found


def _lines(path: Path, raw: bytes, report: Report | None) -> list[Record]:
    found = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            _refuse(f"{where}: it is not UTF-8 text; save the file as UTF-8.", report)
            continue
        except (ValueError, RecursionError) as error:
            _refuse(f"{where}: it is no JSON ({error}); write one object per line.", report)
            continue
        if isinstance(value, dict):
            found.append(Record(value, where))
        else:
            _refuse(f"{where}: expected an object, got a {type(value).__name__}.", report)
    return found


def _table(path: Path, raw: bytes) -> list[Record]:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: it is not UTF-8 text; save the file as UTF-8.") from error
    csv.field_size_limit(1 << 30)  # VLMEvalKit keeps whole images in a cell
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=_TABLES[path.suffix])
    return [
        Record({name: value for name, value in row.items() if name}, f"{path}, row {number}")
        for number, row in enumerate(rows, 1)
    ]


def _refuse(message: str, report: Report | None) -> None:
    error = DataError(message)
    if report is None:
        raise error
    report(error)
