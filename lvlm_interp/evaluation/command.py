"""The commands of behaviour: score, build-bench, evaluate, compare and judge."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from lvlm_interp.errors import DataError, UsageError


def score(
    bench: str,
    answers: Path | None = None,
    truth: Path | None = None,
    rule: str | None = None,
    json: Path | None = None,
    table: Path | None = None,
    partial: bool = False,
    skip_bad: bool = False,
    vectors: Path | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> None:
    """Score anyone's answers to a published benchmark, without a model.

    Args:
        bench: pope, chair, mme, amber, hallusionbench, mmhal, llava-bench, gavie, cceval or haelm.
        answers: The answer file: the benchmark's own form, lmms-eval's samples, VLMEvalKit's table.
        truth: Folder with the benchmark's own files.
        rule: Whose rule, such as pope-2023 or pope-strict; the published one by default.
        json: Where to write the scores.
        table: Where to write the table of answers (parquet).
        partial: Score the answers that are there instead of refusing half a file.
        skip_bad: Leave lines out that cannot be read, and list them.
        vectors: Word vectors in text form, for amber-reference.
        n_resamples: Draws of the bootstrap over images; 0 gives no intervals.
        seed: Of the draws.
    """
    if answers is None or truth is None:
        need = "--answers" if answers is None else "--truth"
        raise UsageError(f"score needs {need}: lvlm-interp score {bench} --answers A --truth T.")
    from lvlm_interp.evaluation.scoring import score as run

    skipped: list[DataError] = []
    found = run(
        bench,
        answers,
        truth,
        rule=rule,
        partial=partial,
        vectors=vectors,
        n_resamples=n_resamples,
        seed=seed,
        report=skipped.append if skip_bad else None,
    )
    for error in skipped:
        sys.stdout.write(f"skipped: {error}\n")
    sys.stdout.write(f"{found!r}\n")
    for note in found.notes:
        sys.stdout.write(f"note: {note}\n")
    for name, values in found.controls.items():
        shown = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        sys.stdout.write(f"control, {name}: {shown}\n")
    sys.stdout.write(f"unparsed: {found.unparsed} of {len(found.answers.table)}\n")
    if found.own.get("scores"):
        sys.stdout.write(f"read otherwise by {found.own['rule']}: {found.own['differ']} answers\n")
    if json is not None:
        found.to_json(json)
    if table is not None:
        found.answers.to_parquet(table)


def build_bench(
    graphs: str | None = None,
    images: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Build a unified benchmark (object, attribute, relation) from annotations one has.

    Args:
        graphs: COCO instances, scene graphs of Visual Genome or GQA, rows of objects (JSONL), or
            scenes:LEVEL:N:SEED.
        images: Folder of the images; beside the annotations by default.
        out: Folder of the benchmark.
        seed: Of the choices.
    """
    if graphs is None or out is None:
        need = "--graphs" if graphs is None else "--out"
        raise UsageError(f"build-bench needs {need}: build-bench --graphs G --images I --out O.")
    from lvlm_interp.evaluation.bench_files import build_bench as run
    from lvlm_interp.evaluation.bench_files import load_bench

    folder = run(graphs, images, out, seed=seed)
    examples, _ = load_bench(folder)
    tasks: dict[str, int] = {}
    for example in examples:
        name = f"{example.level or 'all levels'}/{example.labels['task']}"
        tasks[name] = tasks.get(name, 0) + 1
    for name, number in sorted(tasks.items()):
        sys.stdout.write(f"{name:<24} {number}\n")
    sys.stdout.write(f"{folder}: {len(examples)} questions\n")


