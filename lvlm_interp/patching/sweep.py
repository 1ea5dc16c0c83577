"""Base runs of a batch of pairs, and one patched run per component by the engine that fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM, Edit
from lvlm_interp.patching.batches import PairBatch
from lvlm_interp.patching.components import (
    Choice,
    Component,
    check_single_image,
    components,
    n_units,
)
from lvlm_interp.patching.metrics import Metric, Scorer
from lvlm_interp.sites import Site

Engine = Literal["auto", "fast", "full"]


@dataclass(frozen=True, eq=False)
class BaseRuns:
    """Both unpatched runs of a batch.

    Attributes:
        batch: The pairs.
        source: Activations that are put in: of the clean run when denoising, else of the corrupt.
        direction: `denoise` or `noise`.
        score: The metric.
        m_clean, m_corrupt: The metric of the base runs; shape `pair`.
    """

    batch: PairBatch
    source: ActivationCache
    direction: str
    score: Scorer
    m_clean: Float[Tensor, " pair"]
    m_corrupt: Float[Tensor, " pair"]

    def with_source(self, source: ActivationCache) -> BaseRuns:
        """The same runs with other activations to put in."""
        return replace(self, source=source)

    @property
    def target(self) -> Inputs:
        """Inputs of the run that is patched."""
        return self.batch.corrupt if self.direction == "denoise" else self.batch.clean

    def components(self, model: LVLM, choice: Choice) -> list[Component]:
        """Every component of a choice, in the order of the forward."""
        found: list[Component] = []
        for site in self.source.sites:
            check_single_image(self.batch, site)
            value = self.source[site]
            found += components(self.batch, site, value, choice, n_units(model, site, value))
        return found


@dataclass(frozen=True, eq=False)
class Outcome:
    """One patched run.

    Attributes:
        component: What was patched.
        metric: Of each pair; shape `pair`.
        path: The engine that ran.
        cost: Full forwards over one pair that it took.
    """

    component: Component
    metric: Tensor
    path: str
    cost: float


def base_runs(
    model: LVLM,
    batch: PairBatch,
    sites: Sequence[Site],
    metric: str | Metric,
    direction: str,
) -> BaseRuns:
    """Run both sides of a batch once and keep the source's activations."""
    source_inputs = batch.clean if direction == "denoise" else batch.corrupt
    target_inputs = batch.corrupt if direction == "denoise" else batch.clean
    with model.record(sites) as source:
        source_logits = model.last_logits(source_inputs)
    target_logits = model.last_logits(target_inputs)
    clean, corrupt = (
        (source_logits, target_logits) if direction == "denoise" else (target_logits, source_logits)
    )
    score = Scorer(metric, batch.pairs, batch.answer, batch.foil, clean)
    return BaseRuns(batch, source, direction, score, score(clean), score(corrupt))


def run_components(
    model: LVLM,
    runs: BaseRuns,
    todo: Sequence[Component],
    engine: Engine,
    memory_mib: float,
) -> Iterator[Outcome]:
    """One patched run per component."""
    for component in todo:
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
