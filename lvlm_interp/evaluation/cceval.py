"""CCEval: CHAIR and coverage by a judge's lists of objects (Zhai et al. 2023).

For each caption a judge lists the objects named, those hallucinated, and those that the caption
leaves uncovered. The authors read the first `[...]` of one line and split it at commas; so `[]` is
one object (the empty one), and a reply that cannot be read means nothing hallucinated and coverage
1. Objects that the captioner itself put in brackets count in `chair_i` and not in `chair_i_n`.
Theirs pairs caption i with key i and never looks at `image_id`; here captions are paired by id.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from lvlm_interp.errors import DataError
from lvlm_interp.evaluation.answer_files import Answer
from lvlm_interp.evaluation.pairing import Paired
from lvlm_interp.evaluation.rules import Outcome, Rule, Settings
from lvlm_interp.evaluation.tally import Formula, estimates, over

__all__ = ["FIELDS", "RULES", "listed"]

FIELDS = {
    "objects": ("objects", "objects_reply", "cap_objects", "raw_words"),
    "hallucinated": ("hallucinated", "hallucinated_reply", "hallucination", "hallucinated_words"),
    "uncovered": ("uncovered", "uncovered_reply", "coverage", "uncover_words"),
}
"""What the judge was asked, and the fields that may hold its reply (a text, or a list)."""

_LIST = re.compile(r"\[(.*?)\]")


def listed(reply: str) -> list[str] | None:
    """The judge's list by the authors' reading; None where there is no bracket on one line."""
    match = _LIST.search(reply)
    return None if match is None else [item.strip(" '") for item in match.group(1).split(",")]


def _listed_strict(reply: str) -> list[str] | None:
    match = re.search(r"\[(.*?)\]", reply, re.DOTALL)
    if match is None:
        return None
    items = [item.strip().strip("'\"").strip() for item in match.group(1).split(",")]
    return [item for item in items if item]


def _asked(answer: Answer, what: str) -> Any:
    return next((answer.fields[n] for n in FIELDS[what] if answer.fields.get(n) is not None), None)


def _list_of(answer: Answer, what: str, read: Callable[[str], list[str] | None]) -> Any:
    """The list; None where the judge's reply is not readable; "absent" where there is none."""
    given = _asked(answer, what)
    if given is None:
        return "absent"
    return [str(item) for item in given] if isinstance(given, list) else read(str(given))


def _rule(read: Callable[[str], list[str] | None], theirs: bool) -> Callable[..., Outcome]:
    def score(paired: Paired, settings: Settings) -> Outcome:
        rows = [
            _row(example.labels["objects"], answer, read, theirs)
            for example, answer in zip(paired.examples, paired.answers, strict=True)
        ]
        names = (
            "captions", "with", "hallucinated", "all", "plain", "uncovered", "truth",
        )  # fmt: skip
        columns = {name: np.array([row[name] for row in rows], dtype=float) for name in names}
        formulas: dict[str, Formula] = {}
        if columns["captions"].any():
            formulas |= {
                "chair_s": lambda c: over(c["with"], c["captions"]),
                "chair_i": lambda c: over(c["hallucinated"], c["all"]),
                "chair_i_n": lambda c: over(c["hallucinated"], c["plain"]),
            }
        if columns["truth"].any():
            formulas["coverage"] = lambda c: 1 - over(c["uncovered"], c["truth"])
        if not formulas:
            raise DataError(
                f"{paired.answers[0].where}: expected the judge's replies in fields such as "
                f"{', '.join(names[0] for names in FIELDS.values())}; judge the captions first."
            )
        unread = int(sum(row["unread"] for row in rows))
        what = "count as nothing" if theirs else "are missing"
        notes = ["judged by a model: compare only within one judge"]
        if unread:
            notes.append(f"{unread} replies of the judge cannot be read and {what}")
        return Outcome(
            estimates(
                columns, paired.groups, formulas,
                n_resamples=settings.n_resamples, seed=settings.seed,
            ),
            read=[tuple(row[name] for name in names) for row in rows],
            unparsed=unread,
            controls={"says nothing": {"chair_s": 0.0, "coverage": 0.0}},
            notes=notes,
        )  # fmt: skip

    return score


def _row(truth: Any, answer: Answer, read: Any, theirs: bool) -> dict[str, float]:
    """What one caption adds to each sum."""
    row: dict[str, float] = dict.fromkeys(
        ("captions", "with", "hallucinated", "all", "plain", "uncovered", "truth", "unread"), 0
    )
    found = {what: _list_of(answer, what, read) for what in FIELDS}
    row["unread"] = sum(value is None for value in found.values())
    if theirs:
        found = {what: [] if value is None else value for what, value in found.items()}
    objects, wrong, uncovered = (found[what] for what in FIELDS)
    if isinstance(objects, list) and isinstance(wrong, list):
        bracketed = set(_LIST.findall(answer.reply))
        row["captions"] = 1
        row["hallucinated"] = len(set(wrong) - {""})
        row["with"] = float(row["hallucinated"] > 0)
        row["plain"], row["all"] = len(set(objects)), len(set(objects) | bracketed)
    if isinstance(uncovered, list):
        row["truth"] = len(set(truth))
        row["uncovered"] = len(set(uncovered) - {""})
    return row


RULES = (
    Rule("cceval-reference", "cceval", "the authors' cceval.py", _rule(listed, True)),
    Rule(
        "cceval-strict",
        "cceval",
        "ours: empty lists are empty, what cannot be read is missing",
        _rule(_listed_strict, False),
        own=True,
    ),
)
