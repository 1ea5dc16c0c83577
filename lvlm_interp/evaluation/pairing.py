"""Answers to their questions, by name and never by place in a file.

What does not fit is said with its number and its first id, and refused where a score would shift:
answers to questions that are not there (another split or vintage), questions without an answer,
two different answers to one question, a question in other words.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from lvlm_interp.data.examples import Example
from lvlm_interp.errors import DataError
from lvlm_interp.evaluation.answer_files import Answer

__all__ = ["Paired", "pair"]

Key = tuple[str, ...]


@dataclass(frozen=True)
class Paired:
    """Questions with their replies.

    Attributes:
        examples: The questions that have one.
        answers: Their answers, in the same order.
        notes: What a reader of the score must know, a sentence each.
        missing: Questions without an answer, where that was allowed.
    """

    examples: list[Example]
    answers: list[Answer]
    notes: list[str] = field(default_factory=list)
    missing: int = 0

    @property
    def replies(self) -> list[str]:
        """What was said, in order."""
        return [answer.reply for answer in self.answers]

    @property
    def groups(self) -> list[str]:
        """Image of each."""
        return [example.group or example.id for example in self.examples]


def pair(
    examples: Sequence[Example],
    answers: Sequence[Answer],
    *,
    partial: bool = False,
    all_needed: bool = True,
) -> Paired:
    """Each question with its answer.

    Args:
        examples: The questions, with unique ids.
        answers: In any order.
        partial: Score what is there: answers to unknown questions are left out, missing ones are
            counted.
        all_needed: Whether every question needs an answer; CHAIR has no list of images.

    Raises:
        DataError: Answers cannot be told apart, are to other questions, are missing, or contradict
            each other.
    """
    notes: list[str] = []
    index = _Index(examples)
    placed: dict[int, Answer] = {}
    unknown: list[Answer] = []
    twice: list[str] = []
    for answer, at in zip(answers, index.find_all(answers, notes), strict=True):
        if at is None:
            unknown.append(answer)
            continue
        if at in placed:
            if placed[at].reply != answer.reply:
                raise DataError(
                    f"{answer.where}: a second answer to {examples[at].id!r}, and another one "
                    f"({placed[at].where}); keep one of them."
                )
            twice.append(examples[at].id)
            continue
        placed[at] = answer
    if twice:
        notes.append(f"{_count(twice, 'answer')} is there twice in the same words and counts once")
    _check_unknown(unknown, partial, notes)
    missing = [example.id for at, example in enumerate(examples) if at not in placed]
    if missing and all_needed:
        _check_missing(missing, len(examples), partial, notes)
    order = sorted(placed)
    paired = [examples[at] for at in order]
    _check_questions(paired, [placed[at] for at in order], notes)
    return Paired(paired, [placed[at] for at in order], notes, len(missing) if all_needed else 0)


class _Index:
    """Finds the question of an answer by the surest name that the answer has."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self.by: dict[str, dict[Key, list[int]]] = {name: defaultdict(list) for name in _KEYS}
        for at, example in enumerate(examples):
            for name, keys in _example_keys(example).items():
                for key in keys:
                    self.by[name][key].append(at)

    def find_all(self, answers: Sequence[Answer], notes: list[str]) -> list[int | None]:
        """Index of each answer's question; None where it names one that is not there."""
        found = [self._find(answer) for answer in answers]
        if any(at == -1 for at in found):
            return self._by_words(answers, found, notes)
        return [None if at is None else at for at in found]

    def _find(self, answer: Answer) -> int | None:
        """-1 where the answer has no name of its own."""
        named = False
        for name, key in _answer_keys(answer).items():
            if name == "row":
                at = int(key[0])
                return at if at < len(self.examples) else None
            named = True
            found = self.by[name].get(key, [])
            if len(found) == 1:
                return found[0]
            if len(found) > 1 and name != "id":
                continue
            if len(found) > 1:
                fitting = [at for at in found if _same_words(self.examples[at], answer)]
                if len(fitting) == 1 and answer.question:
                    return fitting[0]
                raise DataError(
                    f"{answer.where}: the id {key[0]!r} is a question of {len(found)} splits "
                    f"({', '.join(self.examples[at].id for at in found[:3])}); give the file of "
                    "one split as the truth, or answers that name their split or question."
                )
        return None if named else -1

    def _by_words(
        self, answers: Sequence[Answer], found: list[int | None], notes: list[str]
    ) -> list[int | None]:
        """Files whose published form has no id: their order, if every question agrees."""
        worded = all(answer.question for answer in answers)
        if len(answers) != len(self.examples):
            raise DataError(
                f"{answers[found.index(-1)].where}: the answer names no question, and there are "
                f"{len(answers)} answers for {len(self.examples)} questions; give each its id."
            )
        if worded:
            for at, answer in enumerate(answers):
                if not _same_words(self.examples[at], answer):
                    raise DataError(
                        f"{answer.where}: the answers have no ids, and this one is to "
                        f"{answer.question!r} where {self.examples[at].id!r} asks "
                        f"{self.examples[at].prompt!r}; give each answer its id."
                    )
        how = "every question agrees in its words" if worded else "their number agrees"
        notes.append(f"the answers name no question; they were taken in order, since {how}")
        return list(range(len(answers)))


