"""MME: two polls an image in 14 tasks (Fu et al. 2023).

A task's score is 100 acc + 100 acc+, where acc+ is the share of images with both questions right;
perception sums ten tasks (2000 at most), cognition four (800). Pairs are those of an image, not two
lines that follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lvlm_interp.data.benchmarks.polls import COGNITION, PERCEPTION
from lvlm_interp.errors import DataError
from lvlm_interp.evaluation.pairing import Paired
from lvlm_interp.evaluation.replies import NONE, said
from lvlm_interp.evaluation.rules import Outcome, Rule, Settings
from lvlm_interp.evaluation.tally import Counts, Formula, estimates, over

__all__ = ["RULES", "said_by_mme"]


def said_by_mme(reply: str) -> str:
    """What MME's `calculation.py` reads from the first four characters, lower-cased.

    "yes" anywhere in them is yes, else "no" is no ("know", "now", "none"), else other: so "**no**"
    is no and "**yes**" is other.
    """
    text = reply.lower()
    if text in ("yes", "no"):
        return text
    head = text[:4]
    return "yes" if "yes" in head else "no" if "no" in head else "other"


def mme_scores(
    paired: Paired, read: Sequence[str], settings: Settings, *, skipped: Sequence[bool] = ()
) -> dict:
    """Scores of each task, of perception and of cognition.

    Args:
        paired: Questions and answers.
        read: What each answer says; anything but yes and no is wrong.
        settings: Of the bootstrap.
        skipped: Answers that the scorer passes over: they count in no accuracy, and their image
            has not both right.

    Raises:
        DataError: An image has not two questions.
    """
    tasks = [str(example.labels["category"]) for example in paired.examples]
    out = list(skipped) or [False] * len(read)
    right = [
        float(word == example.answer and not left)
        for word, example, left in zip(read, paired.examples, out, strict=True)
    ]
    both, first = _both_right(paired.groups, right)
    columns: dict[str, np.ndarray] = {}
    names = [task for task in (*PERCEPTION, *COGNITION) if task in tasks]
    for task in names:
        mine = np.array([each == task for each in tasks], dtype=float)
        columns[f"{task}:n"] = mine * ~np.array(out)
        columns[f"{task}:right"] = mine * right
        columns[f"{task}:both"] = mine * both
        columns[f"{task}:images"] = mine * first
    formulas: dict[str, Formula] = {}
    for task in names:
        formulas |= _task_formulas(task)
    for part, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
        there = [task for task in members if task in names]
        if there:
            formulas[part] = _sum_of([formulas[f"{task}/score"] for task in there])
    sizes = {name: tasks.count(name.split("/")[0]) for name in formulas}
    sizes |= {"perception": sum(t in PERCEPTION for t in tasks)}
    sizes |= {"cognition": sum(t in COGNITION for t in tasks)}
    return estimates(
        columns,
        paired.groups,
        formulas,
        n=sizes,
        n_resamples=settings.n_resamples,
        seed=settings.seed,
    )


def _both_right(groups: Sequence[str], right: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """For the first answer of each image: whether both are right, and that it is the first."""
    members: dict[str, list[int]] = {}
    for at, group in enumerate(groups):
        members.setdefault(group, []).append(at)
    wrong = {group: len(at) for group, at in members.items() if len(at) != 2}
    if wrong:
        group, n = next(iter(wrong.items()))
        raise DataError(
            f"{len(wrong)} of {len(members)} images have not two answers, the first {group!r} "
            f"({n}): MME's acc+ needs both questions of an image."
        )
    both, first = np.zeros(len(right)), np.zeros(len(right))
    for one, other in members.values():
        first[one] = 1
        both[one] = right[one] * right[other]
    return both, first


def _task_formulas(task: str) -> dict[str, Formula]:
    def acc(c: Counts) -> np.ndarray:
        return over(c[f"{task}:right"], c[f"{task}:n"])

    def acc_plus(c: Counts) -> np.ndarray:
        return over(c[f"{task}:both"], c[f"{task}:images"])

    return {
        f"{task}/acc": acc,
        f"{task}/acc_plus": acc_plus,
        f"{task}/score": lambda c: acc(c) * 100 + acc_plus(c) * 100,
    }


def _sum_of(parts: Sequence[Formula]) -> Formula:
    return lambda counts: np.sum([part(counts) for part in parts], axis=0)


def _rule(reader: Callable[[str], str], theirs: bool) -> Callable[[Paired, Settings], Outcome]:
    def score(paired: Paired, settings: Settings) -> Outcome:
        read = [reader(reply) for reply in paired.replies]
        # Their loader splits a line at every tab and passes over one that gives five parts.
        skipped = [theirs and "\t" in reply for reply in paired.replies]
        bare = Settings(n_resamples=0)
        controls = {
            f"always {word}": {
                name: each.estimate
                for name, each in mme_scores(paired, [word] * len(read), bare).items()
                if name in ("perception", "cognition")
            }
            for word in ("yes", "no")
        }
        notes = []
        if any(skipped):
            notes.append(f"{sum(skipped)} replies hold a tab; the authors' scorer passes over them")
        there = {str(example.labels["category"]) for example in paired.examples}
        absent = [task for task in (*PERCEPTION, *COGNITION) if task not in there]
        if absent:
            notes.append(
                f"{len(absent)} of 14 tasks are not there ({', '.join(absent)}): sums are over the "
                "others"
            )
        return Outcome(
            scores=mme_scores(paired, read, settings, skipped=skipped),
            read=read,
            unparsed=sum(said(reply) == NONE for reply in paired.replies),
            controls=controls,
            notes=notes,
        )

    return score


RULES = (
    Rule("mme-reference", "mme", "the authors' calculation.py", _rule(said_by_mme, True)),
    Rule("mme-strict", "mme", "ours: yes, no or none; none is wrong", _rule(said, False), own=True),
)
