"""Rows, timing and the command line that every benchmark file shares.

A benchmark measures its baseline in the same run, in turns with the case, so that a busy machine
slows both. A file ends in::

    if __name__ == "__main__":
        run(rows)

where `rows()` gives a list of `row(...)`; it is then run as `python benchmarks/NAME.py
[--json OUT]`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Row = dict[str, Any]


def row(
    case: str,
    measure: str,
    value: float,
    *,
    baseline: float | None = None,
    baseline_name: str | None = None,
    bound: float | None = None,
) -> Row:
    """One line of a benchmark.

    Args:
        case: What was measured and at which size.
        measure: The quantity with its unit, for example `"seconds"` or `"MB/s"`.
        value: The figure.
        baseline: The same quantity of the alternative, from the same run.
        baseline_name: What the alternative is.
        bound: What `ratio` should stay within (below it for costs, above it for rates), where there
            is one.

    Returns:
        The row; `ratio` is value / baseline, None without a baseline.
    """
    ratio = None if not baseline else value / baseline
    return {
        "case": case,
        "measure": measure,
        "value": value,
        "baseline": baseline,
        "baseline_name": baseline_name,
        "ratio": ratio,
        "bound": bound,
    }


def interleaved(
    functions: Mapping[str, Callable[[], Any]], *, repeats: int = 7, warmup: int = 1
) -> dict[str, float]:
    """Median seconds of each function, all of them run in turns.

    Args:
        functions: Name to a function without arguments.
        repeats: Timed rounds.
        warmup: Rounds that are not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def run(rows: Callable[[], list[Row]]) -> None:
    """Measure, show a table, and write it as JSON where `--json OUT` asks for it."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the rows to this file")
    options = parser.parse_args()
    measured = rows()
    print(table(measured))
    if options.json:
        from lvlm_interp.files import atomic_write

        atomic_write(options.json, json.dumps(measured, indent=1) + "\n")


def table(rows: list[Row]) -> str:
    """The rows as text, one line each."""
    lines = []
    for entry in rows:
        line = f"{entry['case']}: {entry['value']:.4g} {entry['measure']}"
        if entry["ratio"] is not None:
            name = entry["baseline_name"] or "baseline"
            line += f", {entry['ratio']:.3g} x {name} ({entry['baseline']:.4g})"
        if entry["bound"] is not None:
            line += f", bound {entry['bound']:g}"
        lines.append(line)
    return "\n".join(lines)
