"""Answers with a judge's word beside them, ready to be scored without the judge."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_interp.data.benchmarks import read_benchmark
from lvlm_interp.evaluation.answer_files import read_answers
from lvlm_interp.evaluation.answer_ids import by_own_names
from lvlm_interp.evaluation.judge import Judge, Prompt
from lvlm_interp.evaluation.judge_prompts import Wording, prompts_for
from lvlm_interp.evaluation.pairing import Paired, pair
from lvlm_interp.files import atomic_write

__all__ = ["JudgedAnswers", "judge_answers", "to_be_judged"]


@dataclass(frozen=True)
class JudgedAnswers:
    """What judging gave.

    Attributes:
        path: JSON lines with `id`, `question`, `answer` and `judge_reply`, for `score`.
        asked: Answers.
        missing: Answers without a judge's word, with the reason of the first.
        reason: See `missing`.
    """

    path: Path
    asked: int
    missing: int
    reason: str | None


def to_be_judged(
    bench: str,
    answers: str | os.PathLike[str],
    truth: str | os.PathLike[str],
    wording: Wording,
) -> tuple[Paired, list[Prompt]]:
    """Answers with their questions, and what the judge is asked about each.

    Raises:
        DataError: Files are missing or do not belong together.
    """
    examples, notes = read_benchmark(bench, truth), []
    read = by_own_names(bench, read_answers(answers), examples, notes)
    paired = pair(examples, read)
    return paired, prompts_for(bench, paired, wording)


def judge_answers(
    bench: str,
    paired: Paired,
    prompts: list[Prompt],
    judge: Judge,
    wording: Wording,
    out: str | os.PathLike[str],
    *,
    max_cost: float | None = None,
    progress: bool = True,
) -> JudgedAnswers:
    """Ask the judge about every answer.

    Args:
        bench: The benchmark.
        paired: From `to_be_judged`.
        prompts: From `to_be_judged`.
        judge: The judge.
        wording: Of the prompts; its name and hash stand in every line.
        out: Where the judged answers go; prompts and replies stand beside, in `NAME.log.jsonl`.
        max_cost: See `Judge.ask`.
        progress: Show a bar.

    Raises:
        JudgeError: See `Judge.ask`.
    """
    path = Path(out)
    found = judge.ask(prompts, path.with_suffix(".log.jsonl"), max_cost=max_cost, progress=progress)
    lines = []
    for example, answer, judged in zip(paired.examples, paired.answers, found, strict=True):
        row: dict[str, Any] = {
            "id": example.id,
            "question": example.prompt,
            "answer": answer.reply,
            "judge": judge.model,
            "prompt": wording.name,
            "prompt_hash": wording.hash,
        }
        # A missing word stays missing: an empty one cannot be read and is counted as such.
        if judged.reply is not None or bench != "hallusionbench":
            row["judge_reply"] = judged.reply or ""
        lines.append(json.dumps(row, ensure_ascii=False))
    atomic_write(path, "".join(f"{line}\n" for line in lines))
    lost = [each for each in found if each.reply is None]
    return JudgedAnswers(path, len(found), len(lost), lost[0].error if lost else None)
