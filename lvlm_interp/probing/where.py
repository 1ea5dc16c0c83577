"""Conditions on labels as text, by a grammar of their own: a file can name columns, never run code.

The grammar::

    condition  := all ("or" all)*                     also |
    all        := one ("and" one)*                    also &
    one        := "not" one | "(" condition ")" | compared
    compared   := value (("==" | "!=" | "<" | "<=" | ">" | ">=") value)*
                | value ["not"] "in" "[" literal ("," literal)* "]"
                | column                              of true and false
    value      := column | literal
    literal    := 'text' | "text" | number | True | False | None
    column     := a name, or any text between backticks

A comparison of what cannot be compared (a missing value, a text with a number) is false, and `!=`
is the opposite of `==`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lvlm_interp.errors import UsageError

__all__ = ["mask_of"]

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?!\w))
    | (?P<text>'(?:[^'\\]|\\['\\])*'|"(?:[^"\\]|\\["\\])*")
    | (?P<quoted>`[^`]+`)
    | (?P<word>[^\W\d]\w*)
    | (?P<sign>==|!=|<=|>=|<|>|&|\||~|[()\[\],])
    )""",
    re.VERBOSE,
)
_LITERALS = {"True": True, "False": False, "true": True, "false": False, "None": None}
_WORDS = {"and": "and", "&": "and", "or": "or", "|": "or", "not": "not", "~": "not", "in": "in"}
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_LONGEST, _DEEPEST = 10_000, 50


def mask_of(frame: pd.DataFrame, where: str | None) -> np.ndarray:
    """Which rows meet a condition; all of them without one.

    Args:
        frame: Labels, one row per example.
        where: See the module, for example `color in ['red', 'blue'] and n_objects < 4`.

    Raises:
        UsageError: It is no condition on these columns.
    """
    if where is None:
        return np.ones(len(frame), dtype=bool)
    if len(where) > _LONGEST:
        raise UsageError(f"where is longer than {_LONGEST} characters.")
    try:
        return _Reader(frame, list(_tokens(where))).read()
    except _Wrong as error:
        raise UsageError(
            f"where={where!r} is no condition on the labels ({error}); write such as color == "
            f"'red' and n_objects < 4 with the labels {', '.join(map(str, frame.columns))}."
        ) from error


class _Wrong(Exception):
    """What does not fit the grammar."""


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str


@dataclass(frozen=True)
class _Value:
    """One value per row, or the same for all."""

    values: Any
    column: str | None = None

    def rows(self, n: int) -> list[Any]:
        return list(self.values) if self.column is not None else [self.values] * n


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text.rstrip()):
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise _Wrong(f"{text[at:].strip()[:20]!r} is no part of one")
        kind, word = found.lastgroup, found.group(found.lastgroup)
        if word in _WORDS and kind in ("word", "sign"):
            yield _Token("operator", _WORDS[word])
        else:
            yield _Token(kind, word)
        at = found.end()


class _Reader:
    """Reads the grammar from left to right and works it out over the rows at once."""

    def __init__(self, frame: pd.DataFrame, tokens: list[_Token]) -> None:
        self.frame, self.tokens, self.depth = frame, tokens, 0

    def read(self) -> np.ndarray:
        found = self._condition()
        if self.tokens:
            raise _Wrong(f"unexpected {self.tokens[0].text!r}")
        return found

    def _condition(self) -> np.ndarray:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _Wrong(f"more than {_DEEPEST} brackets in each other")
        found = self._all()
        while self._takes("operator", "or"):
            found = self._all() | found
        self.depth -= 1
        return found

    def _all(self) -> np.ndarray:
        found = self._one()
        while self._takes("operator", "and"):
            found = self._one() & found
        return found

    def _one(self) -> np.ndarray:
        turned = False
        while self._takes("operator", "not"):
            turned = not turned
        if self._takes("sign", "("):
            found = self._condition()
            self._needs(")")
        else:
            found = self._compared()
        return ~found if turned else found

    def _compared(self) -> np.ndarray:
        first, found = self._value(), None
        while self.tokens and self.tokens[0].text in _COMPARED and self.tokens[0].kind == "sign":
            sign, second = self.tokens.pop(0).text, self._value()
            now = self._compare(sign, first, second)
            found, first = now if found is None else found & now, second
        if found is not None:
            return found
        turned = self._takes("operator", "not")
        if self._takes("operator", "in"):
            allowed = self._list()
            known = [any(_equal(each, one) for one in allowed) for each in self._rows(first)]
            return np.array(known, bool) ^ turned
        if turned or first.column is None:
            raise _Wrong("it compares nothing")
        return self._truth(first)

    def _compare(self, sign: str, first: _Value, second: _Value) -> np.ndarray:
        pairs = zip(self._rows(first), self._rows(second), strict=True)
        if sign in ("==", "!="):
            return np.array([_equal(a, b) == (sign == "==") for a, b in pairs], bool)
        return np.array([_ordered(_COMPARED[sign], a, b) for a, b in pairs], bool)

    def _truth(self, value: _Value) -> np.ndarray:
        rows = self._rows(value)
        if not all(isinstance(each, bool | np.bool_) or _missing(each) for each in rows):
            raise _Wrong(f"the label {value.column!r} is not true or false; compare it")
        return np.array([not _missing(each) and bool(each) for each in rows], bool)

    def _rows(self, value: _Value) -> list[Any]:
        return value.rows(len(self.frame))

    def _list(self) -> list[Any]:
        closing = ")" if self._takes("sign", "(") else "]"
        if closing == "]":
            self._needs("[")
        found: list[Any] = []
        while not self._takes("sign", closing):
            if found:
                self._needs(",")
            value = self._value()
            if value.column is not None:
                raise _Wrong(f"a list holds texts and numbers, not the label {value.column!r}")
            found.append(value.values)
        return found

    def _value(self) -> _Value:
        if not self.tokens:
            raise _Wrong("it ends too early")
        token = self.tokens.pop(0)
        if token.kind == "number":
            whole = re.fullmatch(r"-?\d{1,18}", token.text)
            return _Value(int(token.text) if whole else float(token.text))
        if token.kind == "text":
            return _Value(re.sub(r"\\(.)", r"\1", token.text[1:-1]))
        if token.kind == "quoted":
            return self._column(token.text[1:-1])
        if token.kind == "word" and token.text in self.frame.columns:
            return self._column(token.text)
        if token.kind == "word" and token.text in _LITERALS:
            return _Value(_LITERALS[token.text])
        if token.kind == "word":
            return self._column(token.text)
        raise _Wrong(f"unexpected {token.text!r}")

    def _column(self, name: str) -> _Value:
        if name not in self.frame.columns:
            raise _Wrong(f"there is no label {name!r}")
        return _Value(self.frame[name].tolist(), name)

    def _takes(self, kind: str, text: str) -> bool:
        if self.tokens and self.tokens[0] == _Token(kind, text):
            self.tokens.pop(0)
            return True
        return False

    def _needs(self, text: str) -> None:
        if not self._takes("sign", text):
            got = repr(self.tokens[0].text) if self.tokens else "the end"
            raise _Wrong(f"expected {text!r}, got {got}")


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or value != value


def _equal(first: Any, second: Any) -> bool:
    if _missing(first) or _missing(second):
        return _missing(first) and _missing(second) and (first is None or second is None)
    return bool(first == second)


def _ordered(compare: Callable[[Any, Any], bool], first: Any, second: Any) -> bool:
    if _missing(first) or _missing(second) or isinstance(first, str) != isinstance(second, str):
        return False
    return bool(compare(first, second))
