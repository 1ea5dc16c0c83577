"""Components: what one patch exchanges, a site's unit (head, neuron) at some positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.patching.batches import PairBatch
from lvlm_interp.sites import Site

UNIT_AXIS = {"head": "head", "kv_head": "head", "d_mlp": "neuron"}
"""Axis of a site's shape that counts its units, and what a unit is called in tables."""


@dataclass(frozen=True, eq=False)
class Component:
    """What one patch exchanges.

    Attributes:
        site: Where.
        unit: Head or neuron; None for the whole site.
        label: The position's role, or its number, in tables.
        mask: Positions that are exchanged; shape `pair pos`. Rows without any are left out.
    """

    site: Site
    unit: int | None
    label: str
    mask: Tensor

    @property
    def rows(self) -> np.ndarray:
        """Pairs that have the position."""
        return self.mask.any(-1).nonzero()[:, 0].cpu().numpy()

    def columns(self) -> dict[str, Any]:
        """Its identity in a table."""
        return {
            "tower": self.site.tower,
            "layer": self.site.layer,
            "site": self.site.name,
            "head": self.unit if self.site.has_heads else None,
            "neuron": self.unit if not self.site.has_heads else None,
            "position": self.label,
        }

    def write(self, value: Tensor, source: Tensor) -> Tensor:
        """The value with this component taken from `source`; both as the site has them."""
        return torch.where(self.selection(value), source.to(value), value)

    def selection(self, value: Tensor) -> Tensor:
        """True where this component is; broadcasts against the site's value."""
        shape = [1] * value.ndim
        shape[0], shape[self.site.position_axis] = self.mask.shape
        chosen = self.mask.to(value.device).reshape(shape)
        if self.unit is None:
            return chosen
        axis = unit_axis(self.site)
        assert axis is not None
        unit = torch.zeros(value.shape[axis], dtype=torch.bool, device=value.device)
        unit[self.unit] = True
        return chosen & unit.reshape([-1 if i == axis else 1 for i in range(value.ndim)])


def unit_axis(site: Site) -> int | None:
    """Index of the axis that counts a site's units; None where it has none."""
    axes = site.shape.split()
    return next((axes.index(axis) for axis in UNIT_AXIS if axis in axes), None)


def n_units(model: LVLM, site: Site, value: Tensor) -> int | None:
    """Number of heads or neurons at a site, from a value of it."""
    axis = unit_axis(site)
    return None if axis is None else value.shape[axis]


@dataclass(frozen=True)
class Choice:
    """Which components a sweep runs over.

    Attributes:
        positions: Roles, `edited`, numbers, `each` or `each:ROLE`.
        heads: `each` head by itself, `all` of a site together, or (layer, head) pairs.
        neurons: `each`, `all`, or (layer, neuron) pairs.
    """

    positions: tuple[str, ...]
    heads: str | tuple[tuple[int, int], ...] = "each"
    neurons: str | tuple[tuple[int, int], ...] = "all"

    @classmethod
    def make(cls, positions: Any, heads: Any = "each", neurons: Any = "all") -> Choice:
        """Read what a user gave.

        Raises:
            UsageError: Neither `each`, `all`, nor pairs of (layer, index).
        """
        given = [positions] if isinstance(positions, str | int) else list(positions)
        if not given:
            raise UsageError("No position was given: name roles such as 'last' or 'object'.")
        return cls(
            tuple(str(position) for position in given),
            _which("heads", heads),
            _which("neurons", neurons),
        )

    def over(self, sites: Sequence[Site]) -> Choice:
        """This choice, once every head and neuron that it names is in a layer of these sites.

        Raises:
            UsageError: A head or neuron of another layer, which no patch would ever reach.
        """
        for name, wanted in (("head", self.heads), ("neuron", self.neurons)):
            layers = {site.layer for site in sites if site.has_heads == (name == "head")}
            lost = [] if isinstance(wanted, str) else [w for w in wanted if w[0] not in layers]
            if lost:
                has = (
                    ", ".join(str(n) for n in sorted(n for n in layers if n is not None)) or "none"
                )
                raise UsageError(
                    f"There is no {name} {lost[0]} at the sites that were chosen: their layers "
                    f"with {name}s are {has}, counted from 0."
                )
        return self

    def units(self, site: Site, count: int | None) -> list[int | None]:
        """Units of a site to patch one by one; [None] for the site as a whole.

        Raises:
            UsageError: A head or neuron out of range.
        """
        if count is None:
            return [None]
        wanted = self.heads if site.has_heads else self.neurons
        if isinstance(wanted, str):
            return [None] if wanted == "all" else list(range(count))
        mine = [index for layer, index in wanted if layer == site.layer]
        for index in mine:
            if not 0 <= index < count:
                kind = "head" if site.has_heads else "neuron"
                raise UsageError(
                    f"There is no {kind} {index} at {site}: it has {count}, counted from 0."
                )
        return list(mine)