def evaluate(
    model: str,
    bench: str | None = None,
    data: str | None = None,
    out: Path | None = None,
    rule: str | None = None,
    by: Literal["both", "logits", "generation"] = "both",
    suffix: str = "",
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    controls: str = "",
    limit: int | None = None,
    resume: bool = False,
    engine: Literal["here", "ray"] = "here",
    address: str | None = None,
    workers: int = 2,
    n_resamples: int = 1000,
    seed: int = 0,
) -> None:
    """Ask a model a benchmark's questions and score the answers.

    Args:
        model: Folder, hub id, or shipped name (scenes, scenes-balanced).
        bench: unified, or a published benchmark.
        data: Folder with the benchmark's files; for unified one of build-bench, or
            scenes:LEVEL:N:SEED.
        out: Folder of table, scores and replies.
        rule: Of the scores of a published benchmark.
        by: Polls by logits, by generation, or both in one pass (the reply is read).
        suffix: Put behind every question.
        max_new_tokens: Of every reply; by task otherwise (8 for polls, 512 for descriptions).
        batch_size: Questions in a forward.
        controls: text_only, shuffled_image, or both with a comma; each costs another run.
        limit: Images, which is another benchmark.
        resume: Go on with a run that was killed.
        engine: here, or ray for many machines.
        address: Of the Ray cluster.
        workers: Ray actors.
        n_resamples: Draws of the bootstrap over images.
        seed: Of the bootstrap and of the shuffled images.
    """
    for name, value in (("--bench", bench), ("--data", data), ("--out", out)):
        if value is None:
            raise UsageError(f"evaluate needs {name}: evaluate MODEL --bench B --data D --out O.")
    assert bench is not None and data is not None and out is not None
    from lvlm_interp import jobs
    from lvlm_interp.evaluation.asking import Asking
    from lvlm_interp.evaluation.evaluating import evaluate as run
    from lvlm_interp.evaluation.evaluating import questions_of
    from lvlm_interp.models.loading import load_model

    tokens = Asking().max_new_tokens
    if max_new_tokens is not None:
        tokens = dict.fromkeys(tokens, max_new_tokens)
    how = Asking(suffix=suffix, by=by, batch_size=batch_size, max_new_tokens=tokens)
    questions_of(bench, data, limit)  # what is missing is said before a model is loaded
    found = run(
        load_model(model),
        bench,
        data,
        out=out,
        how=how,
        rule=rule,
        controls=[name for name in controls.replace(" ", "").split(",") if name],
        limit=limit,
        resume=resume,
        engine=jobs.on_ray(address, workers=workers) if engine == "ray" else None,
        n_resamples=n_resamples,
        seed=seed,
    )
    for name, each in found.scores.get("scores", {}).items():
        value, low, high = (_shown(each[key]) for key in ("estimate", "low", "high"))
        sys.stdout.write(f"{name:<36} {value}  [{low}, {high}]  n={each['n']}\n")
    for name, seconds in found.scores["seconds"].items():
        sys.stdout.write(f"seconds of {name}: {seconds}\n")
    if "note" in found.scores:
        sys.stdout.write(f"note: {found.scores['note']}\n")
    sys.stdout.write(f"{out}: {len(found.answers.table)} answers\n")


def compare(runs: list[Path], anyway: bool = False, n_resamples: int = 1000, seed: int = 0) -> None:
    """Compare runs of evaluate question by question; the first is what others are held against.

    Args:
        runs: Folders of evaluate.
        anyway: Compare runs that differ in more than the model.
        n_resamples: Draws of the bootstrap over images.
        seed: Of the draws.
    """
    from lvlm_interp.evaluation.comparing import compare as run

    found = run(runs, anyway=anyway, n_resamples=n_resamples, seed=seed)
    for name, differs in found.differs.items():
        for what, (first, other) in differs.items():
            sys.stdout.write(f"{name} differs in {what}: {first!r}, {other!r}\n")
    for row in found.table.frame.to_dict("records"):
        value, low, high = (_shown(row[name]) for name in ("value", "low", "high"))
        what = f"{row['task']}/{row['level']}/{row['metric']}"
        sys.stdout.write(f"{row['run']}  {what}: {value} [{low}, {high}] n={row['n']}\n")


def judge(
    bench: str,
    answers: Path | None = None,
    truth: Path | None = None,
    out: Path | None = None,
    url: str | None = None,
    model: str | None = None,
    prompt: Path | None = None,
    key_variable: str = "OPENAI_API_KEY",
    price: str | None = None,
    max_cost: float | None = None,
    max_tokens: int = 512,
) -> None:
    """Have a judge behind an OpenAI-compatible endpoint read the answers to a benchmark.

    Args:
        bench: hallusionbench, mmhal, llava-bench, gavie or haelm.
        answers: The answer file.
        truth: Folder with the benchmark's own files.
        out: Judged answers, for score; prompts and replies are kept beside.
        url: Of the endpoint, up to /v1.
        model: Name of the judge.
        prompt: A file with a prompt of your own; ours otherwise.
        key_variable: Environment variable that holds the key.
        price: Dollars per million tokens of prompt and reply, with a comma.
        max_cost: Dollars above which nothing is asked.
        max_tokens: Of a reply.
    """
    needed = (("--answers", answers), ("--truth", truth), ("--out", out), ("--url", url),
              ("--model", model))  # fmt: skip
    for name, value in needed:
        if value is None:
            raise UsageError(f"judge needs {name}; see lvlm-interp judge --help")
    assert answers is not None and truth is not None and out is not None
    assert url is not None and model is not None
    from lvlm_interp.evaluation.judge import Judge
    from lvlm_interp.evaluation.judge_prompts import wording_of
    from lvlm_interp.evaluation.judged_answers import judge_answers, to_be_judged

    wording = wording_of(bench, prompt)
    paired, prompts = to_be_judged(bench, answers, truth, wording)
    asked = Judge(url, model, key_variable, max_tokens=max_tokens, price=_price(price))
    cost = asked.cost(prompts)
    told = "its price is not given" if cost is None else f"at most {cost:.4f} dollars"
    sys.stdout.write(f"{len(prompts)} prompts ({wording.name}) to {model}: {told}\n")
    found = judge_answers(bench, paired, prompts, asked, wording, out, max_cost=max_cost)
    sys.stdout.write(f"{found.path}: {found.asked - found.missing} of {found.asked} judged\n")
    if found.missing:
        sys.stdout.write(f"missing: {found.missing}, the first because {found.reason}\n")


def _price(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        asked, said = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"price must be two numbers with a comma, got {text!r}") from None
    return asked, said


def _shown(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"
