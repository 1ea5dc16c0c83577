"""`lvlm-interp probe`: a sweep over a store, from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

from lvlm_interp.errors import UsageError


def main(
    store: Path,
    label: str | None = None,
    group: str = "group",
    sites: str = "*",
    positions: list[str] | None = None,
    heads: bool = False,
    where: str | None = None,
    probe: str = "logistic",
    control_type: str = "type",
    seed: int = 0,
    jobs: int = 1,
    out: Path | None = None,
) -> None:
    """Fit probes for a label over the sites of a store, with their controls.

    Args:
        store: Folder of the store, from lvlm-interp extract.
        label: Column to predict, for example present, color, relation, wrong.
        group: Column whose equal values are never split (scene or image).
        sites: Names or globs among the store's sites, with commas.
        positions: Among the store's positions, with commas; all by default.
        heads: One probe per head where a site has heads.
        where: Which examples take part, for example "asked_shape == 'ring'".
        probe: logistic, ridge, mean_difference or mlp.
        control_type: Column of the types of the control task.
        seed: Of folds, controls and intervals.
        jobs: Processes.
        out: Folder for table.parquet and summary.csv.
    """
    if label is None:
        raise UsageError("probe needs --label: lvlm-interp probe STORE --label present.")
    from lvlm_interp.activations.store import open_store
    from lvlm_interp.files import atomic_write
    from lvlm_interp.probing.sweep import sweep

    found = sweep(
        open_store(store),
        label=label,
        group=group,
        sites=sites,
        positions=positions,
        heads=heads,
        where=where,
        probe=probe,
        control_type=control_type,
        seed=seed,
        n_jobs=jobs,
    )
    shown = ["site", "position", "balanced_accuracy", "balanced_accuracy_low"]
    shown += ["balanced_accuracy_high", "shuffled", "selectivity", "pvalue_adjusted", "n"]
    sys.stdout.write(found.summary[shown].round(3).to_string(index=False) + "\n")
    best = found.best()
    sys.stdout.write(
        f"chosen on training folds: {best.site} at {best.position}, balanced accuracy "
        f"{best.balanced_accuracy}, selectivity {best.selectivity}\n"
    )
    if out is not None:
        found.table.to_parquet(out / "table.parquet")
        atomic_write(out / "summary.csv", found.summary.to_csv(index=False))
