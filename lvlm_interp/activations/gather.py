"""Picks positions by role inside the forward, so that no more than these is ever kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.activations.roles import Role
from lvlm_interp.errors import InputError
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.positions import (
    WHOLE_IMAGE,
    in_tower,
    role_positions,
    tower_positions,
)
from lvlm_interp.sites import Site

Missing = Literal["raise", "nan"]


@dataclass(frozen=True)
class Picked:
    """Which tokens make up which segment of a gathered tensor.

    Segments come row by row: first the pooled roles of each row, then, behind those of all rows,
    each single token of the roles that keep every token.

    Attributes:
        tokens: Index of each token that is read, over `batch * pos`.
        segment: Which segment it belongs to; same length.
        n_segments: Number of segments.
        n_pooled: How many pooled roles each row has.
        counts: Tokens of each row under each role that keeps every token; by role name.
    """

    tokens: Tensor
    segment: Tensor
    n_segments: int
    n_pooled: int
    counts: dict[str, np.ndarray]

    @cached_property
    def sizes(self) -> Tensor:
        """Number of tokens of each segment."""
        return torch.bincount(self.segment, minlength=self.n_segments)

    @cached_property
    def single(self) -> bool:
        """Whether every segment is one token, so that nothing is averaged."""
        return len(self.tokens) == self.n_segments and bool((self.sizes == 1).all())

    def pool(self, value: Float[Tensor, "batch pos ..."]) -> Float[Tensor, "segment ..."]:
        """Mean over the tokens of each segment, in float32 where there is more than one."""
        found = value.flatten(0, 1)[self.tokens]
        if self.single:
            return found
        out = found.new_zeros((self.n_segments, *found.shape[1:]), dtype=torch.float32)
        out.index_add_(0, self.segment, found.float())
        # A role that a row does not have is 0 / 0: NaN, never zero.
        return out / self.sizes.view(-1, *[1] * (out.dim() - 1))


class Gather:
    """The `keep` function of a recording: sees a site's value, returns its segments.

    Attributes:
        inputs: The batch.
        roles: What to take.
        missing: What a role does that an example lacks: raise, or give NaN.
    """

    def __init__(self, inputs: Inputs, roles: Sequence[Role], missing: Missing = "raise") -> None:
        self.inputs, self.roles, self.missing = inputs, tuple(roles), missing
        self._picked: dict[tuple[str, int], Picked] = {}
        self._seen: dict[Site, Picked] = {}
        self._found: dict[tuple[int, str], np.ndarray] = {}

    def __call__(self, site: Site, value: Float[Tensor, "batch pos ..."]) -> Tensor:
        """Segments of a site's value."""
        self._seen[site] = self.picked(site, value.shape[1])
        return self._seen[site].pool(value)

    def of(self, site: Site) -> Picked:
        """The segments of a site that has been seen."""
        return self._seen[site]

    def picked(self, site: Site, n_positions: int) -> Picked:
        """The segments at a site; made once per tower and length.

        Raises:
            InputError: An example lacks a role.
        """
        key = (site.positions_of, n_positions)
        if key not in self._picked:
            self._picked[key] = self._pick(site.positions_of, n_positions)
        return self._picked[key]

    def _pick(self, tower: str, n_positions: int) -> Picked:
        roles = [role for role in self.roles if role.applies_to(tower)]
        pooled = [role for role in roles if role.pooled]
        every = [role for role in roles if not role.pooled]
        found = [
            [self._positions(row, tower, role, n_positions) for role in (*pooled, *every)]
            for row in range(self.inputs.batch_size)
        ]
        taken = [at for row in found for at in row[: len(pooled)]]
        sizes, counts = [len(at) for at in taken], {}
        for index, role in enumerate(every, len(pooled)):
            taken += [row[index] for row in found]
            counts[role.name] = np.array([len(row[index]) for row in found])
            sizes += [1] * int(counts[role.name].sum())
        device = self.inputs["input_ids"].device
        return Picked(
            tokens=torch.from_numpy(np.concatenate(taken).astype(np.int64)).to(device),
            segment=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(device),
            n_segments=len(sizes),
            n_pooled=len(pooled),
            counts=counts,
        )

    def _positions(self, row: int, tower: str, role: Role, n_positions: int) -> np.ndarray:
        try:
            at = self._at(row, tower, role.base, n_positions)
        except InputError as error:
            if self.missing == "nan":
                return np.array([], dtype=np.int64)
            name = getattr(self.inputs.examples[row], "id", row)
            raise InputError(
                f"Example {name!r}, position {role.name!r}: {error} Leave the position out, or "
                "let missing positions be NaN (missing='nan')."
            ) from error
        return row * n_positions + at

    def _at(self, row: int, tower: str, role: str, n_positions: int) -> np.ndarray:
        tokens = self.inputs.tokens[row]
        if role == "all" or role in WHOLE_IMAGE:
            real = self.inputs.real(row, tower, n_positions)
            return tower_positions(tokens, tower, role, None, real)
        if (row, role) not in self._found:  # all towers ask for the same positions
            boxes = getattr(self.inputs.examples[row], "boxes", None)
            self._found[row, role] = role_positions(tokens, role, boxes)
        return in_tower(tokens, tower, role, self._found[row, role])
