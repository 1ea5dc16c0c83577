"""Answers of anyone: official answer files, lmms-eval's samples, VLMEvalKit's tables, our own.

A record becomes an `Answer`: a reply, and whatever names its question (an id, a split, the
question's own words, the image). Which field is the reply depends on what else is there: in
VLMEvalKit's tables `answer` is the truth and `prediction` the reply, in POPE's `answer` is the
reply. Nothing is paired here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvlm_interp.data.benchmarks.records import Record, Report, read_records, read_text
from lvlm_interp.errors import DataError

__all__ = ["Answer", "read_answers", "read_mme_answers"]

_REPLIES = (
    "filtered_resps", "resps", "prediction", "model_prediction", "response", "reply", "caption",
    "model_answer", "output", "answer", "text", "content",
)  # fmt: skip
"""Fields that hold the reply, the surest first."""

_IDS = ("question_id", "id", "example", "index", "image_id", "idx")
_QUESTIONS = ("prompt", "question", "query", "statement")
_SPLITS = ("category", "split")


@dataclass(frozen=True)
class Answer:
    """One reply, and what names its question.

    Attributes:
        reply: What the model said.
        id: Of the question, as the file has it; None where it has none.
        row: Number of the row of the data set that a harness ran (lmms-eval's `doc_id`).
        split: Part of the benchmark, where the file says so.
        question: The question's words, where the file repeats them.
        image: Name of the image, where the file repeats it.
        truth: The right answer, where the file repeats it.
        where: File and line, for errors.
        fields: Everything the record holds.
    """

    reply: str
    id: str | None
    row: int | None
    split: str | None
    question: str | None
    image: str | None
    truth: str | None
    where: str
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)


def read_answers(
    path: str | os.PathLike[str],
    *,
    report: Report | None = None,
    reply_fields: Sequence[str] = (),
) -> list[Answer]:
    """Answers of a file.

    Args:
        path: JSON array, JSON lines, `.csv` or `.tsv`.
        report: Gets the error of a line that cannot be read, which is then left out; None raises.
        reply_fields: Fields to look for before the usual ones.

    Raises:
        DataError: No such file, a line that is no record, or a record without a reply.
    """
    found = []
    for record in _records(path, report):
        try:
            found.append(_answer(record, (*reply_fields, *_REPLIES)))
        except DataError as error:
            if report is None:
                raise
            report(error)
    if not found:
        raise DataError(f"{path}: it holds no answer; expected records with an id and a reply.")
    return found


def read_mme_answers(path: str | os.PathLike[str], *, report: Report | None = None) -> list[Answer]:
    """MME's official answers: a file `TASK.txt` of `image<TAB>question<TAB>label<TAB>answer`.

    Args:
        path: The folder of such files, or one of them; anything else is read by `read_answers`.
        report: As in `read_answers`.

    Raises:
        DataError: A line has fewer than four parts, or there is no file.
    """
    root = Path(path)
    if root.is_file() and root.suffix != ".txt":
        return read_answers(root, report=report)
    files = [root] if root.is_file() else sorted(root.glob("*.txt"))
    found = []
    for file in files:
        lines = read_text(file).split("\n")
        for number, line in enumerate(lines, 1):
            parts, where = line.split("\t", 3), f"{file}, line {number}"
            if not line.strip():
                continue
            if len(parts) < 4:
                error = DataError(f"{where}: expected image<TAB>question<TAB>label<TAB>answer.")
                if report is None:
                    raise error
                report(error)
                continue
            image, question, truth, reply = parts
            found.append(
                Answer(reply.rstrip("\r"), None, None, file.stem, question, image, truth, where)
            )
    if not found:
        raise DataError(f"{root}: expected MME's answers, a file per task such as existence.txt.")
    return found


def _records(path: str | os.PathLike[str], report: Report | None) -> Iterable[Record]:
    for record in read_records(path, report=report):
        # OpenAI's own responses, as MMHal-Bench keeps them.
        choices = record.fields.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            message = choices[0].get("message", {})
            yield Record({"content": message.get("content")}, record.where)
        else:
            yield record


def _answer(record: Record, replies: Sequence[str]) -> Answer:
    fields = _flat(record.fields)
    name = next((each for each in replies if fields.get(each) is not None), None)
    if name is None:
        raise DataError(
            f"{record.where}: expected a reply in a field such as answer, text, caption or "
            f"prediction, got {', '.join(map(str, fields)) or 'nothing'}."
        )
    reply = fields[name]
    while isinstance(reply, list) and len(reply) == 1:
        reply = reply[0]
    if not isinstance(reply, str):
        raise DataError(f"{record.where}, field {name!r}: expected a text, got {reply!r}.")
    questions = _QUESTIONS if name in ("text", "content") else (*_QUESTIONS, "text")
    truths = ("target", "label", "gt_answer", "ground_truth")
    return Answer(
        reply=reply,
        id=_name(record, fields, _IDS),
        row=_row(record, fields),
        split=_name(record, fields, _SPLITS),
        question=_name(record, fields, questions),
        image=_name(record, fields, ("image", "image_source", "image_name", "filename")),
        truth=_name(record, fields, truths if name == "answer" else (*truths, "answer")),
        where=record.where,
        fields=fields,
    )


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The record, with what lmms-eval keeps one level down beside it."""
    flat = dict(fields)
    inner = [fields.get("doc")]
    inner += [value for name, value in fields.items() if isinstance(name, str) and name != "doc"]
    for value in inner:
        if isinstance(value, dict) and "question_id" in value:
            for name, each in value.items():
                flat.setdefault(name, each)
    return flat


def _name(record: Record, fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    for name in names:
        value = fields.get(name)
        if value is None or value == "" or isinstance(value, dict | list):
            continue
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise DataError(f"{record.where}, field {name!r}: {value!r} names nothing.")
        return str(int(value)) if isinstance(value, float) else str(value)
    return None


def _row(record: Record, fields: Mapping[str, Any]) -> int | None:
    value = fields.get("doc_id")
    if value is None:
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        raise DataError(f"{record.where}, field 'doc_id': {value!r} is no number.") from None
