"""What activations look like to their reader, in memory or on disk: by site, position, head."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Shaped
from torch import Tensor

from lvlm_interp.activations.roles import Role, roles_of
from lvlm_interp.errors import SiteError, UsageError
from lvlm_interp.sites import Site, select

__all__ = ["Activations", "SiteActivations", "label_frame"]

Rows = slice | np.ndarray


class Activations(ABC):
    """Activations of a data set at some sites and positions, with one row of labels per example.

    Attributes:
        sites: Names of the sites, in the order of the forward.
        roles: The positions, as they were asked for.
        provenance: Model, weight hash, data hash, versions.
    """

    def __init__(
        self, sites: Sequence[Site], roles: Sequence[Role], provenance: Mapping[str, Any]
    ) -> None:
        self._sites = {str(site): site for site in sites}
        self.roles = tuple(roles)
        self.provenance = dict(provenance)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in the order of the forward."""
        return tuple(self._sites)

    @property
    def positions(self) -> tuple[str, ...]:
        """Names of the positions."""
        return tuple(role.name for role in self.roles)

    @property
    @abstractmethod
    def labels(self) -> pd.DataFrame:
        """One row per example: its id, group, question, what the model said, and its labels."""

    @abstractmethod
    def _shape(self, site: Site) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype of the averaged positions of a site: `example position ...`."""

    @abstractmethod
    def _read(self, site: Site, rows: Rows, rest: tuple[Any, ...]) -> np.ndarray:
        """Some rows, and an index of what is behind them, of the averaged positions of a site."""

    @abstractmethod
    def _read_tokens(self, site: Site, role: Role) -> tuple[np.ndarray, np.ndarray]:
        """Every token of a role: values `token ...`, and the example of each."""

    def __len__(self) -> int:
        return len(self.labels)

    def __contains__(self, site: object) -> bool:
        return isinstance(site, str | Site) and str(Site.parse(site)) in self._sites

    def __getitem__(self, site: str | Site) -> SiteActivations:
        """The activations of one site, read when they are indexed.

        Raises:
            SiteError: The site is not here; the nearest one that is is named.
        """
        found = self.select(site)
        if len(found) != 1:
            raise SiteError(f"{site!r} names {len(found)} sites here; give one.")
        return SiteActivations(self, self._sites[found[0]])

    def select(self, patterns: str | Site | Sequence[str | Site] = "*") -> list[str]:
        """Names of the sites that match names or globs.

        Raises:
            SiteError: A pattern matches nothing that is here.
        """
        return [str(site) for site in select(patterns, list(self._sites.values()))]

    def label(self, name: str) -> pd.Series:
        """One column of the labels.

        Raises:
            UsageError: There is no such label; the nearest one is named.
        """
        frame = self.labels
        if name not in frame:
            near = difflib.get_close_matches(name, frame.columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(frame.columns)}."
            raise UsageError(f"There is no label {name!r} in these activations; {hint}")
        return frame[name]

    def to_sklearn(
        self,
        site: str | Site,
        position: str,
        *,
        label: str,
        group: str = "group",
        head: int | None = None,
    ) -> tuple[Shaped[np.ndarray, "row feature"], np.ndarray, np.ndarray]:
        """X, y and groups for scikit-learn, without the rows that lack the label or the position.

        Args:
            site: One site.
            position: One of the positions; of a role that keeps every token, each token is a row.
            label: Column of the labels.
            group: Column that says what must stay together when data are split.
            head: One head of a site that has them; None takes all of them side by side.

        Raises:
            UsageError: No such label, group, position or head.
        """
        values, rows = self[site].rows_at(position, head)
        target, groups = self.label(label), self.label(group)
        known = target.notna().to_numpy()[rows] & np.isfinite(values).all(axis=1)
        rows = rows[known]
        return values[known], target.to_numpy()[rows], groups.to_numpy()[rows]

    def to_torch(self, site: str | Site, position: str | None = None) -> Tensor:
        """One site as a tensor in the dtype it has: `example ...`, or all averaged positions."""
        found = self[site]
        values = found[:] if position is None else found[:, position]
        if values.dtype.name == "bfloat16":
            return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(np.ascontiguousarray(values))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self)} examples, {len(self.sites)} sites, positions "
            f"{', '.join(self.positions)})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class SiteActivations:
    """One site of a set of activations: an array that is read when it is indexed.

    Axes are `example position ...`; the position can be given by name: `site[:100, "object"]`.
    """

    source: Activations
    site: Site

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the averaged positions: `example position ...`."""
        return self.source._shape(self.site)[0]

    @property
    def dtype(self) -> np.dtype:
        """As it was stored."""
        return self.source._shape(self.site)[1]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def positions(self) -> tuple[str, ...]:
        """Names along the position axis."""
        return tuple(r.name for r in roles_of(self.site, self.source.roles, pooled=True))

    @property
    def every(self) -> tuple[str, ...]:
        """Roles that keep every token; read them with `tokens`."""
        return tuple(r.name for r in roles_of(self.site, self.source.roles, pooled=False))

    @property
    def heads(self) -> int | None:
        """Number of heads, None where the site has none."""
        return self.shape[2] if self.site.has_heads else None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Values at an index; a position may be a name or a list of names."""
        parts = key if isinstance(key, tuple) else (key,)
        if any(part is Ellipsis for part in parts):
            parts = _without_ellipsis(parts, self.ndim)
        rows, rest = parts[0], list(parts[1:])
        if rest:
            rest[0] = self._position(rest[0])
        single = isinstance(rows, int | np.integer)
        found = self.source._read(self.site, _as_rows(rows, len(self)), tuple(rest))
        return found[0] if single else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self[:]
        return values if dtype is None else values.astype(dtype)

    def tokens(self, role: str) -> tuple[Shaped[np.ndarray, "token ..."], np.ndarray]:
        """Every token of a role that keeps them, and the index of each token's example.

        Raises:
            UsageError: The role is not among those that keep every token here.
        """
        for each in roles_of(self.site, self.source.roles, pooled=False):
            if each.name == role:
                return self.source._read_tokens(self.site, each)
        here = ", ".join(self.every) or "none"
        raise UsageError(f"{self.site} keeps every token of: {here}; not of {role!r}.")

    def rows_at(
        self, position: str, head: int | None = None
    ) -> tuple[Shaped[np.ndarray, "row feature"], np.ndarray]:
        """Flat float32 features at a position, and the example of each row.

        Raises:
            UsageError: No such position or head.
        """
        if head is not None and not 0 <= head < (self.heads or 0):
            raise UsageError(f"{self.site} has {self.heads or 'no'} heads, head {head} was asked.")
        if position in self.every:
            values, rows = self.tokens(position)
        else:
            values, rows = self[:, position], np.arange(len(self))
        values = values if head is None else values[:, head]
        return values.reshape(len(values), -1).astype(np.float32), rows

    def _position(self, key: Any) -> Any:
        if isinstance(key, list | tuple):
            return [self._position(each) for each in key]
        if not isinstance(key, str):
            return key
        if key not in self.positions:
            here = ", ".join((*self.positions, *self.every))
            how = "; read it with .tokens()" if key in self.every else ""
            raise UsageError(f"{self.site} has the positions {here}; {key!r} was asked{how}.")
        return self.positions.index(key)

    def __repr__(self) -> str:
        return f"SiteActivations({self.site}, {self.shape}, {self.dtype}, {self.positions})"


def label_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Records of examples as a frame; labels that some examples lack are missing there."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame({name: [row.get(name) for row in rows] for name in columns})


def _as_rows(key: Any, n: int) -> Rows:
    if isinstance(key, slice):
        return key
    if isinstance(key, int | np.integer):
        if not -n <= key < n:
            raise IndexError(f"example {key} of {n}")
        return np.array([int(key) % n])
    rows = np.asarray(key)
    if rows.dtype == bool:
        rows = np.flatnonzero(rows)
    if rows.size and (rows.min() < -n or rows.max() >= n):
        raise IndexError(f"examples up to {rows.max()} of {n}")
    return rows.astype(np.int64) % max(n, 1)


def _without_ellipsis(parts: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    at = next(i for i, part in enumerate(parts) if part is Ellipsis)
    fill = (slice(None),) * (ndim - len(parts) + 1)
    return (*parts[:at], *fill, *parts[at + 1 :])
