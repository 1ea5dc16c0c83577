"""JSON lines as a stream: one object a line, each either read whole or refused with its line.

Stricter than `json.loads` where that would mis-read: a name that occurs twice, NaN and infinity,
numbers that no machine number holds and half characters are refused by field. Lines end at a line
feed alone, so that U+2028 and U+0085 stay inside their texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lvlm_interp.errors import DataError

__all__ = ["read_objects"]

_BOM = b"\xef\xbb\xbf"
_LONGEST = 64 << 20
_DEEPEST = 64
_FOREIGN = {
    b"\x1f\x8b": "is compressed by gzip; unpack it first.",
    b"PK\x03\x04": "is a zip archive; unpack it first.",
    b"BZh": "is compressed by bzip2; unpack it first.",
    b"\xfd7zXZ": "is compressed by xz; unpack it first.",
    b"(\xb5/\xfd": "is compressed by zstd; unpack it first.",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8.",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8.",
    b"PAR1": "is a parquet file; write it as JSON, one object a line.",
    b"version https://git-lfs": "is a git-lfs pointer, not the data: run git lfs pull.",
}


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """Each line that is not blank: where it stands, and its object or what is wrong with it.

    One line at a time is held in memory.

    Raises:
        DataError: The file cannot be read, or is no text of lines at all.
    """
    try:
        with path.open("rb") as file:
            _check_kind(path, file.read(32))
            file.seek(0)
            number = 0
            while raw := file.readline(_LONGEST + 1):
                number += 1
                where = f"{path}, line {number}"
                if len(raw) > _LONGEST:
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(_LONGEST)
                    yield where, DataError(f"{where}: it is longer than {_LONGEST >> 20} MiB.")
                elif raw := raw.removeprefix(_BOM).strip():
                    yield where, _parse(raw, where)
    except OSError as error:
        raise DataError(f"{path}: it cannot be read ({error.strerror}).") from error


def _check_kind(path: Path, head: bytes) -> None:
    for mark, why in _FOREIGN.items():
        if head.startswith(mark):
            raise DataError(f"{path} {why}")


def _parse(raw: bytes, where: str) -> dict[str, Any] | DataError:
    parser = _Parser()
    try:
        found = parser.decode(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return DataError(f"{where}: it is not UTF-8 text; save the file as UTF-8.")
    except json.JSONDecodeError as error:
        why = f"it is not valid JSON ({error.msg} at column {error.colno})"
        return DataError(f"{where}: {why}; write one JSON object per line.")
    except RecursionError:
        return DataError(f"{where}: its lists are nested too deep; at most {_DEEPEST} levels.")
    if not isinstance(found, dict):
        got = type(found).__name__
        return DataError(f"{where}: expected a JSON object {{...}}, got a {got}.")
    if parser.twice is not None:
        return DataError(
            f"{where}, field {parser.twice!r}: it occurs twice in one object, so it is unclear "
            "which value is meant; keep one."
        )
    if parser.odd or b"\\u" in raw or raw.count(b"[") + raw.count(b"{") > _DEEPEST:
        return _check_values(found, where) or found
    return found


class _Parser:
    """The JSON decoder, with a note of what it let pass: repeated names and odd numbers."""

    def __init__(self) -> None:
        self.twice: str | None = None
        self.odd = False

    def decode(self, text: str) -> Any:
        return json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
            parse_int=self._int,
        ).decode(text)

    def _object(self, items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) < len(items) and self.twice is None:
            names = [name for name, _ in items]
            self.twice = next(name for name in names if names.count(name) > 1)
        return found

    def _constant(self, text: str) -> float:
        self.odd = True
        return math.nan if text == "NaN" else float(text)

    def _float(self, text: str) -> float:
        value = float(text)
        self.odd = self.odd or math.isinf(value)
        return value

    def _int(self, text: str) -> int | float:
        if len(text) <= 18:
            return int(text)
        # Beyond 64 bits tables and tensors cannot hold it, and Python refuses thousands of digits.
        self.odd = True
        return math.inf if text[0] != "-" else -math.inf


def _check_values(fields: Mapping[str, Any], where: str) -> DataError | None:
    """The error of the first field that holds what no table and no file can hold."""
    for name, value in fields.items():
        why = _why_not(name) or _why_not(value)
        if why is not None:
            return DataError(f"{where}, field {name!r}: {why}")
    return None


def _why_not(value: Any, depth: int = 1) -> str | None:
    if depth > _DEEPEST:
        return f"it is nested too deep; at most {_DEEPEST} levels."
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return "it holds half of a character (a lone surrogate); write the whole character."
    elif isinstance(value, float) and not math.isfinite(value):
        return "it holds NaN, infinity or a number beyond 64 bits; write a finite number."
    elif isinstance(value, list | dict):
        parts = value if isinstance(value, list) else [*value, *value.values()]
        return next((why for each in parts if (why := _why_not(each, depth + 1))), None)
    return None
