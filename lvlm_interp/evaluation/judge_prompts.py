"""What a judge is asked about the answers to each benchmark: our own wording, or the user's copy.

The published prompts have no licence, or one that does not allow to ship them; a user who has them
gives the file, with the fields in braces that stand below, and its hash goes into the provenance.
Our own wording is a rule with its own name (`own-2026`): its figures compare with nothing else.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lvlm_interp.errors import UsageError
from lvlm_interp.evaluation.judge import Prompt
from lvlm_interp.evaluation.pairing import Paired

__all__ = ["FIELDS", "OWN", "Wording", "prompts_for", "wording_of"]

OWN = "own-2026"

FIELDS = {
    "hallusionbench": ("question", "reference", "answer"),
    "mmhal": ("contents", "question", "reference", "answer"),
    "llava-bench": ("context", "question", "reference", "answer"),
    "gavie": ("question", "answer"),
    "haelm": ("captions", "answer"),
}
"""Fields that a prompt of a benchmark can use."""

_OWN = {
    "hallusionbench": (
        "A question about a picture, the right answer and a given answer follow.\n"
        "Question: {question}\nRight answer: {reference}\nGiven answer: {answer}\n"
        "Reply with one word: correct if the given answer agrees with the right one, incorrect if "
        "it contradicts it, unclear if it takes no stand."
    ),
    "mmhal": (
        "A picture shows: {contents}.\nQuestion: {question}\nReference answer: {reference}\n"
        "Given answer: {answer}\nGive the answer a whole number from 0 to 6: 3 to 6 if it claims "
        "nothing that is not in the picture (6 very informative, 3 not informative), 0 to 2 if it "
        "does (2 still informative, 0 not at all). Reply with 'Rating: N' and nothing else."
    ),
    "llava-bench": (
        "What a picture shows: {context}\nQuestion: {question}\nAnswer 1: {reference}\n"
        "Answer 2: {answer}\nHow helpful, relevant, accurate and detailed is each, from 1 to 10? "
        "Reply with the two numbers on one line, answer 1 first, a blank between."
    ),
    "gavie": (
        "Instruction about a picture: {question}\nAnswer: {answer}\n"
        "Reply in two lines, each with a number from 0 to 10: 'Relevancy: N' for how far the "
        "answer follows the instruction, 'Accuracy: N' for how far it is true of the picture."
    ),
    "haelm": (
        "Captions of a picture:\n{captions}\nA description of the same picture: {answer}\n"
        "Does the description say anything that contradicts the captions? Reply yes or no."
    ),
}


@dataclass(frozen=True)
class Wording:
    """A prompt and where it is from.

    Attributes:
        name: `own-2026`, or the name of the user's file.
        text: With fields in braces.
        hash: SHA-256 of the text.
    """

    name: str
    text: str

    @property
    def hash(self) -> str:
        """SHA-256 of the text."""
        return sha256(self.text.encode()).hexdigest()


def wording_of(bench: str, path: Path | None = None) -> Wording:
    """Our wording for a benchmark, or the user's file.

    Raises:
        UsageError: The benchmark has no judge, the file is not there, or it asks for a field that
            the benchmark has not.
    """
    if bench not in FIELDS:
        raise UsageError(f"{bench} has no judge here; there are {', '.join(FIELDS)}")
    if path is None:
        return Wording(OWN, _OWN[bench])
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file with a prompt.")
    text = path.read_text(encoding="utf-8")
    asked = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    if not asked <= set(FIELDS[bench]):
        odd = ", ".join(sorted(asked - set(FIELDS[bench])))
        raise UsageError(
            f"{path}: the prompt has the fields {odd or 'none'}; {bench} has "
            f"{', '.join(FIELDS[bench])}"
        )
    return Wording(path.name, text)


def prompts_for(bench: str, paired: Paired, wording: Wording) -> list[Prompt]:
    """A prompt per answer, by the id of its question."""
    found = []
    for example, answer in zip(paired.examples, paired.answers, strict=True):
        labels = example.labels
        fields: dict[str, Any] = {
            "question": example.prompt,
            "answer": answer.reply,
            "reference": labels.get("reference") or labels.get("gt_answer_details")
            or example.answer or "",
            "contents": _listed(labels.get("image_content", ())),
            "context": labels.get("context") or "",
            "captions": "\n".join(labels.get("captions", ())),
        }  # fmt: skip
        mine = {name: fields[name] for name in FIELDS[bench]}
        found.append(Prompt(example.id, wording.text.format(**mine)))
    return found


def _listed(words: Sequence[str]) -> str:
    return ", ".join(map(str, words)) or "nothing that is known"
