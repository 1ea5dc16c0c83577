"""Reference activations: what a component holds elsewhere, for mean and resample ablation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.errors import UsageError
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.positions import tower_positions
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.sites import Site
from lvlm_interp.tokens import NONE

KINDS = ("last", "question", "image", "other")
"""Kinds of position that have a mean of their own."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Values of a reference set by site and kind of position.

    Attributes:
        means: Mean per kind; `unit...` as the site has it, without batch and position.
        samples: For resampling, per kind one tensor of shape `sample unit...`.
    """

    means: dict[Site, dict[str, Tensor]]
    samples: dict[Site, dict[str, Tensor]]

    def mean_like(self, site: Site, inputs: Inputs, value: Tensor) -> Tensor:
        """The mean of each position's kind, in the shape of a site's value."""
        out = value.clone()
        for row, kinds in enumerate(position_kinds(inputs, site.positions_of, value.shape[1])):
            for kind in KINDS:
                at = torch.as_tensor(np.flatnonzero(kinds == kind))
                if len(at):
                    out[row, at] = self._of(self.means, site, kind).to(value)
        return out

    def sample_like(
        self, site: Site, inputs: Inputs, value: Tensor, rng: np.random.Generator
    ) -> Tensor:
        """A random reference value of the same kind for each position, in the site's shape."""
        out = value.clone()
        for row, kinds in enumerate(position_kinds(inputs, site.positions_of, value.shape[1])):
            for kind in KINDS:
                at = torch.as_tensor(np.flatnonzero(kinds == kind))
                if len(at):
                    pool = self._of(self.samples, site, kind)
                    pick = torch.as_tensor(rng.integers(len(pool), size=len(at)))
                    out[row, at] = pool[pick].to(value)
        return out

    def _of(self, table: dict[Site, dict[str, Tensor]], site: Site, kind: str) -> Tensor:
        if kind not in table[site]:
            raise UsageError(
                f"The reference set has no position of the kind {kind!r} at {site}: give it "
                "examples that look like those that are ablated."
            )
        return table[site][kind]


def position_kinds(inputs: Inputs, tower: str, n_positions: int) -> list[np.ndarray]:
    """Kind of each position of each row, of `KINDS`; empty text for padding.

    Outside of the language model what is behind image tokens is of the kind `image`, and what is
    not (class tokens, a Q-Former's words) of the kind `other`.
    """
    found = []
    for row, tokens in enumerate(inputs.tokens):
        kinds = np.full(n_positions, "", dtype=object)
        kinds[inputs.real(row, tower, n_positions)] = "other"
        if tower != "text":
            behind = tokens.towers.get(tower)
            at = np.arange(n_positions) if behind is None else behind[behind != NONE]
            kinds[at] = np.where(kinds[at] == "", "", "image")
            found.append(kinds)
            continue
        kinds[tokens.image] = "image"
        kinds[tower_positions(tokens, "text", "question")] = "question"
        kinds[tokens.last] = "last"
        found.append(kinds)
    return found


def collect_reference(
    model: LVLM,
    examples: Sequence[Example | ContrastPair],
    sites: Sequence[Site],
    *,
    keep_samples: bool = False,
    batch_size: int = 32,
) -> Reference:
    """Means (and samples) of a reference set, per kind of position.

    Args:
        model: The model.
        examples: Examples, or pairs, both of whose sides then count.
        sites: Sites with a position axis (`batch pos ...`).
        keep_samples: Keep every value for resampling; at most 4,096 per site and kind.
        batch_size: Examples at once.

    Raises:
        UsageError: The set is empty, or a site has no position axis of its own.
    """
    flat = [
        side
        for item in examples
        for side in ([item.clean, item.corrupt] if isinstance(item, ContrastPair) else [item])
    ]
    if not flat:
        raise UsageError("The reference set is empty: give the examples to take means over.")
    for site in sites:
        if site.position_axis != 1:
            raise UsageError(f"{site} has no mean over examples of other lengths: use mode 'zero'.")
    sums = _Sums()
    for start in range(0, len(flat), batch_size):
        inputs = model.prepare(flat[start : start + batch_size])
        _, cache = model.run_with_cache(inputs, sites, logits_to_keep=1)
        for site in sites:
            value = cache[site]
            kinds = np.stack(position_kinds(inputs, site.positions_of, value.shape[1]))
            for kind in KINDS:
                chosen = value[torch.as_tensor(kinds == kind)]
                if len(chosen):
                    sums.add(site, kind, chosen, keep_samples)
    return sums.reference()


class _Sums:
    """Running sums per site and kind."""

    limit = 4096

    def __init__(self) -> None:
        self.totals: dict[Site, dict[str, tuple[Float[Tensor, ...], int]]] = {}
        self.samples: dict[Site, dict[str, list[Tensor]]] = {}

    def add(self, site: Site, kind: str, values: Tensor, keep: bool) -> None:
        total, count = self.totals.setdefault(site, {}).get(kind, (torch.zeros(()), 0))
        self.totals[site][kind] = (total + values.double().sum(0), count + len(values))
        if keep:
            pool = self.samples.setdefault(site, {}).setdefault(kind, [])
            room = self.limit - sum(map(len, pool))
            if room > 0:
                pool.append(values[:room].clone())

    def reference(self) -> Reference:
        means = {
            site: {kind: total / count for kind, (total, count) in kinds.items()}
            for site, kinds in self.totals.items()
        }
        samples = {
            site: {kind: torch.cat(parts) for kind, parts in kinds.items()}
            for site, kinds in self.samples.items()
        }
        return Reference(means, samples)
