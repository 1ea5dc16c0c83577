"""The two sides of a profile: sites and a position of some activations, read when needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.activations.base import Activations
from lvlm_interp.errors import UsageError
from lvlm_interp.sites import Site

__all__ = ["Side", "sides_of"]


@dataclass(frozen=True)
class Side:
    """Some sites at one position.

    Attributes:
        source: Where they are read from.
        position: Name of the position.
        places: Site and head of each layer; a head of None takes all of a site side by side.
        rows: Which examples, as indices of the source.
    """

    source: Activations
    position: str
    places: tuple[tuple[Site, int | None], ...]
    rows: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> Float[Tensor, "n d"]:
        """Features of one layer, float32."""
        site, head = self.places[index]
        values = self.source[site][self.rows, self.position]
        values = values if head is None else values[:, head]
        flat = np.asarray(values, dtype=np.float32).reshape(len(values), -1)
        return torch.from_numpy(np.ascontiguousarray(flat))

    def only(self, keep: Int[np.ndarray, " m"]) -> Side:
        """The same of some of its rows."""
        return Side(self.source, self.position, self.places, self.rows[keep])

    def at(self, indices: Sequence[int]) -> Side:
        """The same of some of its layers."""
        places = tuple(self.places[index] for index in indices)
        return Side(self.source, self.position, places, self.rows)


def sides_of(
    x: Activations,
    y: Activations,
    between: tuple[str, str],
    *,
    sites: str | Sequence[str] = "*",
    heads: bool = False,
) -> tuple[Side, Side]:
    """Both sides, on the examples that have both positions.

    Args:
        x: Activations of one side.
        y: Of the other; may be the same.
        between: A position of x and one of y.
        sites: Names or globs.
        heads: Whether each head of a site that has heads is a layer of its own.

    Raises:
        UsageError: No site has a position, or too few examples have both.
    """
    rows = _common(x, y)
    found = []
    for source, position, own in zip((x, y), between, rows, strict=True):
        places = [
            (Site.parse(name), head)
            for name in source.select(sites)
            if position in source[name].positions
            for head in _heads(source, name, heads)
        ]
        if not places:
            raise UsageError(
                f"no site here has the position {position!r}; positions: "
                f"{', '.join(source.positions)}"
            )
        found.append(Side(source, position, tuple(places), own))
    finite = np.ones(len(rows[0]), dtype=bool)
    for side in found:
        # A position that an example lacks is missing at all sites of a tower alike.
        firsts = {site.tower: index for index, (site, _) in reversed(list(enumerate(side.places)))}
        for index in firsts.values():
            finite &= torch.isfinite(side.read(index)).all(dim=1).numpy()
    keep = np.flatnonzero(finite)
    if len(keep) < 4:
        raise UsageError(
            f"expected at least 4 examples with both positions, got {len(keep)} of {len(finite)}"
        )
    return found[0].only(keep), found[1].only(keep)


def _heads(source: Activations, name: str, heads: bool) -> Sequence[int | None]:
    n_heads = source[name].heads
    return range(n_heads) if heads and n_heads else (None,)


def _common(x: Activations, y: Activations) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the same examples in both, in the order of x."""
    if x is y:
        return np.arange(len(x)), np.arange(len(x))
    left, right = (source.labels["example"].astype(str) for source in (x, y))
    if right.duplicated().any():
        raise UsageError("an example is in y twice, so rows cannot be paired by example id")
    place = {name: index for index, name in enumerate(right)}
    pairs = [(i, place[name]) for i, name in enumerate(left) if name in place]
    if not pairs:
        raise UsageError("x and y have no example in common")
    found = np.array(pairs)
    return found[:, 0], found[:, 1]
