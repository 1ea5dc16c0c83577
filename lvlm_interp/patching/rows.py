"""Rows of a patching table, one per pair and component."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import Tensor

from lvlm_interp.patching.batches import corruption_of
from lvlm_interp.patching.components import Component
from lvlm_interp.patching.metrics import UNITS
from lvlm_interp.patching.result import NO_GAP
from lvlm_interp.patching.runs import BaseRuns

UNIT = "fraction of the clean-corrupt gap"


@dataclass
class RowWriter:
    """Collects rows of all batches.

    Attributes:
        metric: What was measured.
        direction: `denoise` or `noise`: which run was patched.
        effect: Whether `value` is m(patched) - m(run) instead of the recovery.
    """

    metric: str
    direction: str
    effect: bool = False
    parts: list[pd.DataFrame] = field(default_factory=list)
    no_gap: list[str] = field(default_factory=list)

    def add(self, runs: BaseRuns, component: Component, patched: Tensor, path: str) -> None:
        """Add one component of a batch; `patched` is the metric, shape `pair`."""
        rows = component.rows
        clean, corrupt = runs.m_clean.cpu().numpy()[rows], runs.m_corrupt.cpu().numpy()[rows]
        after = patched.cpu().numpy()[rows]
        base, other = (corrupt, clean) if self.direction == "denoise" else (clean, corrupt)
        gap = other - base
        flat = np.abs(gap) < NO_GAP
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.where(flat, np.nan, (after - base) / gap)
        pairs = [runs.batch.pairs[row] for row in rows]
        self.no_gap += [
            pair.id
            for pair, none in zip(pairs, flat, strict=True)
            if none and pair.id not in self.no_gap
        ]
        example = [p.corrupt.id if self.direction == "denoise" else p.clean.id for p in pairs]
        frame = {
            "example": example,
            "pair": [pair.id for pair in pairs],
            "metric": "effect" if self.effect else "recovery",
            "value": after - base if self.effect else value,
            "unit": UNITS.get(self.metric, "metric") if self.effect else UNIT,
            "of": self.metric,
            "m_clean": clean,
            "m_corrupt": corrupt,
            "m_patched": after,
            "direction": self.direction,
            "kind": [pair.kind for pair in pairs],
            "level": [pair.level for pair in pairs],
            "corruption": [corruption_of(pair) for pair in pairs],
            "group": [pair.group if pair.group is not None else pair.id for pair in pairs],
            "path": path,
        }
        self.parts.append(pd.DataFrame({**component.columns(), **frame}, index=range(len(rows))))

    def frame(self) -> pd.DataFrame:
        """All rows."""
        frame = pd.concat(self.parts, ignore_index=True)
        for name in ("layer", "head", "neuron"):
            frame[name] = frame[name].astype("Int64")
        return frame
