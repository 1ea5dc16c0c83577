"""`lvlm-interp circuits benchmark`: every localisation method, scored where the truth is known."""

from __future__ import annotations

import sys
from pathlib import Path

from lvlm_interp.circuits.truth import run, text_of
from lvlm_interp.organisms.planted import KINDS


def benchmark(
    json: Path = Path("ground_truth.json"),
    kinds: str = ",".join(KINDS),
    n: int | None = None,
    seed: int = 0,
    model: str = "scenes-balanced",
    n_jobs: int = 2,
) -> None:
    """Draw fresh plants, score every localisation method on them, and write a table.

    Args:
        json: File for the rows. Records of single plants go to a folder beside it, from which a
            run that was stopped goes on.
        kinds: Kinds of plants, separated by commas.
        n: Plants of each kind; 100 of heads and 20 of each other where not given.
        seed: Another seed gives other plants.
        model: Shipped organism or folder that the plants are put into.
        n_jobs: Processes.
    """
    names = [name.strip() for name in kinds.split(",") if name.strip()]
    rows = run(json, kinds=names, n=n, seed=seed, model=model, n_jobs=n_jobs)
    sys.stdout.write(f"{text_of(rows)}\n{len(rows)} rows in {json}\n")
