"""Readers of published benchmarks: a name and a folder in, `Example`s out.

Every file is the user's own copy, in the form its authors gave it. An image that is not found is
None in the example: scoring needs none, and a run names all that are missing before a model is
loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lvlm_interp.data.benchmarks import polls, texts
from lvlm_interp.data.examples import Example
from lvlm_interp.errors import DataError, UsageError

__all__ = ["BENCHMARKS", "read_benchmark"]

BENCHMARKS: dict[str, Callable[[Path], list[Example]]] = {
    "pope": polls.pope,
    "mme": polls.mme,
    "hallusionbench": polls.hallusionbench,
    "chair": texts.chair,
    "amber": texts.amber,
    "mmhal": texts.mmhal,
    "llava-bench": texts.llava_bench,
    "gavie": texts.gavie,
    "cceval": texts.cceval,
    "haelm": texts.haelm,
}


def read_benchmark(bench: str, folder: str | os.PathLike[str]) -> list[Example]:
    """Questions and truths of a benchmark.

    Args:
        bench: One of `BENCHMARKS`.
        folder: The authors' files; for benchmarks of one file, that file will do.

    Raises:
        UsageError: No such benchmark.
        DataError: No such folder, or a file that is missing or wrong.
    """
    if bench not in BENCHMARKS:
        raise UsageError(f"no benchmark {bench!r}; there are {', '.join(sorted(BENCHMARKS))}")
    path = Path(folder)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder of {bench}.")
    return BENCHMARKS[bench](path)
