"""How generated pairs are named on a command line: `NAME:LEVEL:N:SEED`, and `:KIND` behind it."""

from __future__ import annotations

from collections.abc import Callable

from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import DataError

Generator = Callable[[str, int, int, str | None], list[ContrastPair]]
"""Makes pairs from level, number, seed and kind."""


def load_named(spec: str, name: str, generate: Generator) -> list[ContrastPair]:
    """The pairs that a text names.

    Args:
        spec: The whole text.
        name: What it begins with.
        generate: Makes the pairs.

    Raises:
        DataError: The text names no pairs; the message says which part is wrong.
    """
    parts = spec.split(":")
    form = f"{name}:LEVEL:N:SEED or {name}:LEVEL:N:SEED:KIND"
    if parts[0] != name or len(parts) not in (4, 5):
        raise DataError(f"{spec!r} is not of the form {form}, such as {name}:object:200:0")
    numbers = []
    for part, text, least in (("N", parts[2], 1), ("SEED", parts[3], 0)):
        if not text.isdecimal() or int(text) < least:
            raise DataError(f"{spec!r}: {part} must be a whole number from {least}, got {text!r}")
        numbers.append(int(text))
    try:
        return generate(parts[1], numbers[0], numbers[1], parts[4] if len(parts) == 5 else None)
    except DataError as error:
        raise DataError(f"{spec!r}: {error}") from error
