"""Benchmarks that a judge rates: MMHal-Bench, LLaVA-Bench, GAVIE and HaELM.

Each has its published reading of the judge's reply, where a reply that cannot be read becomes a
score (0, a hallucination; -1, averaged in), and ours, where it is missing and counted. A figure
compares only within one judge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lvlm_interp.errors import DataError
from lvlm_interp.evaluation.answer_files import Answer
from lvlm_interp.evaluation.pairing import Paired
from lvlm_interp.evaluation.replies import NONE, said
from lvlm_interp.evaluation.rules import Outcome, Rule, Settings
from lvlm_interp.evaluation.tally import Formula, estimates, over, rounded
from lvlm_interp.stats import Estimate

__all__ = [
    "RULES",
    "gavie_ratings",
    "llava_pair",
    "mmhal_rating",
    "mmhal_rating_strict",
]

_ONE_JUDGE = "judged by a model: compare only within one judge"
_HALLUCINATED_BELOW = 3
_JUDGED = ("judge_reply", "review", "content", "evaluation", "gpt4_reply", "judge")


def judge_text(answer: Answer) -> str:
    """The judge's reply of a record; the reply itself where the record is a judge's response."""
    for name in _JUDGED:
        value = answer.fields.get(name)
        if isinstance(value, str):
            return value
    return answer.reply


# -- MMHal-Bench -----------------------------------------------------------------------------------


def mmhal_rating(text: str) -> int | None:
    """0 to 6 by the authors' reading: the one s for which "rating: s" is in the text, else None."""
    low = text.lower()
    found = [rating for rating in range(7) if f"rating: {rating}" in low]
    return found[0] if len(found) == 1 else None


def mmhal_rating_strict(text: str) -> int | None:
    """0 to 6 by ours: markup aside, one "rating" followed by one whole number."""
    plain = re.sub(r"[*_`]", "", text.lower())
    found = set(re.findall(r"rating\s*(?:is|:|=)?\s*(\d+)(?![\d.]*\d)", plain))
    values = {int(each) for each in found}
    return values.pop() if len(values) == 1 and max(values) <= 6 else None


def _mmhal(read: Callable[[str], int | None], zero: bool) -> Callable[..., Outcome]:
    def score(paired: Paired, settings: Settings) -> Outcome:
        ratings = [read(judge_text(answer)) for answer in paired.answers]
        unread = sum(rating is None for rating in ratings)
        used = [0 if rating is None and zero else rating for rating in ratings]
        types = [str(example.labels["category"]) for example in paired.examples]
        notes = [_ONE_JUDGE]
        if unread:
            what = "count as 0, a hallucination" if zero else "are missing"
            notes.append(f"{unread} replies of the judge cannot be read and {what}")
        hallucinated = [
            None if rating is None else float(rating < _HALLUCINATED_BELOW) for rating in used
        ]
        scores = means(
            {"score": used, "hallucination_rate": hallucinated}, paired.groups, settings, types
        )
        return Outcome(scores, read=used, unparsed=unread, notes=notes)

    return score


# -- LLaVA-Bench -----------------------------------------------------------------------------------


def llava_pair(text: str) -> tuple[float, float]:
    """Reference's and model's score by LLaVA's reading: (-1, -1) unless two numbers are alone.

    The first line, commas made blanks, is split at single blanks: "8 9" and "8,9" are read, "8, 9"
    is not.
    """
    parts = text.split("\n")[0].replace(",", " ").split(" ")
    if len(parts) != 2:
        return (-1.0, -1.0)
    try:
        return (float(parts[0]), float(parts[1]))
    except ValueError:
        return (-1.0, -1.0)


def _llava_strict(text: str) -> tuple[float, float]:
    line = next((each for each in text.splitlines() if each.strip()), "")
    found = re.findall(r"(?<![\d.])\d+(?:\.\d+)?(?![\d.]*\d)", line)
    values = [float(each) for each in found]
    good = len(values) == 2 and all(1 <= value <= 10 for value in values)
    return (values[0], values[1]) if good else (math.nan, math.nan)


def _llava(read: Callable[[str], tuple[float, float]], theirs: bool) -> Callable[..., Outcome]:
    def score(paired: Paired, settings: Settings) -> Outcome:
        pairs = [_tuple_of(answer, read) for answer in paired.answers]
        lost = [pair[0] < 0 or math.isnan(pair[0]) for pair in pairs]
        kept = [not out or theirs for out in lost]
        columns = {
            "reference": [pair[0] if keep else 0.0 for pair, keep in zip(pairs, kept, strict=True)],
            "model": [pair[1] if keep else 0.0 for pair, keep in zip(pairs, kept, strict=True)],
            "n": np.array(kept, dtype=float),
        }
        types = [str(example.labels.get("category", "all")) for example in paired.examples]
        every: dict[str, Any] = {}
        formulas: dict[str, Formula] = {}
        for kind in ("", *sorted(set(types))):
            mine = np.array([kind in ("", each) for each in types], dtype=float)
            every |= {f"{kind}:{name}": mine * np.array(v) for name, v in columns.items()}
            formulas[f"{kind}/score" if kind else "score"] = _relative(kind, theirs)
        scores = estimates(
            every, paired.groups, formulas, n_resamples=settings.n_resamples, seed=settings.seed
        )
        what = "are averaged in as -1" if theirs else "are missing"
        notes = [_ONE_JUDGE]
        if any(lost):
            notes.append(f"{sum(lost)} replies of the judge cannot be read and {what}")
        return Outcome(scores, read=[str(pair) for pair in pairs], unparsed=sum(lost), notes=notes)

    return score


