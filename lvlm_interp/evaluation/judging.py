"""From a reply to rows of the table of answers, for each of the four tasks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lvlm_interp.data.examples import Example
from lvlm_interp.evaluation import severity
from lvlm_interp.evaluation.claims import claims
from lvlm_interp.evaluation.replies import NONE, said
from lvlm_interp.evaluation.wording import ENGLISH, Wording

__all__ = ["Reader", "Reply"]

_KEPT = ("negative", "pair", "condition", "kind", "category")
_NUMBERS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()
    )
}


@dataclass(frozen=True)
class Reply:
    """What a model answered.

    Attributes:
        text: As it was generated, or the word that the logits prefer.
        p_yes: Probability of yes; NaN where unknown.
        p_no: Probability of no; NaN where unknown.
        said: What the logits prefer; None has the text read.
        conviction: Of an open answer or a description, where known.
    """

    text: str
    p_yes: float = math.nan
    p_no: float = math.nan
    said: str | None = None
    conviction: float = math.nan


@dataclass(frozen=True)
class Reader:
    """Makes rows of replies.

    Attributes:
        wording: Palette and places of the benchmark.
        names: Names that a description can claim.
        kinds: Supercategory of a name.
    """

    wording: Wording = ENGLISH
    names: Sequence[str] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)

    def rows(self, example: Example, reply: Reply) -> list[dict[str, Any]]:
        """The rows of one reply: one of a poll or an open answer, several of a description."""
        task = str(example.labels.get("task", "poll"))
        row = {
            "example": example.id,
            "group": example.group,
            "level": example.level,
            "task": task,
            "statement": example.prompt,
            "truth": example.answer,
            "reply": reply.text,
            "p_yes": reply.p_yes,
            "p_no": reply.p_no,
            "conviction": reply.conviction,
            "delta": math.nan,
            **{name: example.labels.get(name) for name in _KEPT},
        }
        if task == "open":
            return [row | self._open(example, reply.text)]
        if task == "describe":
            return self._described(example, reply.text, row)
        delta = example.labels.get("delta")
        word = said(reply.text) if reply.said is None else reply.said
        return [row | {"said": word, "delta": math.nan if delta is None else float(delta)}]

    def _open(self, example: Example, text: str) -> dict[str, Any]:
        kind, true = example.labels.get("kind"), str(example.answer)
        if kind == "count":
            number = _number(text)
            if number is None:
                return {"said": NONE}
            return {"said": str(number), "delta": severity.count(number, int(true)) or math.nan}
        if kind not in ("colour", "spatial"):
            word = text.strip().lower().rstrip(".")
            return {"said": word or NONE, "delta": severity.UNORDERED}
        words = list(self.wording.palette if kind == "colour" else severity.DIRECTIONS)
        word = _one_of(text, words)
        if word is None:
            return {"said": NONE}
        if word == true:
            return {"said": word}
        if kind == "colour":
            return {"said": word, "delta": severity.colour(word, true, self.wording.palette)}
        return {"said": word, "delta": severity.spatial(word, true)}

    def _described(self, example: Example, text: str, row: dict[str, Any]) -> list[dict[str, Any]]:
        found = claims(text, example, self.names, self.wording, self.kinds)
        return [
            row
            | {
                "example": f"{example.id}#{number}",
                "level": claim.level,
                "statement": claim.statement,
                "truth": claim.truth,
                "said": claim.said,
                "delta": math.nan if claim.delta is None else claim.delta,
            }
            for number, claim in enumerate(found)
        ]


def _one_of(text: str, words: Sequence[str]) -> str | None:
    """The one word of a closed set that a text says; the first word of the text goes before."""
    said_words = re.findall(r"[a-z]+", text.lower())
    known = [word for word in said_words if word in words]
    if said_words and said_words[0] in words:
        return said_words[0]
    return known[0] if len(set(known)) == 1 else None


def _number(text: str) -> int | None:
    found = {int(each) for each in re.findall(r"\d+", text)}
    found |= {_NUMBERS[each] for each in re.findall(r"[a-z]+", text.lower()) if each in _NUMBERS}
    return found.pop() if len(found) == 1 else None
