"""`lvlm-interp score` and `lvlm-interp build-bench`."""

from __future__ import annotations

import sys
from pathlib import Path

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
