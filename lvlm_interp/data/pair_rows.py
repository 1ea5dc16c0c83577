"""Rows that users have, read as examples: a question with its label, or a caption with its error.

A question row is in the manner of POPE: `image`, `text` or `question`, `label` or `answer`, and
`box`. A caption row holds what a model said, `caption`, and the `word` in it that is wrong: the
place of that word becomes the position that is asked for, the wrong word the foil, and the first
fitting one of the `candidates` the right answer.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_interp.data.examples import Example
from lvlm_interp.errors import DataError

__all__ = ["read_row", "read_rows"]

_NEGATION = {"yes": "no", "no": "yes"}


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a JSONL file; images are looked for beside the file.

    Raises:
        DataError: No such file, or a line that is no JSON object; its number is named.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of rows (JSONL, one object a line).")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: it is no JSON ({error.msg}).") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected an object, found {line[:40]!r}.")
        if isinstance(row.get("image"), str):
            row["image"] = str(path.parent / row["image"])
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: it holds no row.")
    return rows


def read_row(
    row: Example | Mapping[str, Any], index: int, box: str, candidates: Sequence[str]
) -> Example:
    """One row as an example with an answer, a foil and an image.

    Args:
        row: See above.
        index: Its number, which names it where it gives no id.
        box: Name of the box that `box` holds.
        candidates: Of caption rows that have none of their own.

    Raises:
        DataError: The row lacks what it needs; it is named.
    """
    if isinstance(row, Example):
        name, example = row.id, row
    else:
        name = str(row.get("id", row.get("question_id", index)))
        said = _at_word(row, name, candidates) if "caption" in row else {}
        example = _from_mapping({**row, **said}, name, box)
    if example.answer is None:
        raise DataError(f"Row {name!r}: expected an answer ('answer' or 'label'), found none.")
    foil = example.foil or _NEGATION.get(example.answer.lower())
    if foil is None or example.image is None:
        what = "a foil (only yes and no have one of their own)" if foil is None else "an image"
        raise DataError(f"Row {name!r}: expected {what}, found none.")
    return Example(**{**vars(example), "foil": foil})


def _at_word(row: Mapping[str, Any], name: str, general: Sequence[str]) -> dict[str, Any]:
    """Answer, foil and begun reply of a caption row."""
    caption, word = row["caption"], row.get("word")
    if not isinstance(caption, str) or not isinstance(word, str) or not word.strip():
        raise DataError(f"Row {name!r}: a 'caption' needs the 'word' in it that is wrong.")
    found = _place(word, caption)
    if found is None:
        raise DataError(f"Row {name!r}: the word {word!r} is not in the caption {caption!r}.")
    reply = caption[:found].rstrip()
    candidates = row.get("candidates") or general
    if isinstance(candidates, str) or not candidates:
        raise DataError(
            f"Row {name!r}: expected 'candidates', a list of words that could stand in place of "
            f"{word!r}."
        )
    # A caption names each thing once, so what it has named already does not fit here.
    fitting = [
        each for each in candidates if each.lower() != word.lower() and _place(each, reply) is None
    ]
    if not fitting:
        raise DataError(
            f"Row {name!r}: none of the candidates {', '.join(candidates)} fits in place of "
            f"{word!r}: each is that word, or is named before it."
        )
    return {"answer": fitting[0], "foil": word, "reply": reply}


def _place(word: str, text: str) -> int | None:
    found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
    return None if found is None else found.start()


def _from_mapping(row: Mapping[str, Any], name: str, box: str) -> Example:
    prompt = row.get("text", row.get("question"))
    if "image" not in row or prompt is None:
        raise DataError(f"Row {name!r}: expected 'image' and 'text' (or 'question').")
    boxes = dict(row.get("boxes") or {})
    if row.get("box") is not None:
        boxes[box] = tuple(row["box"])
    image = row["image"]
    try:
        return Example(
            id=name,
            image=Path(image) if isinstance(image, str) else image,
            prompt=prompt,
            answer=row.get("answer", row.get("label")),
            foil=row.get("foil"),
            level=row.get("level", "object"),
            group=str(image) if isinstance(image, str) else row.get("group"),
            boxes=boxes,
            reply=row.get("reply", ""),
        )
    except ValueError as error:
        raise DataError(f"Row {name!r}: {error}") from error
