"""AMBER: descriptions and polls over existence, attribute and relation (Wang et al. 2023).

All scores are in percent and rounded to one decimal as the authors' `inference.py` does, so that F1
is that of the rounded precision and recall. The positive class is *no*: a model that always says no
has the best recall there is, which the controls show. Every count starts at .001, as theirs.
AMBER's Score is (100 - CHAIR + F1) / 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lvlm_interp.errors import DataError, UsageError
from lvlm_interp.evaluation.amber_words import Hits, Similar, amber_nouns, match
from lvlm_interp.evaluation.pairing import Paired
from lvlm_interp.evaluation.replies import NONE, said
from lvlm_interp.evaluation.rules import Outcome, Rule, Settings
from lvlm_interp.evaluation.tally import Counts, Formula, estimates, rounded
from lvlm_interp.evaluation.vectors import Vectors
from lvlm_interp.stats import Estimate

__all__ = ["RULES", "SIMILARITY", "amber_scores"]

SIMILARITY = 0.8
_START = 0.001
_PARTS = {
    "existence": ("discriminative-hallucination",),
    "attribute": (
        "discriminative-attribute-state",
        "discriminative-attribute-number",
        "discriminative-attribute-action",
    ),
}


def _percent(counts: Counts, top: str, bottom: str, starts: int = 1) -> np.ndarray:
    return rounded(counts[top] / (counts[bottom] + starts * _START) * 100, 1)


def _describing() -> dict[str, Formula]:
    return {
        "chair": lambda c: _percent(c, "unsafe", "nouns"),
        "cover": lambda c: _percent(c, "covered", "truths"),
        "hal": lambda c: rounded(100 - c["clean"] / (c["replies"] + _START) * 100, 1),
        "cog": lambda c: _percent(c, "imagined", "usual"),
    }


def _polling(prefix: str, starts: int = 1, softener: float = 0.0001) -> dict[str, Formula]:
    def precision(c: Counts) -> np.ndarray:
        return _percent(c, f"{prefix}no_right", f"{prefix}said_no", starts)

    def recall(c: Counts) -> np.ndarray:
        return _percent(c, f"{prefix}no_right", f"{prefix}no", starts)

    def f1(c: Counts) -> np.ndarray:
        p, r = precision(c) / 100, recall(c) / 100
        return rounded(2 * p * r / (p + r + softener) * 100, 1)

    return {
        "accuracy": lambda c: _percent(c, f"{prefix}right", f"{prefix}n", starts),
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }


def _poll_columns(truth: Sequence[str], read: Sequence[str], mine: np.ndarray) -> dict[str, Any]:
    t, r = np.array(truth, dtype=object), np.array(read, dtype=object)
    return {
        "n": mine,
        "right": mine * (t == r),
        "no": mine * (t == "no"),
        "said_no": mine * (r == "no"),
        "no_right": mine * (t == "no") * (r == "no"),
    }


def amber_scores(
    paired: Paired, read: Sequence[str], hits: Mapping[int, Hits], settings: Settings
) -> dict[str, Estimate]:
    """AMBER's scores.

    Args:
        paired: Questions and answers.
        read: What each poll's answer says, `yes`, `no` or neither; anything for descriptions.
        hits: What each description's nouns hit, by place.
        settings: Of the bootstrap.
    """
    types = [str(example.labels["type"]) for example in paired.examples]
    polls = np.array([kind != "generative" for kind in types], dtype=float)
    truth = [str(example.answer) for example in paired.examples]
    columns: dict[str, Any] = _poll_columns(truth, read, polls)
    formulas: dict[str, Formula] = {}
    sizes: dict[str, int] = {}
    if hits:
        columns |= _describe_columns(len(types), hits)
        formulas |= _describing()
        sizes |= dict.fromkeys(_describing(), len(hits))
    if polls.any():
        formulas |= _polling("")
        sizes |= dict.fromkeys(_polling(""), int(polls.sum()))
        for part in ("existence", "attribute", "relation"):
            mine = polls * np.array([_part(kind) == part for kind in types])
            if mine.any():
                columns |= {f"{part}:{k}": v for k, v in _poll_columns(truth, read, mine).items()}
                starts, soft = (
                    len(_PARTS.get(part, ("",))),
                    0.001 if part == "existence" else 0.0001,
                )
                named = _polling(f"{part}:", starts, soft)
                formulas |= {f"{part}/{name}": formula for name, formula in named.items()}
                sizes |= {f"{part}/{name}": int(mine.sum()) for name in named}
    if hits and polls.any():
        chair, f1 = formulas["chair"], formulas["f1"]
        formulas["score"] = lambda c: (100 - chair(c) + f1(c)) / 2
    return estimates(
        columns,
        paired.groups,
        formulas,
        n=sizes,
        n_resamples=settings.n_resamples,
        seed=settings.seed,
    )


def _describe_columns(n: int, hits: Mapping[int, Hits]) -> dict[str, np.ndarray]:
    names = ("nouns", "unsafe", "covered", "truths", "imagined", "usual")
    columns = {name: np.zeros(n) for name in (*names, "replies", "clean")}
    for at, found in hits.items():
        for name in names:
            columns[name][at] = getattr(found, name)
        columns["replies"][at] = 1
        columns["clean"][at] = found.unsafe == 0
    return columns


def _part(kind: str) -> str:
    return next((part for part, kinds in _PARTS.items() if kind in kinds), "relation")


def _vocabulary(association: Mapping[str, Sequence[str]]) -> frozenset[str]:
    return frozenset(association) | {word for words in association.values() for word in words}


def _lists(paired: Paired) -> tuple[dict[str, list[str]], frozenset[str]]:
    """`relation.json` and `safe_words.txt`, which the reader puts with the descriptions."""
    for example in paired.examples:
        if "association" in example.labels:
            return example.labels["association"], frozenset(example.labels["safe_words"])
    raise DataError(
        "AMBER's descriptions need relation.json and safe_words.txt beside annotations.json; put "
        "them there."
    )


def _hits(paired: Paired, similar_of: Any) -> tuple[dict[int, Hits], list[list[str]]]:
    places = [at for at, e in enumerate(paired.examples) if e.labels["type"] == "generative"]
    if not places:
        return {}, []
    association, safe = _lists(paired)
    vocabulary = _vocabulary(association)
    similar: Similar = similar_of(vocabulary)
    hits, nouns = {}, []
    for at in places:
        found = amber_nouns(paired.replies[at], vocabulary)
        labels = paired.examples[at].labels
        hits[at] = match(found, labels["safe"], labels["hallu"], association, safe, similar)
        nouns.append(found)
    return hits, nouns


def _reference(paired: Paired, settings: Settings) -> Outcome:
    def similar_of(vocabulary: frozenset[str]) -> Similar:
        if settings.vectors is None:
            raise UsageError(
                "amber-reference compares words by spaCy's en_core_web_lg vectors: give them as a "
                "text file (vectors), or score by amber-words, which compares none."
            )
        vectors = Vectors.read(Path(settings.vectors), vocabulary)
        return lambda a, b: vectors.similarity(a, b) > SIMILARITY

    hits, _ = _hits(paired, similar_of)
    read = [reply.lower() if reply in ("Yes", "No") else "other" for reply in paired.replies]
    notes = ["yes and no count in exactly these spellings: 'Yes', 'No'"]
    if hits:
        notes.append("nouns are told by AMBER's vocabulary and rules, not by NLTK's tagger")
    return _outcome(paired, read, hits, settings, notes)


def _ours(paired: Paired, settings: Settings) -> Outcome:
    hits, _ = _hits(paired, lambda vocabulary: lambda a, b: False)
    return _outcome(paired, [said(reply) for reply in paired.replies], hits, settings, [])


def _outcome(
    paired: Paired,
    read: Sequence[str],
    hits: Mapping[int, Hits],
    settings: Settings,
    notes: Sequence[str],
) -> Outcome:
    bare = Settings(n_resamples=0)
    polls = [at for at, e in enumerate(paired.examples) if e.labels["type"] != "generative"]
    silent = {at: Hits(0, 0, 0, found.truths, 0, found.usual) for at, found in hits.items()}
    controls = {
        f"always {word}, says nothing": {
            name: each.estimate
            for name, each in amber_scores(paired, [word] * len(read), silent, bare).items()
            if "/" not in name
        }
        for word in ("yes", "no")
    }
    per_answer = [hits[at] if at in hits else word for at, word in enumerate(read)]
    return Outcome(
        scores=amber_scores(paired, read, hits, settings),
        read=per_answer,
        unparsed=sum(said(paired.replies[at]) == NONE for at in polls),
        controls=controls,
        notes=notes,
    )


RULES = (
    Rule("amber-reference", "amber", "the authors' inference.py", _reference),
    Rule("amber-words", "amber", "ours: yes, no or none; words without likeness", _ours, own=True),
)
