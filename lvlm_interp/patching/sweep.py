"""Sweeps: both base runs, then one patched run per component by the engine that fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.errors import UsageError
from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM, Edit
from lvlm_interp.models.recording import Recording, record_run, rows_at_once
from lvlm_interp.models.replay import can_branch
from lvlm_interp.patching.batches import PairBatch
from lvlm_interp.patching.branching import branch_outcomes
from lvlm_interp.patching.components import Component
from lvlm_interp.patching.metrics import Metric, Scorer
from lvlm_interp.patching.runs import BaseRuns, Engine, Outcome
from lvlm_interp.sites import Site

EMBED = Site("text", None, "embed")


def base_runs(
    model: LVLM,
    batch: PairBatch,
    sites: Sequence[Site],
    metric: str | Metric,
    direction: str,
    engine: Engine = "auto",
    *,
    target: bool = True,
) -> BaseRuns:
    """Run both sides of a batch once and keep the source's activations.

    Without `target` only the source runs, and its metric stands for both sides: the caller runs the
    other side with gradients and fills it in. A metric that compares with the clean run (`kl`)
    needs the target where that is the clean run.

    Where an edit or a recording is open around the call, every run is a full forward of its own
    batch: branches have other positions and enter behind what an edit may change.

    Raises:
        UsageError: `fast` was asked for where such a context is open.
    """
    if watched := model.is_watched:
        if engine == "fast":
            raise UsageError(
                "engine='fast' is not exact here: an edit or a recording is open, and branches do "
                "not pass it as a forward does. Use engine='auto', or leave that context first."
            )
        engine = "full"
    both = batch.both if target and all(can_branch(site) for site in sites) else None
    if both is not None and not watched and both["input_ids"].numel() <= rows_at_once(model):
        run = _in_one_forward(model, batch, both, sites, direction, engine)
    else:
        run = _one_by_one(model, batch, sites, direction, engine, target)
    source, source_logits, target_logits, recording, first_change = run
    clean, corrupt = (
        (source_logits, target_logits) if direction == "denoise" else (target_logits, source_logits)
    )
    score = Scorer(metric, batch.pairs, batch.answer, batch.foil, clean)
    m_clean, m_corrupt = score(clean), score(corrupt)
    return BaseRuns(batch, source, direction, score, m_clean, m_corrupt, recording, first_change)


_Run = tuple[ActivationCache, Tensor, Tensor, Recording | None, int]
"""The source's activations, logits of source and target, the target's run, the first change."""


def _one_by_one(
    model: LVLM,
    batch: PairBatch,
    sites: Sequence[Site],
    direction: str,
    engine: Engine,
    target: bool,
) -> _Run:
    source_inputs = batch.clean if direction == "denoise" else batch.corrupt
    target_inputs = batch.corrupt if direction == "denoise" else batch.clean
    with model.record(sites) as source, model.record([EMBED]) as entering:
        source_logits = model.last_logits(source_inputs)
    if not target:
        return source, source_logits, source_logits, None, 0
    if engine == "full":
        return source, source_logits, model.last_logits(target_inputs), None, 0
    with model.record([EMBED]) as other:
        recording = record_run(model, target_inputs)
    first_change = _first_difference(entering[EMBED], other[EMBED])
    return source, source_logits, recording.logits, recording, first_change


def _in_one_forward(
    model: LVLM,
    batch: PairBatch,
    both: Inputs,
    sites: Sequence[Site],
    direction: str,
    engine: Engine,
) -> _Run:
    """Both sides at once, where one side is so small that it costs hardly less than two."""
    n = len(batch)
    start, inputs = (n, batch.corrupt) if direction == "denoise" else (0, batch.clean)
    target, source = slice(start, start + n), slice(n - start, 2 * n - start)
    recording = None
    with model.record(sites) as seen, model.record([EMBED]) as entering:
        if engine == "full":
            logits = model.last_logits(both)
        else:
            whole = record_run(model, both)
            logits, recording = whole.logits, whole.of_rows(start, inputs)
    first_change = _first_difference(entering[EMBED][source], entering[EMBED][target])
    return seen.rows(source), logits[source], logits[target], recording, first_change


def _first_difference(
    one: Float[Tensor, "pair pos d_model"], other: Float[Tensor, "pair pos d_model"]
) -> int:
    """First position at which any pair's runs differ; the length where none does."""
    differs = (one != other).flatten(2).any(-1).any(0).nonzero()
    return int(differs[0, 0]) if len(differs) else one.shape[1]


def run_components(
    model: LVLM,
    runs: BaseRuns,
    todo: Sequence[Component],
    engine: Engine,
    memory_mib: float,
) -> Iterator[Outcome]:
    """One patched run per component, in the order given.

    Args:
        model: The model.
        runs: Base runs.
        todo: What to patch.
        engine: `auto`, `fast` or `full`, as in `activation_patch`.
        memory_mib: Bound on the activations of the branches that are held at once.

    Raises:
        UsageError: `fast` was asked for where it is not exact; the reason is given. Or the bound
            is no number of MiB.
    """
    if memory_mib <= 0:
        raise UsageError(f"memory_mib={memory_mib}: expected a bound in MiB above 0, such as 512.")
    outcomes: dict[int, Outcome] = {}
    if engine != "full" and runs.recording is not None:
        outcomes = branch_outcomes(runs, todo, memory_mib, strict=engine == "fast")
    for index, component in enumerate(todo):
        if index in outcomes:
            yield outcomes[index]
            continue
        logits = patched_logits(model, runs, [component])
        yield Outcome(component, runs.score(logits), "full", float(len(runs.batch)))


def patched_logits(
    model: LVLM, runs: BaseRuns, together: Sequence[Component]
) -> Float[Tensor, "pair d_vocab"]:
    """Logits at the answer with some components exchanged at once, by a full forward."""
    by_site: dict[Site, list[Component]] = {}
    for component in together:
        by_site.setdefault(component.site, []).append(component)

    def editor(parts: list[Component], source: Tensor) -> Edit:
        def edit(value: Tensor) -> Tensor:
            for part in parts:
                value = part.write(value, source)
            return value

        return edit

    edits: dict[str | Site, Edit] = {
        site: editor(parts, runs.source[site]) for site, parts in by_site.items()
    }
    with torch.no_grad(), model.edit(edits):
        return model.last_logits(runs.target)
