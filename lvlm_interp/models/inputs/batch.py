"""Inputs: everything one forward needs, kept together, with a TokenMap for each row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.models.inputs.rows import RowsByTower
from lvlm_interp.tokens import TokenMap


@dataclass(frozen=True, eq=False)
class Inputs(Mapping[str, Any]):
    """The model's own inputs, and what each position of each row is.

    Attributes:
        tensors: Inputs by the model's names: ids, masks, pixels, grids, token types.
        tokens: One map per row.
        examples: What the rows were made of, where they were made by `LVLM.prepare`.
        rows_of: How the model's family finds the rows of its towers.
    """

    tensors: Mapping[str, Any]
    tokens: tuple[TokenMap, ...]
    examples: tuple[Any, ...] = field(default=(), repr=False)
    rows_of: Callable[[Mapping[str, Any]], RowsByTower] | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def batch_size(self) -> int:
        """Number of rows."""
        return len(self.tokens)

    @property
    def last(self) -> Tensor:
        """Position at which each row's answer is predicted; shape `batch`."""
        return torch.tensor([tokens.last for tokens in self.tokens])

    @cached_property
    def rows(self) -> RowsByTower:
        """Which tiles, patches and windows of each tower belong to which row.

        Raises:
            InputError: The inputs were made without a model, or do not say it.
        """
        if self.rows_of is None:
            raise InputError(
                "These inputs know no model, so not how its towers lay out rows: make them with "
                "model.prepare() or model.as_inputs()."
            )
        return self.rows_of(self.tensors)

    def real(self, row: int, tower: str, n_positions: int) -> np.ndarray:
        """Positions of a row that a tower's sites really have, of `n_positions` with the padding.

        Args:
            row: Index of the row.
            tower: `text`, or a tower or place whose rows the family knows.
            n_positions: Positions of the site.
        """
        if tower == "text" or tower not in self.rows:
            return self.tokens[row].real
        return np.flatnonzero(self.rows[tower].mask(n_positions)[row].numpy())

    def n_positions(self, tower: str) -> int:
        """Positions of a tower's sites in this batch, of the row that has most.

        Raises:
            InputError: The family does not know them.
        """
        if tower == "text":
            return self.tensors["input_ids"].shape[1]
        known = [tokens.lengths[tower] for tokens in self.tokens if tower in tokens.lengths]
        if not known:
            raise InputError(
                f"How many positions the {tower} has is not known before a run: use sites of the "
                "language model."
            )
        return max(known)

    def halves(self) -> tuple[Inputs, Inputs] | None:
        """The first and the second half of the rows, of which each has as many tokens and patches.

        None where an input is no tensor, or cannot be cut in two.
        """
        tensors = self.tensors
        if any(not isinstance(v, Tensor) or len(v) % 2 for v in tensors.values()):
            return None
        n = len(self.tokens) // 2
        cut = {name: value.chunk(2) for name, value in tensors.items()}
        first, second = ({name: parts[i] for name, parts in cut.items()} for i in range(2))
        return (
            replace(self, tensors=first, tokens=self.tokens[:n], examples=self.examples[:n]),
            replace(self, tensors=second, tokens=self.tokens[n:], examples=self.examples[n:]),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Inputs:
        """The same inputs on a device, floating-point ones in a dtype."""

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            floating = value.is_floating_point() and dtype is not None
            return value.to(device, dtype) if floating else value.to(device)

        return replace(self, tensors={name: move(value) for name, value in self.tensors.items()})

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{name} {tuple(value.shape)}" if isinstance(value, Tensor) else name
            for name, value in self.tensors.items()
        )
        return f"Inputs({self.batch_size} rows: {shapes})"
