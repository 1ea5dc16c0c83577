"""`lvlm-interp patch`: activation patching over pairs, as a table on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from lvlm_interp.data.sources import load_pairs
from lvlm_interp.errors import DataError, UsageError
from lvlm_interp.models.loading import load_for_command
from lvlm_interp.patching.activation import activation_patch


def main(
    model: str,
    data: str,
    out: Path | None = None,
    sites: str = "text.*.z",
    positions: str = "last",
    heads: str = "each",
    metric: str = "logit_diff",
    direction: Literal["denoise", "noise"] = "denoise",
    engine: Literal["auto", "fast", "full"] = "auto",
    batch_size: int = 16,
    memory_mib: float = 512.0,
    top: int = 10,
    skip_bad: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> None:
    """Patch components of one run into the other and write a row per pair and component.

    For example: lvlm-interp patch scenes scenes:object:50:0:trigger --out patch.parquet

    Args:
        model: Folder, hub id or shipped name.
        data: Pairs, for example scenes:object:200:0:trigger, or a pairs file (JSONL).
        out: Parquet file to write; needed.
        sites: Names or globs such as text.*.z or text.3.mlp_out, separated by commas.
        positions: Roles such as last, object, question or image, separated by commas; each or
            each:ROLE for every position by itself.
        heads: each, all (a layer's heads together), or LAYER:HEAD with commas, such as 2:5,3:0.
        metric: logit_diff, logprob, prob or kl.
        direction: Clean into corrupt (denoise), or the reverse (noise).
        engine: auto is fast where that is exact; full is one forward per patch; fast refuses where
            it is not exact.
        batch_size: Pairs at once.
        memory_mib: Bound, in MiB, on what the fast engine holds at once.
        top: Components to show.
        skip_bad: Leave wrong lines of the data out, and list them.
        device: Where the model runs; auto is a GPU where there is one.
        dtype: Of the weights; auto is the checkpoint's own.
        revision: Of a hub checkpoint.
    """
    target = _target(out)
    chosen = _heads(heads)
    if top < 1:
        raise UsageError(f"--top {top}: expected at least one component to show.")
    loaded = load_for_command(model, device, dtype, revision)
    loaded.sites(sites)  # a wrong name is told before the data is read
    skipped: list[DataError] = []
    result = activation_patch(
        loaded,
        load_pairs(data, model=loaded, skip_bad=skip_bad, report=skipped.append),
        sites,
        [each.strip() for each in positions.split(",") if each.strip()],
        metric=metric,
        direction=direction,
        heads=chosen,
        engine=engine,
        batch_size=batch_size,
        memory_mib=memory_mib,
    )
    for error in skipped:
        sys.stdout.write(f"skipped: {error}\n")
    result.table.to_parquet(target)
    shown = result.recovery(n_resamples=500).head(top).dropna(axis="columns", how="all")
    sys.stdout.write(f"{shown.to_string(index=False)}\n")
    if result.n_no_gap:
        sys.stdout.write(f"{result.n_no_gap} pairs left out: clean and corrupt do not differ\n")
    sys.stdout.write(f"{len(result.table)} rows in {target}\n")


def _target(out: Path | None) -> Path:
    """The file to write, known to be writable before anything is computed."""
    if out is None:
        raise UsageError("patch needs --out: lvlm-interp patch MODEL DATA --out patch.parquet.")
    if out.is_dir() or out.suffix != ".parquet":
        raise UsageError(f"--out {out}: expected the name of a file that ends in .parquet.")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it first.")
    return out


def _heads(given: str) -> str | list[tuple[int, int]]:
    if given in ("each", "all"):
        return given
    try:
        pairs = [each.split(":") for each in given.split(",")]
        return [(int(layer), int(head)) for layer, head in pairs]
    except ValueError as error:
        raise UsageError(
            f"--heads {given}: expected each, all, or LAYER:HEAD with commas, such as 2:5,3:0."
        ) from error