def components(
    batch: PairBatch, site: Site, value: Tensor, choice: Choice, count: int | None
) -> Iterator[Component]:
    """Every component of a choice at one site, for one batch.

    Raises:
        InputError: A pair lacks a role.
        UsageError: A head or neuron out of range.
    """
    units = choice.units(site, count)
    n_positions = value.shape[site.position_axis]
    for label, mask in masks(batch, site.positions_of, n_positions, choice.positions):
        for unit in units:
            yield Component(site, unit, label, mask)


def masks(
    batch: PairBatch, tower: str, n_positions: int, roles: Iterable[str]
) -> list[tuple[str, Tensor]]:
    """Label and mask (`pair pos`) of each role; `each` gives one for every single position."""
    found: list[tuple[str, Tensor]] = []
    for role in roles:
        if role != "each" and not role.startswith("each:"):
            where = [batch.positions(row, role, tower, n_positions) for row in range(len(batch))]
            found.append((role, _mask(where, n_positions)))
            continue
        inside = role.partition(":")[2] or "all"
        where = [batch.positions(row, inside, tower, n_positions) for row in range(len(batch))]
        found += _singles(batch, tower, n_positions, where)
    return found


def _singles(
    batch: PairBatch, tower: str, n_positions: int, where: Sequence[np.ndarray]
) -> list[tuple[str, Tensor]]:
    """One mask for each position, numbered without the padding in front of a row."""
    starts = [int(tokens.real[0]) if tower == "text" else 0 for tokens in batch.clean.tokens]
    mine = np.zeros((len(where), n_positions), dtype=bool)
    for row, (at, start) in enumerate(zip(where, starts, strict=True)):
        mine[row, np.asarray(at, dtype=int) - start] = True
    numbers = np.flatnonzero(mine.any(0))
    masks = np.zeros((len(numbers), len(where), n_positions), dtype=bool)
    which, row = np.nonzero(mine[:, numbers].T)
    masks[which, row, numbers[which] + np.array(starts)[row]] = True
    return [(str(n), mask) for n, mask in zip(numbers, torch.from_numpy(masks), strict=True)]


def _mask(where: Sequence[np.ndarray], n_positions: int) -> Tensor:
    mask = torch.zeros(len(where), n_positions, dtype=torch.bool)
    for row, at in enumerate(where):
        mask[row, torch.as_tensor(at, dtype=torch.long)] = True
    return mask


def _which(name: str, given: Any) -> str | tuple[tuple[int, int], ...]:
    if isinstance(given, str):
        if given not in ("each", "all"):
            raise UsageError(f"{name}={given!r}: expected 'each', 'all', or (layer, index) pairs.")
        return given
    try:
        return tuple((int(layer), int(index)) for layer, index in given)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name}={given!r}: expected 'each', 'all', or (layer, index) pairs."
        ) from error
