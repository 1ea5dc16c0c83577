"""`evaluate`: a benchmark through a model into a folder: table, scores, controls, provenance."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lvlm_interp import jobs
from lvlm_interp.data.benchmarks import BENCHMARKS, read_benchmark
from lvlm_interp.data.examples import Example
from lvlm_interp.errors import DataError, UsageError
from lvlm_interp.evaluation.answer_files import Answer
from lvlm_interp.evaluation.answers import Answers
from lvlm_interp.evaluation.asking import Asking
from lvlm_interp.evaluation.bench_files import load_bench, unified_bench
from lvlm_interp.evaluation.judging import Reader
from lvlm_interp.evaluation.pairing import Paired
from lvlm_interp.evaluation.rules import Outcome, Settings, named
from lvlm_interp.evaluation.running import as_control, check_images, run
from lvlm_interp.evaluation.scoring import RULES
from lvlm_interp.evaluation.unified import Unified, unified
from lvlm_interp.files import atomic_write
from lvlm_interp.models.lvlm import LVLM

__all__ = ["Evaluated", "evaluate", "questions_of"]

JUDGED = ("mmhal", "llava-bench", "gavie", "cceval", "haelm")
"""Benchmarks whose scores need a judge's word on the answers."""


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation gave.

    Attributes:
        answers: The table.
        scores: JSON: scores by rule, controls, unparsed, seconds of each run.
        unified: Frequency, severity and risk, for the unified benchmark.
    """

    answers: Answers
    scores: Mapping[str, Any]
    unified: Unified | None = None


def questions_of(
    bench: str, data: str | os.PathLike[str], limit: int | None = None
) -> tuple[list[Example], Reader]:
    """Questions of a benchmark, and what reads the replies.

    Args:
        bench: unified, or a published one.
        data: A folder; for unified one of build-bench, or `scenes:LEVEL:N:SEED`.
        limit: Take the first so many images, which is another benchmark.

    Raises:
        UsageError: No such benchmark.
        DataError: Files or images are missing.
    """
    if bench == "unified":
        made = str(data).startswith("scenes:")
        examples, reader = unified_bench(data) if made else load_bench(data)
    elif bench in BENCHMARKS:
        if not Path(data).exists():
            raise DataError(
                f"{data}: there is no such folder. Hub ids are not fetched here: download the data "
                "set's files and give their folder."
            )
        examples, reader = read_benchmark(bench, data), Reader()
        check_images(examples if limit is None else _first_images(examples, limit))
    else:
        raise UsageError(f"no benchmark {bench!r}; there are unified, {', '.join(BENCHMARKS)}")
    return (examples if limit is None else _first_images(examples, limit)), reader


def _first_images(examples: Sequence[Example], limit: int) -> list[Example]:
    kept = set(list(dict.fromkeys(e.group or e.id for e in examples))[:limit])
    return [example for example in examples if (example.group or example.id) in kept]


def evaluate(
    model: LVLM,
    bench: str,
    data: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    how: Asking | None = None,
    rule: str | None = None,
    controls: Sequence[str] = (),
    limit: int | None = None,
    resume: bool = False,
    engine: jobs.Engine | None = None,
    progress: bool = True,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Evaluated:
    """Ask a model a benchmark's questions and score the answers.

    Args:
        model: The model.
        bench: unified, pope, mme, chair, amber, hallusionbench, or one that is judged.
        data: See `questions_of`.
        out: Folder of `answers.parquet`, `answers.jsonl`, `scores.json` and every reply.
        how: How it is asked.
        rule: Of the scores of a published benchmark.
        controls: `text_only`, `shuffled_image`: the same questions again, which costs as much.
        limit: Images.
        resume: Go on with a run that was killed.
        engine: See `run`.
        progress: Show a bar.
        n_resamples: Draws of the bootstrap.
        seed: Of the bootstrap and of the shuffle.

    Raises:
        UsageError, DataError, StoreError: See `questions_of` and `run`.
    """
    folder, how = Path(out), how or Asking()
    examples, reader = questions_of(bench, data, limit)
    about = {"bench": bench, "data": str(data), "limit": limit}
    options: dict[str, Any] = {
        "reader": reader, "how": how, "resume": resume, "engine": engine, "progress": progress,
    }  # fmt: skip
    seconds: dict[str, float] = {}
    runs: dict[str, Answers] = {}
    for name in ("answers", *controls):
        rows = examples if name == "answers" else as_control(examples, name, seed)
        place = folder / "replies" / name
        start = time.perf_counter()
        runs[name] = run(model, rows, out=place, about={**about, "control": name}, **options)
        seconds[name] = round(time.perf_counter() - start, 3)
    answers = runs["answers"]
    whole = None
    if bench == "unified":
        scored, whole = _unified_scores(runs, n_resamples, seed)
    elif bench in JUDGED:
        scored = {"note": f"{bench} is scored by a judge: run lvlm-interp judge on answers.jsonl"}
    else:
        scored = _published_scores(bench, rule, examples, runs, Settings(n_resamples, seed))
    scores = {"bench": bench, "model": model.name, **scored, "seconds": seconds}
    _write(folder, examples, runs, scores)
    return Evaluated(answers, scores, whole)


def _unified_scores(
    runs: Mapping[str, Answers], n_resamples: int, seed: int
) -> tuple[dict[str, Any], Unified]:
    answers = runs["answers"]
    whole = unified(answers, n_resamples=n_resamples, seed=seed)
    controls = {
        name: _flat(unified(some, n_resamples=0))
        for name, some in runs.items()
        if name != "answers"
    }
    polls = answers.select(task=["poll", "pair"])
    for word in ("yes", "no"):
        same = polls.frame.assign(said=word)
        controls[f"always {word}"] = _flat(unified(same, n_resamples=0))
    scores = {_key(row): _entry(row) for row in _records(whole)}
    found: dict[str, Any] = {"rule": "unified", "scores": scores, "controls": controls}
    if "condition" in answers.frame and answers.frame["condition"].notna().any():
        parts = unified(polls, by="condition", n_resamples=n_resamples, seed=seed)
        found["conditions"] = {
            f"{row['condition']}/{row['level']}/{row['metric']}": _entry(row)
            for row in _records(parts)
            if row["task"] == "poll" and row["metric"] in ("false_alarms", "misses")
        }
    found["unparsed"] = int((answers.frame["said"] == "none")[_is_poll(answers)].sum())
    return found, whole


def _is_poll(answers: Answers) -> Any:
    return answers.frame["task"].isin(["poll", "pair"])


def _flat(found: Unified) -> dict[str, float | None]:
    return {_key(row): _number(row["value"]) for row in _records(found)}


def _records(found: Unified) -> list[dict[Any, Any]]:
    return found.table.frame.to_dict("records")


def _key(row: Mapping[Any, Any]) -> str:
    return f"{row['task']}/{row['level']}/{row['metric']}"


def _entry(row: Mapping[Any, Any]) -> dict[str, Any]:
    numbers = {name: _number(row[name]) for name in ("low", "high")}
    return {"estimate": _number(row["value"]), **numbers, "n": int(row["n"])}


def _published_scores(
    bench: str,
    rule: str | None,
    examples: Sequence[Example],
    runs: Mapping[str, Answers],
    settings: Settings,
) -> dict[str, Any]:
    chosen = named(RULES, bench, rule)
    ours = next((each for each in RULES if each.bench == bench and each.own), chosen)
    outcome = chosen.score(_paired(examples, runs["answers"]), settings)
    bare = replace(settings, n_resamples=0)
    controls = {name: dict(values) for name, values in outcome.controls.items()}
    for name, answers in runs.items():
        if name != "answers":
            found = chosen.score(_paired(examples, answers), bare)
            controls[name] = {key: each.estimate for key, each in found.scores.items()}
    own = ours.score(_paired(examples, runs["answers"]), settings)
    return {
        "rule": chosen.name,
        "scores": {name: each.to_dict() for name, each in outcome.scores.items()},
        "unparsed": outcome.unparsed,
        "controls": {
            name: {key: _number(value) for key, value in values.items()}
            for name, values in controls.items()
        },
        "own": {
            "rule": ours.name,
            "scores": {name: each.to_dict() for name, each in own.scores.items()},
            "differ": _differ(outcome, own),
        },
        "notes": list(outcome.notes),
    }


def _differ(first: Outcome, second: Outcome) -> int:
    return sum(a != b for a, b in zip(first.read, second.read, strict=True))


def _paired(examples: Sequence[Example], answers: Answers) -> Paired:
    """The replies as the rules take them; a description has several rows and one reply."""
    replies: dict[str, str] = {}
    for name, reply in zip(answers.frame["example"], answers.frame["reply"], strict=True):
        replies.setdefault(str(name).partition("#")[0], str(reply))
    found = [Answer(replies[e.id], e.id, None, None, None, None, None, e.id) for e in examples]
    return Paired(list(examples), found)


def _write(
    folder: Path,
    examples: Sequence[Example],
    runs: Mapping[str, Answers],
    scores: Mapping[str, Any],
) -> None:
    runs["answers"].to_parquet(folder / "answers.parquet")
    for name, answers in runs.items():
        if name != "answers":
            answers.to_parquet(folder / f"{name}.parquet")
    lines = []
    for example, answer in zip(examples, _paired(examples, runs["answers"]).answers, strict=True):
        labels = example.labels
        fields = {
            "question_id": labels.get("question_id", example.id),
            "id": example.id,
            "image_id": labels.get("image", example.group),
            "category": labels.get("category"),
            "question": example.prompt,
            "answer": answer.reply,
        }
        kept = {name: value for name, value in fields.items() if value is not None}
        lines.append(json.dumps(kept, ensure_ascii=False))
    atomic_write(folder / "answers.jsonl", "".join(f"{line}\n" for line in lines))
    text = json.dumps(scores, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write(folder / "scores.json", f"{text}\n")


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)
