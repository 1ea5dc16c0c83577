"""The engine of this process: one shard after the other, written while the next is computed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from lvlm_interp.errors import LvlmInterpError
from lvlm_interp.jobs.job import Engine, Job, OnError

__all__ = ["here"]


def here(*, progress: bool = True, on_error: OnError | None = None) -> Engine:
    """An engine that works here and now.

    Args:
        progress: Show a bar.
        on_error: Gets the error of a shard that a user can mend and that is left undone; None
            raises it.
    """

    def run(job: Job, keys: Sequence[Any]) -> None:
        if not keys:
            return
        job.start()
        # Disk and hashes wait without the interpreter's lock, so a shard is written while the next
        # one is computed; never more than one waits, so memory does not grow.
        with ThreadPoolExecutor(1) as writer:
            writing = None
            for key in tqdm(keys, desc=job.label, unit="shard", disable=not progress):
                try:
                    result = job.compute(key, job.payload(key))
                except LvlmInterpError as error:
                    if on_error is None:
                        raise
                    on_error(key, error)
                    continue
                if writing is not None:
                    writing.result()
                writing = writer.submit(job.write, key, result)
            if writing is not None:
                writing.result()

    return run
