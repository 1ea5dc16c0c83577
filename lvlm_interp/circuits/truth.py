"""The ground-truth benchmark: every method's hit rate on fresh plants, resumable.

Each plant is one job: it is drawn, scored by every method, and its record written to a folder
beside the output. A run that was killed goes on with what is there. The rows are made from all
records at the end.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from lvlm_interp.circuits.localisers import METHODS, Case, methods_for
from lvlm_interp.errors import DataError, UsageError
from lvlm_interp.files import atomic_write, sha256_bytes
from lvlm_interp.organisms.planted import KINDS, Workshop
from lvlm_interp.organisms.planted.fit import RECIPES
from lvlm_interp.stats import Estimate, cluster_bootstrap, wilson

N_PLANTS = {"head": 100, "series": 20, "neuron": 20, "projector": 20, "vision": 20}
N_PAIRS = {"head": 12, "series": 12, "neuron": 3, "projector": 4, "vision": 12}
"""Trigger pairs of each plant; fewer where there are more components to score."""

BOUNDS = {
    (f"head/{name}", measure): bound
    for name in ("activation patching", "AtP*")
    for measure, bound in (("auroc", 0.98), ("rank1", 0.95))
}
_BASELINE = "random"
_SEED_STEP = 100_000

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One plant of a run."""

    kind: str
    seed: int

    @property
    def file(self) -> str:
        """Name of its record."""
        return f"{self.kind}-{self.seed}.json"


def run(
    out: Path,
    *,
    kinds: Sequence[str] = KINDS,
    n: int | None = None,
    seed: int = 0,
    model: str = "scenes-balanced",
    n_jobs: int = 2,
    progress: bool = True,
) -> list[Record]:
    """Draw and score the plants, and write the rows to `out`.

    Args:
        out: JSON file for the rows; records of single plants go to a folder beside it.
        kinds: Of `organisms.planted.KINDS`.
        n: Plants of each kind; 100 of heads and 20 of each other by default.
        seed: Another seed gives other plants.
        model: Base of the plants.
        n_jobs: Processes, one thread each.
        progress: Show a progress bar.

    Raises:
        UsageError: An unknown kind, no plants, or no processes.
        ModelError: There is no such model.
    """
    _check(kinds, n, seed, n_jobs)
    workshop = Workshop.of(model)
    folder = out.with_name(f"{out.name}.{_fingerprint(workshop)}.parts")
    jobs = [
        Job(kind, seed * _SEED_STEP + index)
        for kind in kinds
        for index in range(n or N_PLANTS[kind])
    ]
    todo = [job for job in jobs if not (folder / job.file).exists()]
    done = len(jobs) - len(todo)
    with tqdm(total=len(jobs), initial=done, desc="plants", disable=not progress) as bar:
        for job in _finish(todo, model, folder, n_jobs, workshop):
            bar.set_postfix_str(f"{job.kind} {job.seed}")
            bar.update()
    rows = rows_of([json.loads((folder / job.file).read_text()) for job in jobs])
    atomic_write(out, json.dumps(rows, indent=1) + "\n")
    return rows


def _check(kinds: Sequence[str], n: int | None, seed: int, n_jobs: int) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UsageError(
            f"kinds={', '.join(kinds)!r}: expected some of {', '.join(KINDS)}, by commas."
        )
    if (n is not None and n < 1) or n_jobs < 1 or seed < 0:
        raise UsageError(
            f"n={n}, n_jobs={n_jobs}, seed={seed}: expected at least one plant of each kind, one "
            "process, and a seed from 0."
        )


def _fingerprint(workshop: Workshop) -> str:
    """Of everything a record depends on besides kind and seed: weights, sizes, methods."""
    weights = b"".join(
        value.detach().contiguous().numpy().tobytes() for value in workshop.tail.weights.values()
    )
    sizes = (workshop.n_train, workshop.n_focused, workshop.n_check)
    settings = repr((sizes, N_PAIRS, list(METHODS), RECIPES))
    return sha256_bytes(weights + settings.encode())[:12]


# -- one plant -----------------------------------------------------------------------------------

_workshops: dict[str, Workshop] = {}