_KEYS: tuple[str, ...] = ("split_id", "id", "picture", "image", "row")


def _example_keys(example: Example) -> Mapping[str, list[Key]]:
    labels = example.labels
    number = str(labels.get("question_id", example.id))
    split = str(labels.get("category", ""))
    image = _stem(str(labels.get("image", example.group or "")))
    return {
        "split_id": [(split, number)],
        "id": [(name,) for name in dict.fromkeys((example.id, number))],
        "picture": [(split, image, _plain(example.prompt)), (image, _plain(example.prompt))],
        "image": [(image,)],
        "row": [],
    }


def _answer_keys(answer: Answer) -> Mapping[str, Key]:
    keys: dict[str, Key] = {}
    if answer.id is not None:
        if answer.split is not None:
            keys["split_id"] = (answer.split, answer.id)
        keys["id"] = (answer.id,)
    if answer.image is not None and answer.question is not None:
        words = (_stem(answer.image), _plain(answer.question))
        keys["picture"] = words if answer.split is None else (answer.split, *words)
    elif answer.image is not None and answer.id is None:
        keys["image"] = (_stem(answer.image),)
    if not keys and answer.row is not None:
        keys["row"] = (str(answer.row),)
    return keys


def _stem(name: str) -> str:
    path = PurePath(name)
    return (
        path.stem
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".txt", ".webp")
        else path.name
    )


def _plain(question: str) -> str:
    """A question's words without case, marks and the typo of POPE's first vintage."""
    words = re.findall(r"[^\W_]+", question.lower().replace("imange", "image"))
    return " ".join(words)


def _same_words(example: Example, answer: Answer) -> bool:
    """Whether the answer repeats the question, perhaps with what a prompt adds to it."""
    if answer.question is None:
        return True
    return _plain(example.prompt) in _plain(answer.question)


def _check_unknown(unknown: list[Answer], partial: bool, notes: list[str]) -> None:
    if not unknown:
        return
    first = unknown[0]
    name = first.id or first.image or first.where
    if not partial:
        raise DataError(
            f"{first.where}: {_count(unknown, 'answer')} to a question that is not in the truth, "
            f"the first {name!r}: it is of another split or vintage; give the truth it belongs to."
        )
    notes.append(f"{_count(unknown, 'answer')} to unknown questions left out, the first {name!r}")


def _check_missing(missing: list[str], n: int, partial: bool, notes: list[str]) -> None:
    if not partial:
        raise DataError(
            f"{len(missing)} of {n} questions have no answer, the first {missing[0]!r}; answer "
            "them all, or ask for the part that is there (partial), which is another benchmark."
        )
    notes.append(
        f"{len(missing)} of {n} questions have no answer, the first {missing[0]!r}: scored on the "
        "rest"
    )


def _check_questions(
    examples: Sequence[Example], answers: Sequence[Answer], notes: list[str]
) -> None:
    pairs = list(zip(examples, answers, strict=True))
    other = [(e, a) for e, a in pairs if not _same_words(e, a) and _comparable(e, a)]
    if other:
        example, answer = other[0]
        raise DataError(
            f"{answer.where}: {len(other)} of {len(pairs)} answers are to other questions than the "
            f"truth has under their ids, the first {example.id!r} ({answer.question!r}, not "
            f"{example.prompt!r}): the files are of different vintages."
        )
    truths = [(e, a) for e, a in pairs if _other_truth(e, a)]
    if truths:
        example, answer = truths[0]
        raise DataError(
            f"{answer.where}: {len(truths)} of {len(pairs)} answers carry another truth than the "
            f"truth folder, the first {example.id!r} ({answer.truth!r}, not {example.answer!r})."
        )
    images = [(e, a) for e, a in pairs if _other_image(e, a)]
    if images:
        example, answer = images[0]
        raise DataError(
            f"{answer.where}: {len(images)} of {len(pairs)} answers are about another image than "
            f"the truth has under their ids, the first {example.id!r} ({answer.image!r})."
        )
    typos = sum("imange" in example.prompt for example in examples)
    if typos:
        notes.append(f"{_count([''] * typos, 'question')} say 'imange': POPE's files of May 2023")


def _comparable(example: Example, answer: Answer) -> bool:
    # A field that holds a name or a number instead of the question says nothing about it.
    return (
        len(_plain(answer.question or "").split()) > 2 and len(_plain(example.prompt).split()) > 2
    )


def _other_truth(example: Example, answer: Answer) -> bool:
    known = ("yes", "no")
    told = (answer.truth or "").strip().lower()
    return example.answer in known and told in known and told != example.answer


def _other_image(example: Example, answer: Answer) -> bool:
    known = example.labels.get("image")
    return (
        known is not None
        and answer.image is not None
        and "/" not in str(answer.image)
        and len(answer.image) < 200  # an image in the text of a table is no name
        and _stem(answer.image) != _stem(str(known))
    )


def _count(items: Sequence[Any], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"
