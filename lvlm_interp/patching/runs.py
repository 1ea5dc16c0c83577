"""Base runs of a batch of pairs, and what comes out of one patched run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.models.replay import Recording
from lvlm_interp.patching.batches import PairBatch
from lvlm_interp.patching.components import (
    Choice,
    Component,
    components,
    n_units,
)
from lvlm_interp.patching.metrics import Scorer

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
        recording: The run that is patched, kept for the fast engine; None without it.
        first_change: Position before which both runs are the same in every causal layer, so that
            patches there change nothing.
    """

    batch: PairBatch
    source: ActivationCache
    direction: str
    score: Scorer
    m_clean: Float[Tensor, " pair"]
    m_corrupt: Float[Tensor, " pair"]
    recording: Recording | None = None
    first_change: int = 0

    def with_source(self, source: ActivationCache) -> BaseRuns:
        """The same runs with other activations to put in, which may differ everywhere."""
        return replace(self, source=source, first_change=0)

    @property
    def target(self) -> Inputs:
        """Inputs of the run that is patched."""
        return self.batch.corrupt if self.direction == "denoise" else self.batch.clean

    def components(self, model: LVLM, choice: Choice) -> list[Component]:
        """Every component of a choice, in the order of the forward."""
        found: list[Component] = []
        for site in self.source.sites:
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
