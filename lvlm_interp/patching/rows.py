"""Rows of a patching table, one per pair and component."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from lvlm_interp.patching.batches import corruption_of
from lvlm_interp.patching.components import Component
from lvlm_interp.patching.metrics import UNITS
from lvlm_interp.patching.result import NO_GAP
from lvlm_interp.patching.runs import BaseRuns
from lvlm_interp.sites import Site

UNIT = "fraction of the clean-corrupt gap"

KINDS = ("recovery", "effect", "attribution", "unsigned attribution")
"""What `value` is: the recovery; m(patched) - m(run); an estimate of the latter; or its size."""


@dataclass
class RowWriter:
    """Collects rows of all batches as columns, and makes one frame of them at the end.

    Attributes:
        metric: What was measured.
        direction: `denoise` or `noise`: which run was patched.
        kind: What `value` is, of `KINDS`.
    """

    metric: str
    direction: str
    kind: str = "recovery"
    parts: list[dict[str, np.ndarray]] = field(default_factory=list)
    no_gap: dict[str, None] = field(default_factory=dict)
    _known: tuple[BaseRuns, dict[str, np.ndarray]] | None = None

    def add(self, runs: BaseRuns, component: Component, patched: Tensor, path: str) -> None:
        """Add one component of a batch; `patched` is the metric, shape `pair`."""
        self.add_site(
            runs,
            component.site,
            [component.label],
            [component.unit],
            component.mask.any(-1)[None].cpu().numpy(),
            patched.detach().cpu().numpy()[None, None],
            path,
        )

    def add_site(
        self,
        runs: BaseRuns,
        site: Site,
        labels: Sequence[str],
        units: Sequence[int | None],
        present: np.ndarray,
        patched: np.ndarray,
        path: str,
    ) -> None:
        """Add all components of a site for a batch.

        Args:
            runs: Base runs of the batch.
            site: Where.
            labels: Positions.
            units: Heads or neurons, or [None].
            present: Whether a pair has the position; shape `label pair`.
            patched: Metric after the patch (for unsigned scores: the score); `label unit pair`.
            path: The engine.
        """
        label, unit, pair = np.nonzero(np.repeat(present[:, None], len(units), axis=1))
        after = patched[label, unit, pair].astype(float)
        if self._known is None or self._known[0] is not runs:
            self._known = (runs, self._pairs(runs))
        known = self._known[1]
        base, other = known["m_corrupt"], known["m_clean"]
        if self.direction == "noise":
            base, other = other, base
        gap = (other - base)[pair]
        with np.errstate(divide="ignore", invalid="ignore"):
            recovery = np.where(np.abs(gap) < NO_GAP, np.nan, (after - base[pair]) / gap)
        unsigned = self.kind == "unsigned attribution"
        value = recovery if self.kind == "recovery" else after - base[pair]
        index = np.array([-1 if u is None else u for u in units])[unit]
        head, neuron = (index, -1) if site.has_heads else (-1, index)
        fixed: dict[str, Any] = {
            "tower": site.tower,
            "layer": -1 if site.layer is None else site.layer,
            "site": site.name,
            "head": head,
            "neuron": neuron,
            "position": np.array(labels, dtype=object)[label],
            "metric": self.kind,
            "value": after if unsigned else value,
            "unit": UNIT if self.kind == "recovery" else UNITS.get(self.metric, "metric"),
            "m_patched": np.nan if unsigned else after,
            "path": path,
        }
        columns = {name: values[pair] for name, values in known.items()} | fixed
        self.parts.append({k: np.broadcast_to(v, len(pair)) for k, v in columns.items()})

    def _pairs(self, runs: BaseRuns) -> dict[str, np.ndarray]:
        """What is known of each pair of a batch, by column."""
        pairs = runs.batch.pairs
        clean, corrupt = (m.detach().cpu().numpy() for m in (runs.m_clean, runs.m_corrupt))
        flat = np.abs(clean - corrupt) < NO_GAP
        self.no_gap |= {pair.id: None for pair, none in zip(pairs, flat, strict=True) if none}
        sides = [p.corrupt if self.direction == "denoise" else p.clean for p in pairs]
        words = {
            "example": [side.id for side in sides],
            "pair": [pair.id for pair in pairs],
            "kind": [pair.kind for pair in pairs],
            "level": [pair.level for pair in pairs],
            "corruption": [corruption_of(pair) for pair in pairs],
            "group": [pair.group if pair.group is not None else pair.id for pair in pairs],
            "direction": [self.direction] * len(pairs),
            "of": [self.metric] * len(pairs),
        }
        columns = {name: np.array(values, dtype=object) for name, values in words.items()}
        return {**columns, "m_clean": clean.astype(float), "m_corrupt": corrupt.astype(float)}

    def frame(self) -> pd.DataFrame:
        """All rows, in the order of the forward, then of heads and positions, then of pairs."""
        names = list(self.parts[0])
        frame = pd.DataFrame(
            {name: np.concatenate([part[name] for part in self.parts]) for name in names}
        )
        for name in ("layer", "head", "neuron"):
            column = frame[name].astype("Int64")
            frame[name] = column.mask(column < 0)
        return frame
