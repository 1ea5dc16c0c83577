"""Which positions of each row a lens reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.models.inputs import Inputs

Positions = str | Sequence[str] | Sequence[int] | np.ndarray


@dataclass(frozen=True, eq=False)
class Selection:
    """Positions of all rows, one after another.

    Attributes:
        rows: Row of each; shape `token`.
        at: Position in that row; shape `token`.
    """

    rows: np.ndarray
    at: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, value: Tensor) -> Tensor:
        """`batch pos ...` to `token ...`."""
        rows = torch.from_numpy(self.rows).to(value.device)
        return value[rows, torch.from_numpy(self.at).to(value.device)]


def choose(inputs: Inputs, positions: Positions) -> Selection:
    """Resolve roles or indices to positions of each row.

    Args:
        inputs: From `LVLM.prepare`.
        positions: A role of `TokenMap.positions` (`image` is short for `image_all`), several roles,
            or indices that hold in every row.

    Raises:
        InputError: An unknown role, an index outside of a row, or nothing is left.
    """
    rows, at = [], []
    for row in range(inputs.batch_size):
        found = _of_row(inputs, row, positions)
        rows.append(np.full(len(found), row))
        at.append(found)
    selection = Selection(np.concatenate(rows).astype(int), np.concatenate(at).astype(int))
    if len(selection) == 0:
        raise InputError(f"The positions {positions!r} are empty in every row.")
    return selection


def _of_row(inputs: Inputs, row: int, positions: Positions) -> np.ndarray:
    tokens = inputs.tokens[row]
    wanted = [positions] if isinstance(positions, str) else list(positions)
    if all(isinstance(role, str) for role in wanted):
        boxes = getattr(inputs.examples[row], "boxes", None) if inputs.examples else None
        names = ["image_all" if role == "image" else str(role) for role in wanted]
        return np.unique(np.concatenate([tokens.positions(name, boxes) for name in names]))
    index = np.asarray(wanted, dtype=int)
    if ((index < 0) | (index >= len(tokens))).any():
        raise InputError(
            f"Positions run from 0 to {len(tokens) - 1} in row {row}, got {index.tolist()}."
        )
    return index
