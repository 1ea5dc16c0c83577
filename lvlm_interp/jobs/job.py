"""What a long job is to an engine: keys, and how one of them is computed and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any

__all__ = ["Engine", "Job", "Key", "OnError"]

Key = Hashable
"""Names one shard; it counts as done when its files are whole, whoever wrote them."""

OnError = Callable[[Key, Exception], None]
"""Gets the error of a shard that is left undone."""


class Job(ABC):
    """Work in shards. Each is idempotent: written again it gives the same bytes.

    So a run can be killed at any moment, shards can be done in any order and on any machine, and
    what is there is what a single run would have written.
    """

    label: str = "job"
    """What the progress bar says."""

    @property
    @abstractmethod
    def undone(self) -> list[Any]:
        """Keys of the shards that are not there whole."""

    @abstractmethod
    def payload(self, key: Any) -> Any:
        """What a worker in another process needs for a shard; can be pickled."""

    @abstractmethod
    def start(self, threads: int | None = None) -> None:
        """Make ready to compute, once in each process; threads are the cores it may use."""

    @abstractmethod
    def compute(self, key: Any, payload: Any) -> Any:
        """The result of a shard."""

    @abstractmethod
    def write(self, key: Any, result: Any) -> None:
        """Put a result on disk; its marker, or its one file, last and atomically."""

    @abstractmethod
    def bare(self) -> Job:
        """The job without model and data, to be sent to other machines."""


Engine = Callable[[Job, Sequence[Any]], None]
"""Does the shards of the given keys."""
