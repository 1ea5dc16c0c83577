"""Which positions of each row a lens reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.errors import InputError
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.tokens import TokenMap

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
        notes = dict.fromkeys(note for tokens in inputs.tokens for note in tokens.notes)
        why = f": {'; '.join(notes)}" if notes else ""
        raise InputError(
            f"The positions {positions!r} are empty in every row{why}. Name others, such as "
            "'question' or 'last'."
        )
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


def lay(
    tokens: TokenMap, at: np.ndarray, values: np.ndarray, *, image: int = 0, tile: int = 0
) -> np.ndarray:
    """Lay values of some positions over the image grid; NaN (or an empty text) elsewhere.

    Args:
        tokens: Map of the row.
        at: Positions; shape `token`.
        values: One number or word per position; shape `token`.
        image: Image of the row.
        tile: Tile of the image.

    Raises:
        InputError: The image's tokens have no grid.
    """
    if values.dtype == object:
        words = np.full(len(tokens), "", dtype=object)
        words[at] = values
        places = tokens.grid(image, tile)
        return np.where(places < 0, "", words[places])
    full = np.full(len(tokens), np.nan)
    full[at] = values
    return tokens.to_grid(full, image, tile)


def token_columns(inputs: Inputs, selection: Selection) -> dict[str, np.ndarray]:
    """Columns of a table that say which token a row is about, one entry per token."""
    names = example_names(inputs)
    maps = inputs.tokens
    pairs = list(zip(selection.rows, selection.at, strict=True))
    return {
        "example": np.array([names[row] for row, _ in pairs], dtype=object),
        "position": selection.at.astype(str).astype(object),
        "kind": np.array([maps[row].kind[at] for row, at in pairs], dtype=object),
        "row": np.array([maps[row].row[at] for row, at in pairs]),
        "col": np.array([maps[row].col[at] for row, at in pairs]),
    }


def example_names(inputs: Inputs) -> list[str]:
    """Name of each row: the example's id, else its number."""
    if not inputs.examples:
        return [str(index) for index in range(inputs.batch_size)]
    return [str(getattr(row, "id", index)) for index, row in enumerate(inputs.examples)]


def in_batches(rows: Sequence[Any], size: int, text: str, progress: bool) -> Iterator[range]:
    """Ranges of at most `size` rows, under a progress bar."""
    starts = range(0, len(rows), size)
    for start in tqdm(starts, desc=text, unit="batch", disable=not progress or len(starts) < 2):
        yield range(start, min(start + size, len(rows)))


def image_of(example: Any) -> Any:
    """The image of an example or of a pair (image, prompt)."""
    return example[0] if isinstance(example, tuple) else getattr(example, "image", None)