def _tuple_of(answer: Answer, read: Callable[[str], tuple[float, float]]) -> tuple[float, float]:
    if any(isinstance(answer.fields.get(name), str) for name in _JUDGED):
        return read(judge_text(answer))
    given = answer.fields.get("tuple", answer.fields.get("score"))
    if isinstance(given, list) and len(given) == 2:
        return (float(given[0]), float(given[1]))
    return read(answer.reply)


def _relative(kind: str, theirs: bool) -> Formula:
    """100 mean(model) / mean(reference); theirs rounds the means to 3 and the ratio to 1."""

    def formula(counts: Mapping[str, np.ndarray]) -> np.ndarray:
        n = counts[f"{kind}:n"]
        means = [over(counts[f"{kind}:{name}"], n) for name in ("model", "reference")]
        if not theirs:
            return 100 * over(means[0], means[1])
        model, reference = (rounded(mean, 3) for mean in means)
        return rounded(over(model, reference) * 100, 1)

    return formula


# -- GAVIE -----------------------------------------------------------------------------------------


def gavie_ratings(text: str) -> tuple[float | None, float | None]:
    """Relevancy and accuracy, 0 to 10, of the first answer in GAVIE's form of reply.

    The authors ship no parser; their prompt asks for "Relevancy:", "score of the answer1: ...",
    then "Accuracy:" with the same. Each is None where it is not there once, or out of range.
    """
    plain = re.sub(r"[*_`]", "", text.lower())
    parts = re.split(r"\b(relevancy|accuracy)\s*:", plain)
    found: dict[str, float | None] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        match = re.search(r"(?:score of (?:the )?answer\s*1?\s*:?\s*)?(\d+(?:\.\d+)?)", body)
        value = float(match.group(1)) if match else None
        found[name] = value if value is not None and 0 <= value <= 10 else None
    return found.get("relevancy"), found.get("accuracy")


def _gavie(paired: Paired, settings: Settings) -> Outcome:
    pairs = []
    for answer in paired.answers:
        given = [answer.fields.get(name) for name in ("relevancy", "accuracy")]
        numbers = [float(v) if isinstance(v, int | float) and 0 <= v <= 10 else None for v in given]
        pairs.append(gavie_ratings(judge_text(answer)) if given == [None, None] else tuple(numbers))
    unread = sum(None in pair for pair in pairs)
    scores = means(
        {"relevancy": [p[0] for p in pairs], "accuracy": [p[1] for p in pairs]},
        paired.groups,
        settings,
    )
    notes = [_ONE_JUDGE, *([f"{unread} replies of the judge lack a rating"] if unread else [])]
    return Outcome(scores, read=pairs, unparsed=unread, notes=notes)


# -- HaELM -----------------------------------------------------------------------------------------


def _haelm(read: Callable[[str], str]) -> Callable[..., Outcome]:
    """The judge (a LLaMA-7B with LoRA) says yes where the description hallucinates."""

    def score(paired: Paired, settings: Settings) -> Outcome:
        words = [read(judge_text(answer)) for answer in paired.answers]
        wrong = [None if word == NONE else float(word == "yes") for word in words]
        scores = means({"hallucination_rate": wrong}, paired.groups, settings)
        controls = {
            f"judge always {w}": {"hallucination_rate": float(w == "yes")} for w in ("yes", "no")
        }
        return Outcome(
            scores, words, sum(word == NONE for word in words), controls, notes=[_ONE_JUDGE]
        )

    return score


def _haelm_token(text: str) -> str:
    """The one token that HaELM's judge gives."""
    return {"yes": "yes", "no": "no"}.get(text.strip().lower().rstrip("."), NONE)


# -- common ----------------------------------------------------------------------------------------


def means(
    values: Mapping[str, Sequence[float | None]],
    groups: Sequence[str],
    settings: Settings,
    types: Sequence[str] = (),
) -> dict[str, Estimate]:
    """Mean of each column over the rows that have it, in all and per type.

    Raises:
        DataError: No row has a value.
    """
    columns: dict[str, Any] = {}
    formulas: dict[str, Formula] = {}
    sizes: dict[str, int] = {}
    for name, column in values.items():
        there = np.array([value is not None for value in column], dtype=float)
        if not there.any():
            raise DataError(f"no reply of the judge gives a {name}; nothing can be scored.")
        filled = np.array([0.0 if value is None else value for value in column])
        for kind in ("", *dict.fromkeys(types)):
            mine = there * np.array([kind in ("", each) for each in types] or 1.0)
            key = f"{kind}/{name}" if kind else name
            columns |= {f"{key}:n": mine, f"{key}:sum": mine * filled}
            formulas[key] = lambda c, k=key: over(c[f"{k}:sum"], c[f"{k}:n"])
            sizes[key] = int(mine.sum())
    return estimates(
        columns, groups, formulas, n=sizes, n_resamples=settings.n_resamples, seed=settings.seed
    )


RULES = (
    Rule("mmhal-reference", "mmhal", "the authors' eval_gpt4.py", _mmhal(mmhal_rating, True)),
    Rule(
        "mmhal-strict",
        "mmhal",
        "ours: what cannot be read is missing",
        _mmhal(mmhal_rating_strict, False),
        own=True,
    ),
    Rule(
        "llava-bench-reference", "llava-bench", "LLaVA's scripts of 2023", _llava(llava_pair, True)
    ),
    Rule(
        "llava-bench-strict",
        "llava-bench",
        "ours: what cannot be read is missing",
        _llava(_llava_strict, False),
        own=True,
    ),
    Rule("gavie-strict", "gavie", "ours; the authors ship no parser", _gavie, own=True),
    Rule("haelm-reference", "haelm", "the authors' one token", _haelm(_haelm_token)),
    Rule("haelm-strict", "haelm", "ours: yes, no or none", _haelm(said), own=True),
)
