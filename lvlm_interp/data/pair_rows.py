"""Rows to make pairs of: a question with its answer, or a caption with its error.

A question row is what `rows.jsonl` holds. A caption row holds what a model said, `caption`, and the
`word` in it that is wrong: the place of that word becomes the position that is asked for, the wrong
word the foil, and the first fitting one of the `candidates` the right answer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lvlm_interp.data.answers import negation, same_answer
from lvlm_interp.data.examples import Example
from lvlm_interp.data.lines import Line, read_lines
from lvlm_interp.data.rows import parse_example
from lvlm_interp.errors import DataError

__all__ = ["Row", "parse_row", "rows_of", "with_foil"]

Row = Example | Mapping[str, Any]


def rows_of(
    rows: Sequence[Row] | str | os.PathLike[str],
) -> Iterator[tuple[str, Line | Example | DataError]]:
    """Each row: what to call it, and its line, or the example that it is already.

    Raises:
        DataError: There is no such file, or no row.
    """
    if isinstance(rows, str | os.PathLike):
        path = Path(rows)
        if not os.path.isfile(path):
            raise DataError(f"{path}: there is no such file of rows (JSONL, one object a line).")
        yield from read_lines(path)
        return
    for index, row in enumerate(rows):
        if isinstance(row, Example):
            yield f"Row {row.id!r}", row
            continue
        if not isinstance(row, Mapping):
            yield (
                f"Row {index}",
                DataError(f"Row {index} (from 0): expected a mapping or an Example, got {row!r}."),
            )
            continue
        named = dict(row)
        if named.get("id") is None and named.get("question_id") is None:
            named["id"] = index
        where = f"Row {str(named['id'] if named.get('id') is not None else named['question_id'])!r}"
        yield where, Line(named, where, Path())


def parse_row(line: Line, box: str, candidates: Sequence[str]) -> Example:
    """One row as an example.

    Args:
        line: Of `rows.jsonl`, or a caption row.
        box: Name of the box that `box` holds.
        candidates: Of caption rows that have none of their own.

    Raises:
        DataError: A field is unknown, missing or wrong.
    """
    if "caption" in line.fields:
        line.fields = _at_word(line, candidates)
    example = parse_example(line)
    if box == "object" or line.fields.get("box") is None:
        return example
    boxes = {box if name == "object" else name: each for name, each in example.boxes.items()}
    return replace(example, boxes=boxes)


def with_foil(example: Example, where: str) -> Example:
    """The same example, with both answers and an image.

    Raises:
        DataError: It lacks one of them.
    """
    if example.answer is None:
        raise DataError(f"{where}: expected an answer ('answer' or 'label'), found none.")
    foil = example.foil or negation(example.answer)
    if foil is None or not example.images:
        what = "a foil (only yes and no have one of their own)" if foil is None else "an image"
        raise DataError(f"{where}: expected {what}, found none.")
    return replace(example, foil=foil)


def _at_word(line: Line, general: Sequence[str]) -> dict[str, Any]:
    """The fields of a question row that asks at the wrong word of a caption."""
    row = dict(line.fields)
    caption, word = row.pop("caption"), row.pop("word", None)
    own = row.pop("candidates", None)
    for name in ("answer", "label", "foil", "reply"):
        if row.get(name) is not None:
            raise line.error(
                name, "a row with a 'caption' takes it from the caption; leave it out."
            )
    if not isinstance(caption, str) or not isinstance(word, str) or not word.strip():
        raise line.error("word", "a 'caption' needs the 'word' in it that is wrong.")
    found = _place(word, caption)
    if found is None:
        raise line.error("word", f"{word!r} is not in the caption {caption!r}.")
    reply, candidates = caption[:found].rstrip(), own or general
    if isinstance(candidates, str) or not all(isinstance(each, str) for each in candidates):
        raise line.error("candidates", f"expected a list of words, got {candidates!r}.")
    if not candidates:
        raise line.error(
            "candidates",
            f"expected 'candidates', a list of words that could stand in place of {word!r}.",
        )
    # A caption names each thing once, so what it has named already does not fit here.
    fitting = [
        each for each in candidates if not same_answer(each, word) and _place(each, reply) is None
    ]
    if not fitting:
        raise line.error(
            "candidates",
            f"none of the candidates {', '.join(candidates)} fits in place of {word!r}: each is "
            "that word, or is named before it.",
        )
    return {**row, "answer": fitting[0], "foil": word, "reply": reply or None}


def _place(word: str, text: str) -> int | None:
    found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
    return None if found is None else found.start()