def _finish(
    todo: Sequence[Job], model: str, folder: Path, n_jobs: int, workshop: Workshop
) -> Iterator[Job]:
    if n_jobs == 1 or len(todo) <= 1:
        _workshops[model] = workshop
        for job in todo:
            yield _one(job, model, folder)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        n_jobs, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = [pool.submit(_one, job, model, folder) for job in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _one(job: Job, model: str, folder: Path) -> Job:
    """Draw and score one plant, and write its record."""
    if model not in _workshops:
        _workshops[model] = Workshop.of(model)
    record = score_plant(_workshops[model], job)
    atomic_write(folder / job.file, json.dumps(record) + "\n")
    return job


def score_plant(workshop: Workshop, job: Job) -> Record:
    """The record of one plant: how it was drawn, and where each method puts the guilty."""
    start = time.process_time()
    record: Record = {"kind": job.kind, "seed": job.seed}
    try:
        plant = workshop.draw(job.kind, job.seed)
    except DataError as error:
        return {**record, "failed": str(error), "seconds": time.process_time() - start}
    record |= {
        "attempts": plant.attempts,
        "shows": plant.measured.shows,
        "moves": plant.measured.moves,
        "alone": list(plant.measured.alone),
        "trigger": str(plant.trigger),
        "guilty": [str(place) for place in plant.guilty],
        "drawn_in": time.process_time() - start,
        "methods": {},
    }
    case = Case.of(plant, N_PAIRS[job.kind], job.seed)
    for name in methods_for(job.kind):
        begin = time.process_time()
        found = METHODS[name](case)
        record["methods"][name] = {
            **hits(found.scores, case.guilty),
            "forwards": found.forwards,
            "seconds": time.process_time() - begin,
        }
    return {**record, "seconds": time.process_time() - start}


def hits(scores: np.ndarray, guilty: np.ndarray) -> dict[str, float]:
    """AUROC of the guilty against the innocent, and whether they come first; ties count half.

    Args:
        scores: Score of each component, the guilty ones highest if the method is right.
        guilty: Which are guilty.

    Returns:
        `auroc`: chance that a guilty component outranks an innocent one. `rank`: best place of a
        guilty one, 1 for the first. `rank1`: 1 where no innocent one is level with or ahead of
        any guilty one.

    Raises:
        UsageError: A score that is not finite, or nothing to tell apart.
    """
    if not np.isfinite(scores).all() or not guilty.any() or guilty.all():
        raise UsageError("Scores must be finite, with guilty and innocent components among them.")
    mine, others = scores[guilty][:, None], scores[~guilty][None]
    above = (mine > others) + 0.5 * (mine == others)
    best = 1.0 + (others > mine.max()).sum() + 0.5 * (others == mine.max()).sum()
    return {
        "auroc": float(above.mean()),
        "rank": float(best),
        "rank1": float(mine.min() > others.max()),
    }


# -- the table -----------------------------------------------------------------------------------


def rows_of(records: Iterable[Record]) -> list[Record]:
    """Rows of the table, with 95% intervals over plants.

    `case` is KIND/METHOD with `measure` auroc, rank1 (share of plants whose guilty components come
    first) or forwards; and KIND/plants with drawn, yield, shows and moves (the largest).
    """
    by_kind: dict[str, list[Record]] = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    rows: list[Record] = []
    for kind, some in by_kind.items():
        drawn = [record for record in some if "failed" not in record]
        rows += _plant_rows(kind, some, drawn)
        if not drawn:
            continue
        random = {
            measure: float(np.mean([r["methods"][_BASELINE][measure] for r in drawn]))
            for measure in ("auroc", "rank1")
        }
        for name in methods_for(kind):
            found = [record["methods"][name] for record in drawn]
            case = f"{kind}/{name}"
            ranked = wilson(sum(each["rank1"] for each in found), len(found))
            area = cluster_bootstrap([each["auroc"] for each in found])
            rows.append(_row(case, "auroc", area, random["auroc"]))
            rows.append(_row(case, "rank1", ranked, random["rank1"]))
            forwards = float(np.mean([each["forwards"] for each in found]))
            rows.append(_row(case, "forwards", Estimate(forwards, forwards, forwards, len(found))))
    return rows


def _plant_rows(kind: str, some: Sequence[Record], drawn: Sequence[Record]) -> list[Record]:
    case, n = f"{kind}/plants", len(drawn)
    attempts = sum(record["attempts"] for record in drawn)
    seconds = cluster_bootstrap([record["seconds"] for record in some])
    rows = [
        _row(case, "drawn", wilson(n, len(some))),
        _row(case, "CPU seconds", seconds),
    ]
    if not drawn:
        return rows
    worst = [max(abs(move) for move in record["moves"].values()) for record in drawn]
    return [
        *rows,
        _row(case, "yield", wilson(n, attempts)),
        _row(case, "shows", cluster_bootstrap([record["shows"] for record in drawn])),
        _row(case, "moves", cluster_bootstrap(worst)),
    ]


def _row(case: str, measure: str, found: Estimate, baseline: float | None = None) -> Record:
    return {
        "case": case,
        "measure": measure,
        "value": found.estimate,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "baseline": baseline,
        "baseline_name": None if baseline is None else _BASELINE,
        "ratio": found.estimate / baseline if baseline else None,
        "bound": BOUNDS.get((case, measure)),
    }


def text_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as text, one line each."""
    lines = []
    for row in rows:
        line = f"{row['case']}: {row['measure']} {row['value']:.3g}"
        if row["low"] != row["high"]:
            line += f" [{row['low']:.3g}, {row['high']:.3g}]"
        if row["bound"] is not None:
            line += f", bound {row['bound']:g}"
        lines.append(line)
    return "\n".join(lines)
