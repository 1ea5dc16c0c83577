"""Rows: which tiles, patches and windows of a tower belong to which row of the batch.

Towers lay images out as they like: one entry per image, one per tile, or the patches of all images
of the batch on one axis, some in the order of attention windows. A site has the row of the batch
first whatever the tower does: the units of a row (entries, or single patches) stand one behind the
other, and shorter rows are filled up with zeros, which `Rows.mask` tells apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lvlm_interp.errors import InputError, SiteError

FILL = -1
"""Index of a unit that a shorter row does not have."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Where the positions of each row lie in the tensors of one tower.

    Attributes:
        index: Units along the first axis of the tower's tensors, in the order of the row; `FILL`
            where a row has none (at its end, or at positions that the tower does not know).
        total: Length of that axis.
        flat: Whether that axis counts positions, so that the tensors have no batch axis; else it
            counts entries, which hold as many positions each.
        real: Which positions of an entry the tower does not ignore; None for all.
    """

    index: Int[Tensor, "row unit"]
    total: int
    flat: bool = False
    real: Bool[Tensor, "total pos"] | None = None

    @classmethod
    def counted(cls, counts: Sequence[int], **more: Any) -> Rows:
        """Rows whose units follow each other: `counts[i]` of them for row i."""
        starts = torch.tensor([0, *counts]).cumsum(0)
        step = torch.arange(max([*counts, 0]))
        index = starts[:-1, None] + step
        index[step >= torch.tensor(counts, dtype=torch.long)[:, None]] = FILL
        return cls(index, int(starts[-1]), **more)

    @cached_property
    def _has(self) -> Bool[Tensor, "row unit"]:
        return self.index != FILL

    @cached_property
    def _full(self) -> bool:
        """Whether no row is shorter than another."""
        return bool(self._has.all())

    @cached_property
    def _in_order(self) -> bool:
        """Whether the tower's first axis is the units of the rows as they are."""
        return self.index.numel() == self.total and bool(
            (self.index.flatten() == torch.arange(self.total)).all()
        )

    @property
    def _same(self) -> bool:
        """Whether the tower's first axis is the rows of the batch already."""
        return self._in_order and not self.flat and self.index.shape[1] == 1

    def mask(self, n_positions: int) -> Bool[Tensor, "row pos"]:
        """Which positions of a site are real, of as many as the site has."""
        has = self._has
        if self.flat or has.shape[1] == 0:
            return has
        each = n_positions // has.shape[1]
        mask = has[..., None].expand(-1, -1, each)
        if self.real is not None:
            mask = mask & self.real[self.index.clamp(min=0), :each]
        return mask.flatten(1)

    # -- positions -------------------------------------------------------------------------------

    def read(self, raw: Tensor) -> Tensor:
        """`row pos ...` from a tower's tensor."""
        self._check(len(raw))
        if self._same:
            return raw
        if self._in_order:
            units = raw.reshape(*self.index.shape, *raw.shape[1:])
        else:
            units = raw[self.index.clamp(min=0).to(raw.device)]
            units = self._filled(units, 0.0)
        return units if self.flat else units.flatten(1, 2)

    def write(self, raw: Tensor, new: Tensor) -> Tensor:
        """The tower's tensor with the values of a site in it; fillings go nowhere."""
        if self._same:
            return new
        if self._in_order:
            return new.reshape(raw.shape)
        units = new if self.flat else new.unflatten(1, (self.index.shape[1], -1))
        has, index = self._has.to(raw.device), self.index.to(raw.device)
        return raw.index_put((index[has],), units[has])

    # -- queries by keys -------------------------------------------------------------------------

    def read_pairs(self, raw: Tensor, empty: float) -> Tensor:
        """`row head query_pos key_pos` from a tower's attention.

        Args:
            raw: `entry head query_pos key_pos`; the entry is one where the tower is flat.
            empty: What stands between positions that never meet (of two tiles), and in fillings.
        """
        if self.flat:
            return self._read_flat_pairs(raw, empty)
        self._check(len(raw))
        if self._same:
            return raw
        rows, n = self.index.shape
        blocks = raw[self.index.clamp(min=0).to(raw.device)]  # row unit head query key
        blocks = self._filled(blocks, empty)
        heads, queries, keys = blocks.shape[2:]
        out = raw.new_full((rows, heads, n, queries, n, keys), empty)
        each = torch.arange(n, device=raw.device)
        out[:, :, each, :, each] = blocks.transpose(0, 1)
        return out.flatten(4, 5).flatten(2, 3)

    def write_pairs(self, raw: Tensor, new: Tensor) -> Tensor:
        """The tower's attention with the values of a site in it; what never meets goes nowhere."""
        if self.flat:
            return self._write_flat_pairs(raw, new)
        if self._same:
            return new
        n = self.index.shape[1]
        each = torch.arange(n, device=raw.device)
        split = new.unflatten(3, (n, -1)).unflatten(2, (n, -1))
        blocks = split[:, :, each, :, each].transpose(0, 1)
        has, index = self._has.to(raw.device), self.index.to(raw.device)
        return raw.index_put((index[has],), blocks[has])

    def _read_flat_pairs(self, raw: Tensor, empty: float) -> Tensor:
        self._check(raw.shape[-1])
        if self._in_order and len(self.index) == 1:
            return raw
        index = self.index.clamp(min=0).to(raw.device)
        pairs = raw[0][:, index[:, :, None], index[:, None, :]].transpose(0, 1)
        if self._full:
            return pairs
        has = self._has.to(raw.device)
        return pairs.masked_fill(~(has[:, None, :, None] & has[:, None, None, :]), empty)

    def _write_flat_pairs(self, raw: Tensor, new: Tensor) -> Tensor:
        if self._in_order and len(self.index) == 1:
            return new
        out = raw.clone()
        for index, has, values in zip(self.index, self._has, new, strict=True):
            at, kept = index[has].to(raw.device), has.to(raw.device)
            out[0, :, at[:, None], at[None, :]] = values[:, kept][:, :, kept]
        return out

    def _filled(self, units: Tensor, empty: float) -> Tensor:
        if self._full:
            return units
        has = self._has.to(units.device)
        return units.masked_fill(~has.reshape(*has.shape, *[1] * (units.ndim - 2)), empty)

    def _check(self, got: int) -> None:
        if got != self.total:
            what = "patches" if self.flat else "images or tiles"
            raise SiteError(
                f"A tower runs over {got} {what}, but the inputs of this run have {self.total}: "
                "its sites can be read only in a forward of the whole model."
            )


