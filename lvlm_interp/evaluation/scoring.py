"""`score`: anyone's answers to a published benchmark, by a rule with a name, without a model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvlm_interp.data.benchmarks import read_benchmark
from lvlm_interp.data.benchmarks.records import Report
from lvlm_interp.data.examples import Example
from lvlm_interp.evaluation import amber, cceval, chair, hallusion, mme, pope, ratings
from lvlm_interp.evaluation.answer_files import Answer, read_answers, read_mme_answers
from lvlm_interp.evaluation.answer_ids import by_own_names
from lvlm_interp.evaluation.answers import Answers
from lvlm_interp.evaluation.pairing import Paired, pair
from lvlm_interp.evaluation.replies import said
from lvlm_interp.evaluation.rules import Outcome, Rule, Settings, named
from lvlm_interp.files import atomic_write, sha256_file, sha256_folder
from lvlm_interp.provenance import provenance
from lvlm_interp.stats import Estimate

__all__ = ["RULES", "Scores", "score"]

RULES: tuple[Rule, ...] = (
    *pope.RULES,
    *mme.RULES,
    *chair.RULES,
    *amber.RULES,
    *hallusion.RULES,
    *ratings.RULES,
    *cceval.RULES,
)


@dataclass(frozen=True)
class Scores:
    """Scores of answers by one rule, with ours beside.

    Attributes:
        bench: The benchmark.
        rule: Name of the rule.
        scores: Each with a 95% interval over images.
        unparsed: Answers that say nothing that can be scored.
        controls: Scores of constant answers and the like.
        answers: The table they are an aggregate of.
        own: Name and scores of our own rule, and the number of answers that it reads otherwise.
        notes: What a reader must know: vintages, duplicates, what was left out.
        provenance: Files with hashes, settings, versions.
        extra: What else the rule says.
    """

    bench: str
    rule: str
    scores: Mapping[str, Estimate]
    unparsed: int
    controls: Mapping[str, Mapping[str, float]]
    answers: Answers
    own: Mapping[str, Any]
    notes: Sequence[str]
    provenance: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the table, ready for JSON; what is not a number is null."""
        return {
            "bench": self.bench,
            "rule": self.rule,
            "scores": {name: each.to_dict() for name, each in self.scores.items()},
            "unparsed": self.unparsed,
            "n": len(self.answers.table),
            "controls": {
                name: {key: _number(value) for key, value in values.items()}
                for name, values in self.controls.items()
            },
            "own": self.own,
            "notes": list(self.notes),
            "provenance": dict(self.provenance),
            **({"extra": dict(self.extra)} if self.extra else {}),
        }

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_dict`; the file is whole or absent."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        return atomic_write(path, f"{text}\n")

    def __repr__(self) -> str:
        head = f"{self.bench} by {self.rule}, {len(self.answers.table)} answers"
        lines = [f"  {name:<28} {_shown(each)}" for name, each in self.scores.items()]
        return "\n".join([head, *lines])


def score(
    bench: str,
    answers: str | os.PathLike[str],
    truth: str | os.PathLike[str],
    *,
    rule: str | None = None,
    partial: bool = False,
    vectors: str | os.PathLike[str] | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    report: Report | None = None,
) -> Scores:
    """Score an answer file.

    Args:
        bench: `pope`, `chair`, `mme`, `amber`, ...
        answers: The file (for MME, the folder) of answers; see `answer_files`.
        truth: Folder with the benchmark's own files.
        rule: Name of the rule; the benchmark's published one by default.
        partial: Score the answers that are there, and say what is missing, instead of refusing.
        vectors: Word vectors, for `amber-reference`.
        n_resamples: Draws of the bootstrap over images.
        seed: Of the draws.
        report: Gets the error of each line of the answers that cannot be read, which is then left
            out; None raises the first.

    Raises:
        UsageError: No such benchmark or rule.
        DataError: A file is missing or wrong, or answers and questions do not belong together.
    """
    chosen = named(RULES, bench, rule)
    read = _read(bench, answers, report)
    questions = _questions(bench, truth, answers, read)
    notes: list[str] = []
    read = by_own_names(bench, read, questions, notes)
    paired = pair(questions, read, partial=partial, all_needed=bench not in _ANY_IMAGES)
    settings = Settings(
        n_resamples=n_resamples, seed=seed, vectors=None if vectors is None else Path(vectors)
    )
    outcome = chosen.score(paired, settings)
    about = provenance(
        seed=seed,
        data_hash=_hash(truth),
        bench=bench,
        rule=chosen.name,
        rule_about=chosen.about,
        answers=str(answers),
        answers_hash=_hash(answers),
        truth=str(truth),
        n_resamples=n_resamples,
        partial=partial,
    )
    return Scores(
        bench=bench,
        rule=chosen.name,
        scores=outcome.scores,
        unparsed=outcome.unparsed,
        controls=outcome.controls,
        answers=_table(paired, about),
        own=_own(chosen, outcome, paired, settings),
        notes=[*notes, *paired.notes, *outcome.notes],
        provenance=about,
        extra=outcome.extra,
    )


_ANY_IMAGES = ("chair",)
"""Benchmarks without a list of images of their own."""


def _read(bench: str, path: str | os.PathLike[str], report: Report | None) -> list[Answer]:
    if bench == "mme":
        return read_mme_answers(path, report=report)
    return read_answers(path, report=report)


def _questions(
    bench: str,
    truth: str | os.PathLike[str],
    path: str | os.PathLike[str],
    answers: Sequence[Answer],
) -> list[Example]:
    questions = read_benchmark(bench, truth)
    if bench == "pope":
        # Ids start anew in every split, so a file that is named after one is of that one.
        splits = {str(example.labels["category"]) for example in questions}
        mine = [split for split in splits if split in Path(path).stem]
        if len(splits) > 1 and len(mine) == 1 and not any(answer.split for answer in answers):
            return [example for example in questions if example.labels["category"] == mine[0]]
    if bench == "amber":
        # Its parts (descriptions; existence; attributes; relations) are asked apart.
        types = {example.id: str(example.labels["type"]) for example in questions}
        asked = {types.get(answer.id or "") for answer in answers} - {None}
        parts = {_amber_part(kind) for kind in asked if kind}
        kept = [e for e in questions if _amber_part(str(e.labels["type"])) in parts]
        return kept or questions
    return questions


def _amber_part(kind: str) -> str:
    return "attribute" if "attribute" in kind else kind


def _table(paired: Paired, about: Mapping[str, Any]) -> Answers:
    rows = []
    for example, answer in zip(paired.examples, paired.answers, strict=True):
        poll = example.answer in ("yes", "no")
        rows.append(
            {
                "example": example.id,
                "group": example.group,
                "level": example.level,
                "task": "poll" if poll else "describe",
                "statement": example.prompt,
                "truth": example.answer,
                "reply": answer.reply,
                "said": said(answer.reply) if poll else None,
                "category": str(example.labels.get("category", example.labels.get("type", ""))),
            }
        )
    return Answers.of(rows, about)


def _own(rule: Rule, outcome: Outcome, paired: Paired, settings: Settings) -> dict[str, Any]:
    ours = next((each for each in RULES if each.bench == rule.bench and each.own), None)
    if ours is None or ours is rule:
        return {"rule": rule.name if rule.own else None, "differ": 0}
    other = ours.score(paired, settings)
    differ = sum(a != b for a, b in zip(outcome.read, other.read, strict=True))
    return {
        "rule": ours.name,
        "scores": {name: each.to_dict() for name, each in other.scores.items()},
        "differ": differ,
    }


def _hash(path: str | os.PathLike[str]) -> str:
    return sha256_file(path) if Path(path).is_file() else sha256_folder(path, "**/*.[jt][sx][ot]*")


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)


def _shown(each: Estimate) -> str:
    return f"{each.estimate:10.4f}  [{each.low:.4f}, {each.high:.4f}]  n={each.n}"
