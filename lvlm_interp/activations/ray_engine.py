"""A store's units spread over machines with Ray: actors hold the weights, units are idempotent.

An actor that dies is started again and its unit is done again; since a unit counts only with its
marker and gives the same bytes wherever it is done, the store is the one that a single process
writes. The store's folder must be one that all machines see. Ray is imported when an engine is
made, not before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from lvlm_interp.activations.extract import Engine, Job
from lvlm_interp.data.examples import Example
from lvlm_interp.errors import ModelError, UsageError
from lvlm_interp.models.identity import weight_hash
from lvlm_interp.models.loading import load_model

__all__ = ["UnitWorker", "ray_engine"]


class UnitWorker:
    """Holds a model and does units; what a Ray actor is made of."""

    def __init__(self, job: Job, threads: int) -> None:
        torch.set_num_threads(threads)
        name = job.manifest.model["name"]
        model = load_model(name, dtype=job.manifest.model["dtype"], selfcheck=False)
        if weight_hash(model) != job.manifest.model["weight_hash"]:
            raise ModelError(
                f"A worker loaded {name!r} and got other weights than the manifest's: give a path "
                "or revision that is the same on all machines."
            )
        self.job, self.runner = job, job.runner(model)

    def do(self, unit: int, examples: Sequence[Example]) -> int:
        """Compute and write one unit."""
        self.job.write(unit, self.runner.run(examples))
        return unit

    def process(self) -> int:
        """Id of the process it runs in."""
        return os.getpid()


def ray_engine(
    address: str | None = None,
    *,
    workers: int = 2,
    threads: int = 1,
    gpus: float = 0,
    progress: bool = True,
) -> Engine:
    """An engine for `extract(..., engine=...)`.

    Args:
        address: Of a Ray cluster; None starts one on this machine, or uses the one that runs.
        workers: Actors, each with a copy of the weights.
        threads: CPU cores of each. The last bits depend on it, as they do in one process.
        gpus: GPUs of each.
        progress: Show a bar.

    Raises:
        UsageError: Ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            "The engine 'ray' needs Ray, which is not installed: pip install 'lvlm-interp[ray]'."
        ) from error

    def run(job: Job, units: Sequence[int]) -> None:
        if not units:
            return
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
        bare = Job(job.folder.resolve(), job.manifest, job.part, (), None)
        # Restarts and retries without limit: doing a unit twice does no harm.
        actor: Any = ray.remote(
            num_cpus=threads, num_gpus=gpus, max_restarts=-1, max_task_retries=-1
        )(UnitWorker)
        crew = [actor.remote(bare, threads) for _ in range(min(workers, len(units)))]
        try:
            _drive(ray, crew, job, list(units), progress)
        finally:
            for worker in crew:
                ray.kill(worker)

    return run


def _drive(ray: Any, crew: list[Any], job: Job, waiting: list[int], progress: bool) -> None:
    """Keep every worker busy with one unit until none is left."""
    running: dict[Any, Any] = {}
    with tqdm(total=len(waiting), desc="extract", unit="unit", disable=not progress) as bar:
        idle = list(crew)
        while waiting or running:
            while idle and waiting:
                worker, unit = idle.pop(), waiting.pop(0)
                running[worker.do.remote(unit, job.unit_examples(unit))] = worker
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                ray.get(reference)
                idle.append(running.pop(reference))
                bar.update()