@dataclass(frozen=True)
class RowContext:
    """What says which image parts belong to which row.

    Attributes:
        config: The model's configuration.
        tensors: The model's inputs for the whole batch.
        image_token: Id of the placeholder; None where there is none.
    """

    config: Any
    tensors: Mapping[str, Any]
    image_token: int | None

    @cached_property
    def placeholders(self) -> Bool[Tensor, "row pos"]:
        """Where the prompts have image placeholders."""
        return (self.tensors["input_ids"] == self.image_token).cpu()

    @cached_property
    def slots(self) -> list[int]:
        """Number of image placeholders of each row."""
        return self.placeholders.sum(1).tolist()


RowsByTower = Mapping[str, Rows]


def entries_by_tokens(context: RowContext) -> RowsByTower:
    """Towers with one entry per image or tile, of which each gives as many tokens.

    Raises:
        InputError: The placeholders do not divide evenly over the entries.
    """
    return dict.fromkeys(("vision", "projector", "qformer"), Rows.counted(_shares(context)))


def _shares(context: RowContext) -> list[int]:
    entries, slots = len(context.tensors["pixel_values"]), context.slots
    each, rest = divmod(sum(slots), max(entries, 1))
    if rest or any(each and slot % each for slot in slots) or (entries and not each):
        raise InputError(
            f"{entries} images or tiles do not fit {slots} placeholders by row: let the model's "
            "processor build prompt and image together."
        )
    return [slot // each if each else 0 for slot in slots]


def images_of_rows(slots: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Number of images of each row, from the placeholders of rows and the tokens of images.

    Raises:
        InputError: A row's placeholders are not those of whole images.
    """
    counts, image = [], 0
    for slot in slots:
        first, left = image, slot
        while left > 0 and image < len(lengths):
            left -= lengths[image]
            image += 1
        if left:
            raise InputError(
                f"A row has {slot} image placeholders, but its images give "
                f"{sum(lengths[first:image])} tokens: let the model's processor build prompt and "
                "image together."
            )
        counts.append(image - first)
    return counts
