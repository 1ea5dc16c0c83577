"""`lvlm-interp patch`: activation patching over pairs, as a table on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from lvlm_interp.data.sources import load_pairs
from lvlm_interp.models.loading import load_model
from lvlm_interp.patching.activation import activation_patch


def main(
    model: str,
    data: str,
    out: Path,
    sites: str = "text.*.z",
    positions: str = "last",
    metric: str = "logit_diff",
    direction: Literal["denoise", "noise"] = "denoise",
    engine: Literal["auto", "fast", "full"] = "auto",
    batch_size: int = 16,
    memory_mib: float = 512.0,
    top: int = 10,
) -> None:
    """Patch components of one run into the other and write a row per pair and component.

    Args:
        model: Folder, hub id or shipped name.
        data: Pairs, for example scenes:object:200:0:trigger, or a file of pairs.
        out: Parquet file to write.
        sites: Names or globs, separated by commas.
        positions: Roles, separated by commas; each or each:ROLE for every position by itself.
        metric: logit_diff, logprob, prob or kl.
        direction: Clean into corrupt (denoise), or the reverse (noise).
        engine: auto, fast or full.
        batch_size: Pairs at once.
        memory_mib: Bound on what the fast engine holds at once.
        top: Components to show.
    """
    result = activation_patch(
        load_model(model),
        load_pairs(data),
        sites,
        [each.strip() for each in positions.split(",")],
        metric=metric,
        direction=direction,
        engine=engine,
        batch_size=batch_size,
        memory_mib=memory_mib,
    )
    result.table.to_parquet(out)
    shown = result.recovery(n_resamples=500).head(top).dropna(axis="columns", how="all")
    sys.stdout.write(f"{shown.to_string(index=False)}\n")
    if result.n_no_gap:
        sys.stdout.write(f"{result.n_no_gap} pairs left out: clean and corrupt do not differ\n")
    sys.stdout.write(f"{len(result.table)} rows in {out}\n")
