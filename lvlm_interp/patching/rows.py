"""Rows of a patching table, one per pair and component."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import Tensor

from lvlm_interp.patching.batches import corruption_of
from lvlm_interp.patching.components import Component
from lvlm_interp.patching.metrics import UNITS
from lvlm_interp.patching.result import NO_GAP
from lvlm_interp.patching.runs import BaseRuns
from lvlm_interp.results import COLUMNS
from lvlm_interp.sites import Site

UNIT = "fraction of the clean-corrupt gap"

KINDS = ("recovery", "effect", "attribution", "unsigned attribution")
"""What `value` is: the recovery; m(patched) - m(run); an estimate of the latter; or its size."""


_WORDS = (
    *("tower", "site", "position", "metric", "unit", "path"),
    *("example", "pair", "kind", "level", "corruption", "group", "direction", "of"),
)
"""Columns of strings. A sweep has thousands of rows and a handful of words, so until the end a row
holds the number of its word."""

_INTEGERS = ("layer", "head", "neuron")
"""Columns of numbers that not every site has; -1 for none."""


@dataclass
class RowWriter:
    """Collects rows of all batches as columns, and makes one frame of them at the end.

    Attributes:
        metric: What was measured.
        direction: `denoise` or `noise`: which run was patched.
        kind: What `value` is, of `KINDS`.
        no_gap: Ids of the pairs without a gap between clean and corrupt.
    """

    metric: str
    direction: str
    kind: str = "recovery"
    no_gap: dict[str, None] = field(default_factory=dict)
    _parts: list[dict[str, np.ndarray]] = field(default_factory=list)
    _words: dict[str, int] = field(default_factory=dict)
    _open: list[tuple[Component, Tensor, str]] = field(default_factory=list)
    _runs: BaseRuns | None = None

    def add(self, runs: BaseRuns, component: Component, patched: Tensor, path: str) -> None:
        """Add one component of a batch; `patched` is the metric, shape `pair`."""
        if self._runs is not runs:
            self._flush()
            self._runs = runs
        self._open.append((component, patched.detach(), path))

    def _flush(self) -> None:
        """Write the components of a batch that were added one by one."""
        if not self._open:
            return
        assert self._runs is not None
        parts, values, paths = zip(*self._open, strict=True)
        self._open = []
        # Components at one position share their mask.
        masks = {id(part.mask): part.mask for part in parts}
        known = {key: mask.any(-1).cpu().numpy() for key, mask in masks.items()}
        present = np.stack([known[id(part.mask)] for part in parts])
        where = self._where([part.site for part in parts], [part.unit for part in parts])
        names = {
            "position": self._numbers(part.label for part in parts),
            "path": self._numbers(paths),
        }
        after = np.stack([value.cpu().numpy() for value in values])
        self._write(self._runs, where | names, present, after)

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
        self._flush()
        n = len(labels) * len(units)
        where = self._where([site] * len(units), units)
        where = {name: np.tile(column, len(labels)) for name, column in where.items()}
        names = {
            "position": np.repeat(self._numbers(labels), len(units)),
            "path": np.repeat(self._numbers([path]), n),
        }
        present = np.repeat(present, len(units), axis=0)
        self._write(runs, where | names, present, patched.reshape(n, -1))

    def _where(self, sites: Sequence[Site], units: Sequence[int | None]) -> dict[str, np.ndarray]:
        """Columns of the site and the unit of each component."""
        index = np.array([-1 if number is None else number for number in units])
        with_heads = np.array([site.has_heads for site in sites])
        return {
            "tower": self._numbers(site.tower for site in sites),
            "layer": np.array([-1 if site.layer is None else site.layer for site in sites]),
            "site": self._numbers(site.name for site in sites),
            "head": np.where(with_heads, index, -1),
            "neuron": np.where(with_heads, -1, index),
        }

    def _write(
        self,
        runs: BaseRuns,
        described: dict[str, np.ndarray],
        present: np.ndarray,
        patched: np.ndarray,
    ) -> None:
        """Columns of some components of a batch; `present` and `patched` are `component pair`."""
        row, pair = np.nonzero(present)
        after = patched[row, pair].astype(float)
        known = self._pairs(runs)
        base, other = (known[name][pair] for name in ("m_corrupt", "m_clean"))
        if self.direction == "noise":
            base, other = other, base
        gap = other - base
        with np.errstate(divide="ignore", invalid="ignore"):
            recovery = np.where(np.abs(gap) < NO_GAP, np.nan, (after - base) / gap)
        unsigned = self.kind == "unsigned attribution"
        value = recovery if self.kind == "recovery" else after - base
        unit = UNIT if self.kind == "recovery" else UNITS.get(self.metric, "metric")
        described = described | {
            "metric": np.repeat(self._numbers([self.kind]), len(present)),
            "unit": np.repeat(self._numbers([unit]), len(present)),
        }
        self._parts.append(
            {name: column[pair] for name, column in known.items()}
            | {name: column[row] for name, column in described.items()}
            | {
                "value": after if unsigned else value,
                "m_patched": np.full(len(row), np.nan) if unsigned else after,
            }
        )

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
        columns = {name: self._numbers(values) for name, values in words.items()}
        return {**columns, "m_clean": clean.astype(float), "m_corrupt": corrupt.astype(float)}

    def _numbers(self, words: Iterable[str]) -> np.ndarray:
        """The number of each word; a new word gets the next one."""
        known = self._words
        return np.array([known.setdefault(word, len(known)) for word in words], dtype=np.int64)

    def frame(self) -> pd.DataFrame:
        """All rows, in the order of the forward, then of heads and positions, then of pairs."""
        self._flush()
        words = pd.array(list(self._words), dtype="str")

        def finished(name: str) -> np.ndarray | pd.api.extensions.ExtensionArray:
            column = np.concatenate([part[name] for part in self._parts])
            if name in _INTEGERS:
                return pd.arrays.IntegerArray(column.astype(np.int64), column < 0)
            return words.take(column) if name in _WORDS else column

        names = [*COLUMNS, *(name for name in self._parts[0] if name not in COLUMNS)]
        return pd.DataFrame({name: finished(name) for name in names}, copy=False)
