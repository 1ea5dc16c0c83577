"""What names a question in each benchmark's own answer files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePath

from lvlm_interp.data.examples import Example
from lvlm_interp.errors import DataError
from lvlm_interp.evaluation.answer_files import Answer

__all__ = ["by_own_names"]

_COCO_NUMBER = re.compile(r"^(?:COCO_(?:train|val|test)2014_)?0*(\d+)(?:\.(?:jpg|png))?$")
_HALLUSION = ("category", "subcategory", "set_id", "figure_id", "question_id")


def by_own_names(
    bench: str, answers: Sequence[Answer], examples: Sequence[Example], notes: list[str]
) -> list[Answer]:
    """The answers, each with the id by which its benchmark knows the question.

    Args:
        bench: The benchmark.
        answers: As they were read.
        examples: The questions.
        notes: Gets what a reader must know.

    Raises:
        DataError: A COCO image is named by what is no number.
    """
    namer = _NAMERS.get(bench)
    return list(answers) if namer is None else namer(answers, examples, notes)


def _hallusion(
    answers: Sequence[Answer], examples: Sequence[Example], notes: list[str]
) -> list[Answer]:
    found = []
    for answer in answers:
        parts = [answer.fields.get(name) for name in _HALLUSION]
        whole = all(part is not None for part in parts)
        found.append(
            replace(answer, id="_".join(map(str, parts)) if whole else answer.id, split=None)
        )
    return found


def _coco(answers: Sequence[Answer], examples: Sequence[Example], notes: list[str]) -> list[Answer]:
    found, texts = [], 0
    for answer in answers:
        given = answer.fields.get("image_id", answer.fields.get("image", answer.id))
        match = _COCO_NUMBER.match(str(given))
        if match is None:
            raise DataError(
                f"{answer.where}: image_id {given!r} is no COCO image; expected its number, such "
                "as 391895. (The published scorer would call every object hallucinated.)"
            )
        texts += isinstance(given, str)
        found.append(replace(answer, id=match.group(1), split=None, question=None, image=None))
    if texts:
        notes.append(
            f"{texts} image ids are text and were read as numbers; the published scorer would call "
            "every object of those captions hallucinated"
        )
    return found


def _mme(answers: Sequence[Answer], examples: Sequence[Example], notes: list[str]) -> list[Answer]:
    """lmms-eval names the image; which of its two questions it is, the truth beside tells."""
    keys = {(e.labels["category"], e.labels["image"], e.answer): e.id for e in examples}
    found = []
    for answer in answers:
        image = PurePath(answer.id).stem if answer.id is not None else answer.image
        told = (answer.truth or "").strip().lower()
        name = None
        if answer.question is None and image is not None:
            name = keys.get((answer.split, image, told))
        found.append(replace(answer, id=name, image=image))
    return found


def _by_question(
    answers: Sequence[Answer], examples: Sequence[Example], notes: list[str]
) -> list[Answer]:
    """Benchmarks whose records have an image and a question and no id of their own."""
    found = []
    for answer in answers:
        image = answer.fields.get("image_src", answer.fields.get("image_id", answer.image))
        name = None if image is None else PurePath(str(image)).name
        own = answer.fields.get("id", answer.fields.get("question_id"))
        found.append(replace(answer, id=None if own is None else str(own), split=None, image=name))
    return found


def _keys(answers: Sequence[Answer], examples: Sequence[Example], notes: list[str]) -> list[Answer]:
    """CCEval: a key of the truth, or the image that the truth names under it."""
    keys = {str(example.labels["image"]): example.id for example in examples}
    keys |= {example.id: example.id for example in examples}
    given = [str(a.fields.get("image_id", a.fields.get("id", a.image))) for a in answers]
    names = [keys.get(name, keys.get(PurePath(name).stem)) for name in given]
    if not any(names) and len(answers) == len(examples):
        notes.append(
            "the truth names no image, so captions were taken in its order, as the authors' scorer "
            "takes them: caption i is of key i"
        )
        return [
            replace(answer, id=example.id, image=None, split=None, question=None)
            for answer, example in zip(answers, examples, strict=True)
        ]
    return [
        replace(answer, id=name or told, image=None, split=None, question=None)
        for answer, name, told in zip(answers, names, given, strict=True)
    ]


_NAMERS: dict[str, Callable[[Sequence[Answer], Sequence[Example], list[str]], list[Answer]]] = {
    "mme": _mme,
    "hallusionbench": _hallusion,
    "chair": _coco,
    "mmhal": _by_question,
    "gavie": _by_question,
    "haelm": _by_question,
    "cceval": _keys,
}
