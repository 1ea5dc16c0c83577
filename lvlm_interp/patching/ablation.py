"""Ablation: a component's value replaced by zero, by its mean, or by one of another example."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from tqdm.auto import tqdm

from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.errors import UsageError
from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.patching.batches import batches
from lvlm_interp.patching.components import Choice
from lvlm_interp.patching.metrics import Metric, check_metric, name_of
from lvlm_interp.patching.reference import Reference, collect_reference
from lvlm_interp.patching.result import PatchResult
from lvlm_interp.patching.rows import RowWriter
from lvlm_interp.patching.runs import Engine
from lvlm_interp.patching.sweep import base_runs, run_components
from lvlm_interp.results import ResultTable, provenance
from lvlm_interp.sites import Site

Mode = Literal["zero", "mean", "resample"]
Run = Literal["clean", "corrupt"]


def ablate(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    sites: str | Site | Iterable[str | Site] = "text.*.z",
    positions: str | int | Sequence[str | int] = "all",
    *,
    mode: Mode = "mean",
    run: Run = "corrupt",
    reference: Sequence[Example | ContrastPair] | None = None,
    metric: str | Metric = "logit_diff",
    heads: str | Sequence[tuple[int, int]] = "each",
    neurons: str | Sequence[tuple[int, int]] = "all",
    batch_size: int = 16,
    engine: Engine = "auto",
    memory_mib: float = 512.0,
    seed: int = 0,
    progress: bool = True,
) -> PatchResult:
    """Ablate every chosen component by itself in one run of each pair.

    `value` is the effect, m(ablated) - m(run), in the metric's unit; `recovery()` relates it to
    the gap between clean and corrupt as for patching.

    Args:
        model: The model.
        pairs: Aligned pairs.
        sites: Names or globs.
        positions: As in `activation_patch`.
        mode: `zero`; `mean` over the reference set, one mean per kind of position (last,
            question, image, other); or `resample`, a value of the same kind drawn from it.
        run: The run that is ablated.
        reference: Examples or pairs to take means and samples from; both sides of `pairs` by
            default.
        metric: As in `activation_patch`.
        heads: As in `activation_patch`.
        neurons: As in `activation_patch`.
        batch_size: Pairs at once.
        engine: As in `activation_patch`.
        memory_mib: As in `activation_patch`.
        seed: Of resampling.
        progress: Show a progress bar.

    Raises:
        UsageError: As in `activation_patch`, and an unknown mode or an empty reference set.
        InputError: A pair lacks a role, or its runs are not aligned.
    """
    check_metric(metric)
    if mode not in get_args(Mode) or run not in get_args(Run):
        raise UsageError(
            f"mode={mode!r}, run={run!r}: expected a mode of {', '.join(get_args(Mode))} and a run "
            f"of {', '.join(get_args(Run))}."
        )
    chosen = model.sites(sites)
    choice = Choice.make(positions, heads, neurons).over(chosen)
    # The run that is ablated is the one that would be patched.
    direction = "denoise" if run == "corrupt" else "noise"
    prepared = list(batches(model, pairs, batch_size))
    known = None
    if mode != "zero":
        source = pairs if reference is None else reference
        known = collect_reference(model, source, chosen, keep_samples=mode == "resample")
    writer = RowWriter(name_of(metric), direction, "effect")
    rng, cost = np.random.default_rng(seed), 0.0
    with tqdm(total=len(pairs), desc=f"{mode} ablation", unit="pair", disable=not progress) as bar:
        for batch in prepared:
            runs = base_runs(model, batch, chosen, metric, direction, engine)
            runs = runs.with_source(_replacements(runs.source, runs.target, known, mode, rng))
            for outcome in run_components(
                model, runs, runs.components(model, choice), engine, memory_mib
            ):
                writer.add(runs, outcome.component, outcome.metric, outcome.path)
                cost += outcome.cost
            cost += 2 * len(batch)
            bar.update(len(batch))
    facts = provenance(
        seed=seed,
        model=model.name,
        dtype=str(model.dtype).removeprefix("torch."),
        method=f"{mode} ablation of the {run} run",
        of=name_of(metric),
        n_pairs=len(pairs),
    )
    return PatchResult(ResultTable(writer.frame(), facts), tuple(writer.no_gap), cost)


def _replacements(
    source: ActivationCache,
    inputs: Inputs,
    known: Reference | None,
    mode: str,
    rng: np.random.Generator,
) -> ActivationCache:
    """What stands in for each site's value, in its shape."""
    out = ActivationCache()
    for site in source.sites:
        value = source[site]
        if known is None:
            out[site] = torch.zeros_like(value)
        elif mode == "mean":
            out[site] = known.mean_like(site, inputs, value)
        else:
            out[site] = known.sample_like(site, inputs, value, rng)
    return out
