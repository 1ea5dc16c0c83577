"""The engine of many machines: Ray actors hold what a job starts with, shards are idempotent.

An actor that dies is started again and its shard is done again; since a shard counts only when it
is whole and gives the same bytes wherever it is done, the result is the one of a single process.
The job's folder must be one that all machines see. Ray is imported when an engine is made, not
before.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from lvlm_interp.errors import LvlmInterpError, UsageError
from lvlm_interp.jobs.job import Engine, Job, OnError

__all__ = ["ShardWorker", "on_ray"]


class ShardWorker:
    """Holds a job that has started and does shards; what a Ray actor is made of."""

    def __init__(self, job: Job, threads: int) -> None:
        job.start(threads)
        self.job = job

    def do(self, key: Any, payload: Any) -> Any:
        """Compute and write one shard."""
        self.job.write(key, self.job.compute(key, payload))
        return key

    def process(self) -> int:
        """Id of the process it runs in."""
        return os.getpid()


def on_ray(
    address: str | None = None,
    *,
    workers: int = 2,
    threads: int = 1,
    gpus: float = 0,
    progress: bool = True,
    on_error: OnError | None = None,
) -> Engine:
    """An engine for `engine=`.

    Args:
        address: Of a Ray cluster; None starts one on this machine, or uses the one that runs.
        workers: Actors, each with a copy of the weights.
        threads: CPU cores of each. The last bits depend on it, as they do in one process.
        gpus: GPUs of each.
        progress: Show a bar.
        on_error: As in `here`.

    Raises:
        UsageError: Ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            "The engine 'ray' needs Ray, which is not installed: pip install 'lvlm-interp[ray]'."
        ) from error

    def run(job: Job, keys: Sequence[Any]) -> None:
        if not keys:
            return
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
        # Restarts and retries without limit: doing a shard twice does no harm.
        actor: Any = ray.remote(
            num_cpus=threads, num_gpus=gpus, max_restarts=-1, max_task_retries=-1
        )(ShardWorker)
        crew = [actor.remote(job.bare(), threads) for _ in range(min(workers, len(keys)))]
        try:
            _drive(ray, crew, job, list(keys), progress, on_error)
        finally:
            for worker in crew:
                ray.kill(worker)

    return run


def _drive(
    ray: Any,
    crew: list[Any],
    job: Job,
    waiting: list[Any],
    progress: bool,
    on_error: OnError | None,
) -> None:
    """Keep every worker busy with one shard until none is left."""
    running: dict[Any, tuple[Any, Any]] = {}
    with tqdm(total=len(waiting), desc=job.label, unit="shard", disable=not progress) as bar:
        idle = list(crew)
        while waiting or running:
            while idle and waiting:
                worker, key = idle.pop(), waiting.pop(0)
                running[worker.do.remote(key, job.payload(key))] = (worker, key)
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                worker, key = running.pop(reference)
                try:
                    ray.get(reference)
                except LvlmInterpError as error:  # Ray's wrapper is of the class that was raised
                    if on_error is None:
                        raise
                    on_error(key, error)
                idle.append(worker)
                bar.update()
