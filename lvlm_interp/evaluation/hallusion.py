"""HallusionBench: yes/no questions over figures and their edits (Guan et al. 2024).

A judge says of each reply whether it is correct: the word "incorrect" anywhere makes it 0, else
"correct" makes it 1 (so "not correct" is 1), else 2, unclear. Unclear is right only for a question
of the kind VS (visual supplement) without its figure. aAcc: questions; fAcc: figures whose
questions are all right; qAcc: questions right over all their figures. All in percent, rounded to
four decimals as the authors' `evaluation.py` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lvlm_interp.data.examples import Example
from lvlm_interp.errors import DataError
from lvlm_interp.evaluation.answer_files import Answer
from lvlm_interp.evaluation.pairing import Paired
from lvlm_interp.evaluation.replies import NONE, said
from lvlm_interp.evaluation.rules import Outcome, Rule, Settings
from lvlm_interp.evaluation.tally import Counts, Formula, estimates, over, rounded
from lvlm_interp.stats import Estimate

__all__ = ["JUDGED", "RULES", "correctness_of", "hallusion_scores"]

JUDGED = (
    "gpt4v_output_gpt_check", "correctness", "judge_reply", "judge", "review", "content",
)  # fmt: skip
"""Fields that may hold the judge's word, `0`, `1`, `2` or a text."""


def correctness_of(text: str) -> str:
    """What the authors make of the judge's text: "0", "1" or "2"."""
    low = text.lower()
    return "0" if "incorrect" in low else "1" if "correct" in low else "2"


def _judged(answer: Answer) -> str | None:
    for name in JUDGED:
        value = answer.fields.get(name)
        if value is not None and not isinstance(value, dict | list):
            text = str(value).strip()
            return text if text in ("0", "1", "2") else correctness_of(text)
    return None


def hallusion_scores(
    examples: Sequence[Example], right: Sequence[bool], settings: Settings
) -> dict[str, Estimate]:
    """aAcc, fAcc and qAcc, and aAcc of each kind.

    Args:
        examples: The questions.
        right: Whether each is answered right.
        settings: Of the bootstrap, over sets of figures.
    """
    columns: dict[str, Any] = {"n": np.ones(len(right)), "right": np.array(right, dtype=float)}
    columns |= _all_right(examples, right, "figure", _figure_key)
    columns |= _all_right(examples, right, "question", _question_key)
    formulas: dict[str, Formula] = {
        "aAcc": lambda c: _percent(c, "right", "n"),
        "fAcc": lambda c: _percent(c, "figure:right", "figure:n"),
        "qAcc": lambda c: _percent(c, "question:right", "question:n"),
    }
    for kind in ("VD", "VS"):
        mine = np.array([example.labels["category"] == kind for example in examples], dtype=float)
        if mine.any():
            columns |= {f"{kind}:n": mine, f"{kind}:right": mine * columns["right"]}
            formulas[f"{kind}/aAcc"] = lambda c, k=kind: _percent(c, f"{k}:right", f"{k}:n")
    groups = [example.group or example.id for example in examples]
    return estimates(
        columns, groups, formulas, n_resamples=settings.n_resamples, seed=settings.seed
    )


def _percent(counts: Counts, top: str, bottom: str) -> np.ndarray:
    return rounded(100 * over(counts[top], counts[bottom]), 4)


def _figure_key(example: Example) -> str | None:
    labels = example.labels
    if labels["category"] == "VS" and labels["figure_id"] == "0":
        return None  # no figure
    return "_".join(str(labels[n]) for n in ("category", "subcategory", "set_id", "figure_id"))


def _question_key(example: Example) -> str:
    labels = example.labels
    return "_".join(str(labels[n]) for n in ("category", "subcategory", "set_id", "question_id"))


def _all_right(
    examples: Sequence[Example], right: Sequence[bool], name: str, key: Any
) -> dict[str, np.ndarray]:
    """Counted at the first member of each unit: that it is one, and that all of it is right."""
    members: dict[str, list[int]] = {}
    for at, example in enumerate(examples):
        unit = key(example)
        if unit is not None:
            members.setdefault(unit, []).append(at)
    n, whole = np.zeros(len(examples)), np.zeros(len(examples))
    for places in members.values():
        n[places[0]] = 1
        whole[places[0]] = all(right[at] for at in places)
    return {f"{name}:n": n, f"{name}:right": whole}


def _is_right(example: Example, verdict: str) -> bool:
    unclear_is_right = example.labels["category"] == "VS" and example.labels["figure_id"] == "0"
    return verdict == "1" or (verdict == "2" and unclear_is_right)


def _constants(examples: Sequence[Example]) -> Mapping[str, Mapping[str, float]]:
    bare = Settings(n_resamples=0)
    return {
        f"always {word}": {
            name: each.estimate
            for name, each in hallusion_scores(
                examples, [example.answer == word for example in examples], bare
            ).items()
        }
        for word in ("yes", "no")
    }


def _reference(paired: Paired, settings: Settings) -> Outcome:
    verdicts = [_judged(answer) for answer in paired.answers]
    lacking = [a for a, verdict in zip(paired.answers, verdicts, strict=True) if verdict is None]
    if lacking:
        raise DataError(
            f"{lacking[0].where}: {len(lacking)} of {len(verdicts)} answers have no judge's word "
            f"(a field such as {JUDGED[0]}); judge them first, or score by hallusionbench-strict."
        )
    right = [
        _is_right(e, str(verdict)) for e, verdict in zip(paired.examples, verdicts, strict=True)
    ]
    raw = [answer.fields for answer in paired.answers]
    texts = [str(next((f[n] for n in JUDGED if f.get(n) is not None), "")) for f in raw]
    odd = sum("not correct" in text.lower() for text in texts)
    notes = [f"{odd} verdicts say 'not correct' and count as correct"] if odd else []
    return Outcome(
        scores=hallusion_scores(paired.examples, right, settings),
        read=right,
        unparsed=sum(verdict == "2" for verdict in verdicts),
        controls=_constants(paired.examples),
        notes=[*notes, "judged by a model: compare only within one judge"],
    )


def _strict(paired: Paired, settings: Settings) -> Outcome:
    read = [said(reply) for reply in paired.replies]
    right = [
        _is_right(e, "2" if word == NONE else "1" if word == e.answer else "0")
        for e, word in zip(paired.examples, read, strict=True)
    ]
    return Outcome(
        scores=hallusion_scores(paired.examples, right, settings),
        read=right,
        unparsed=sum(word == NONE for word in read),
        controls=_constants(paired.examples),
    )


RULES = (
    Rule("hallusionbench-reference", "hallusionbench", "the authors' evaluation.py", _reference),
    Rule("hallusionbench-strict", "hallusionbench", "ours: yes or no, no judge", _strict, own=True),
)
