"""`collect`: activations of a data set in memory, by the same path that fills a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from lvlm_interp.activations.base import Activations, Rows, label_frame
from lvlm_interp.activations.forward import Chunk, Runner
from lvlm_interp.activations.gather import Missing
from lvlm_interp.activations.manifest import UNIT
from lvlm_interp.activations.roles import Role, check_sites, parse_roles
from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.data.groups import with_groups
from lvlm_interp.data.sources import data_hash, sides
from lvlm_interp.errors import DataError
from lvlm_interp.models.identity import weight_hash
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.results import provenance
from lvlm_interp.sites import Site

__all__ = ["Collected", "as_examples", "collect"]


class Collected(Activations):
    """Activations in memory; see `Activations`."""

    def __init__(
        self,
        sites: Sequence[Site],
        roles: Sequence[Role],
        provenance: Mapping[str, Any],
        chunks: Sequence[Chunk],
    ) -> None:
        super().__init__(sites, roles, provenance)
        self._pooled = {s: np.concatenate([c.pooled[s] for c in chunks]) for s in sites}
        self._every: dict[tuple[Site, str], np.ndarray] = {}
        self._counts: dict[tuple[str, str], np.ndarray] = {}
        for key in chunks[0].every:
            self._every[key] = np.concatenate([chunk.every[key] for chunk in chunks])
        for key in chunks[0].counts:
            self._counts[key] = np.concatenate([chunk.counts[key] for chunk in chunks])
        self._labels = label_frame([row for chunk in chunks for row in chunk.rows])

    @property
    def labels(self) -> pd.DataFrame:
        """One row per example."""
        return self._labels

    def _shape(self, site: Site) -> tuple[tuple[int, ...], np.dtype]:
        return self._pooled[site].shape, self._pooled[site].dtype

    def _read(self, site: Site, rows: Rows, rest: tuple[Any, ...]) -> np.ndarray:
        return self._pooled[site][rows][(slice(None), *rest)]

    def _read_tokens(self, site: Site, role: Role) -> tuple[np.ndarray, np.ndarray]:
        counts = self._counts[site.tower, role.name]
        return self._every[site, role.name], np.repeat(np.arange(len(counts)), counts)


def collect(
    model: LVLM,
    data: Iterable[Example | ContrastPair],
    sites: str | Iterable[str],
    positions: str | Iterable[str] = ("last",),
    *,
    batch_size: int = 32,
    missing: Missing = "raise",
    progress: bool = True,
) -> Collected:
    """Activations of examples at sites and positions, in float32, in memory.

    Args:
        model: Runs the examples.
        data: Examples, or pairs, of which both sides are taken.
        sites: Names or globs.
        positions: Roles: `object`, `image_mean`, `last`, `text:WORD`, `image_all` and so on.
        batch_size: Examples per forward; it halves itself when memory runs out.
        missing: What a role does that an example lacks: `raise`, or `nan`.
        progress: Show a bar.

    Raises:
        SiteError: A site is not in the model, or has none of the positions.
        UsageError: A position is no role.
        InputError: An example lacks a role.
    """
    examples, chosen, roles = as_examples(data), model.sites(sites), parse_roles(positions)
    check_sites(chosen, roles)
    runner = Runner(
        model, chosen, roles, batch_size=batch_size, dtype=torch.float32, missing=missing
    )
    starts = range(0, len(examples), UNIT)
    bar = tqdm(starts, desc="activations", unit="unit", disable=not progress or len(starts) < 4)
    chunks = [runner.run(examples[start : start + UNIT]) for start in bar]
    origin = provenance(
        model=model.name,
        weight_hash=weight_hash(model),
        data_hash=data_hash(examples),
        dtype=str(model.dtype).removeprefix("torch."),
    )
    return Collected(chosen, roles, origin, chunks)


def as_examples(data: Iterable[Example | ContrastPair]) -> list[Example]:
    """Examples as they are, and both sides of pairs, with groups where none were named.

    Raises:
        DataError: There are none.
    """
    found = [
        side
        for each in with_groups(data)
        for side in (sides([each]) if isinstance(each, ContrastPair) else [each])
    ]
    if not found:
        raise DataError("There are no examples: the data set is empty.")
    return found
