"""`lvlm-interp extract` and `lvlm-interp store verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from lvlm_interp.errors import DataError, StoreError, UsageError


def extract(
    model: str,
    data: str | None = None,
    sites: str = "text.*.resid_post",
    positions: str = "last",
    out: Path | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    batch_size: int | None = None,
    missing: Literal["raise", "nan"] = "raise",
    resume: bool = False,
    append: bool = False,
    skip_bad: bool = False,
    engine: Literal["here", "ray"] = "here",
    address: str | None = None,
    workers: int = 2,
    device: str = "auto",
    model_dtype: str = "auto",
    revision: str | None = None,
) -> None:
    """Store the activations of a data set, once, for everything that reads them.

    Args:
        model: Folder, hub id, or shipped name (scenes, scenes-balanced).
        data: scenes:LEVEL:N:SEED, a pairs or examples file (JSONL), a folder, or a datasets folder.
        sites: Names or globs with commas, such as text.*.resid_post,vision.*.resid_post.
        positions: Roles with commas: object, image_mean, question, last, text:WORD, image_all, ...
        out: Folder of the store.
        dtype: Of what is stored; the model's own by default.
        batch_size: Examples in a forward; halves itself when memory runs out.
        missing: What a position does that an example lacks: raise, or nan.
        resume: Finish what is in the folder; start afresh where nothing is.
        append: Add the examples to a finished store.
        skip_bad: Leave wrong lines of the data out, and list them.
        engine: here, or ray for many machines.
        address: Of the Ray cluster.
        workers: Ray actors.
        device: Where the model runs; auto is a GPU where there is one.
        model_dtype: Of the weights; auto is the checkpoint's own.
        revision: Of a hub checkpoint.
    """
    if data is None or out is None:
        need = "--data" if data is None else "--out"
        raise UsageError(f"extract needs {need}: lvlm-interp extract MODEL --data D --out STORE.")
    from lvlm_interp.activations.extract import extract as run
    from lvlm_interp.data.sources import load_examples
    from lvlm_interp.jobs import on_ray
    from lvlm_interp.models.loading import load_for_command

    skipped: list[DataError] = []
    examples = load_examples(data, skip_bad=skip_bad, report=skipped.append)
    store = run(
        load_for_command(model, device, model_dtype, revision),
        examples,
        sites=sites,
        positions=positions,
        out=out,
        dtype=dtype,
        batch_size=batch_size,
        missing=missing,
        resume=resume,
        append=append,
        engine=on_ray(address, workers=workers) if engine == "ray" else None,
        name=data,
    )
    for error in skipped:
        sys.stdout.write(f"skipped: {error}\n")
    sys.stdout.write(f"{out}: {store!r}\n")


def verify(store: Path, repair: bool = False) -> None:
    """Check that every byte of a store is as it was written.

    Args:
        store: Folder of the store.
        repair: Delete what is damaged, so that extract --resume makes it anew.
    """
    from lvlm_interp.activations.store import verify_store

    problems = verify_store(store, repair=repair)
    for problem in problems:
        sys.stdout.write(f"{problem}\n")
    if problems:
        done = "deleted; run extract --resume" if repair else "run again with --repair"
        raise StoreError(f"{store}: {len(problems)} problem(s), the first {problems[0]} ({done}).")
    sys.stdout.write(f"{store}: every file is as it was written\n")
