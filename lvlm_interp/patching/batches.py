"""Pairs made ready for the model: two aligned batches, token ids of the answers, positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lvlm_interp.data.checks import id_in_reply
from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.images import images_of, open_image, pixel_digest
from lvlm_interp.models.inputs.positions import tower_positions
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.tokens import PixelBox, TokenMap


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Clean and corrupt runs whose positions mean the same, row by row.

    Attributes:
        pairs: The pairs.
        clean, corrupt: Inputs; padded on the left to one length.
        answer, foil: First token ids; shape `pair`.
        both: The clean rows and the corrupt ones behind them; None where they cannot be joined.
    """

    pairs: tuple[ContrastPair, ...]
    clean: Inputs
    corrupt: Inputs
    answer: Tensor
    foil: Tensor
    both: Inputs | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def positions(self, row: int, role: str, tower: str, n_positions: int) -> np.ndarray:
        """Positions that a role has in one row, as a tower counts them.

        Args:
            row: Index of the pair in the batch.
            role: A role of `tokens.ROLES`, `edited` (what the pair's box covers), or a position.
            tower: `Site.positions_of`.
            n_positions: Positions that the site has.

        Raises:
            InputError: The pair lacks what the role needs; the pair is named.
        """
        pair = self.pairs[row]
        boxes: dict[str, PixelBox] = {**dict(pair.corrupt.boxes), **dict(pair.clean.boxes)}
        if pair.box is not None:
            boxes["edited"] = _edited(pair)
        try:
            real = self.clean.real(row, tower, n_positions)
            return tower_positions(self.clean.tokens[row], tower, role, boxes, real)
        except InputError as error:
            raise InputError(f"Pair {pair.id!r}: {error}") from error


def batches(model: LVLM, pairs: Sequence[ContrastPair], batch_size: int) -> Iterator[PairBatch]:
    """Aligned batches of pairs, in order.

    Raises:
        UsageError: There are no pairs, or answer and foil begin with the same token, or batches
            would be empty.
        InputError: Clean and corrupt run of a pair differ in length or in what their positions are.
    """
    if not pairs:
        raise UsageError("There is nothing to patch: the list of pairs is empty.")
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: expected at least one pair at once.")
    ids = answer_ids(model, pairs)
    for start in range(0, len(pairs), batch_size):
        chunk = tuple(pairs[start : start + batch_size])
        clean, corrupt, both = _sides(model, chunk)
        for row, pair in enumerate(chunk):
            _check_aligned(pair, clean, corrupt, row)
        yield PairBatch(
            chunk,
            clean,
            corrupt,
            torch.tensor([ids[pair.answer, pair.clean.reply] for pair in chunk]).to(model.device),
            torch.tensor([ids[pair.foil, pair.clean.reply] for pair in chunk]).to(model.device),
            both,
        )


def _edited(pair: ContrastPair) -> tuple[float, ...]:
    """Where a pair was edited; with the image's index where one of several differs."""
    assert pair.box is not None
    clean, corrupt = images_of(pair.clean.image), images_of(pair.corrupt.image)
    if len(pair.box) > 4 or len(clean) < 2:
        return tuple(pair.box)
    seen = [[pixel_digest(open_image(image)) for image in side] for side in (clean, corrupt)]
    differ = [i for i, (one, other) in enumerate(zip(*seen, strict=False)) if one != other]
    return (*pair.box, differ[0]) if len(differ) == 1 else tuple(pair.box)


def _sides(model: LVLM, pairs: Sequence[ContrastPair]) -> tuple[Inputs, Inputs, Inputs | None]:
    """Inputs of both sides by one call of the processor, and in one batch.

    Two runs that are aligned have as many patches, so that halves of the batch are the sides.
    """
    clean, corrupt = [pair.clean for pair in pairs], [pair.corrupt for pair in pairs]
    try:
        both = model.prepare([*clean, *corrupt])
        halves = both.halves()
    except InputError:  # images that no batch can hold: each side by itself may still be fine
        both = halves = None
    if halves is None:
        return model.prepare(clean), model.prepare(corrupt), None
    return *halves, both


def answer_ids(model: LVLM, pairs: Sequence[ContrastPair]) -> dict[tuple[str, str], int]:
    """First token id of every answer and foil, by the word and the reply in front of it.

    Raises:
        UsageError: A pair's answer and foil begin with the same token: no logit tells them apart.
    """
    words = {(word, pair.clean.reply) for pair in pairs for word in (pair.answer, pair.foil)}
    ids = {key: id_in_reply(model, *key) for key in sorted(words)}
    for pair in pairs:
        if ids[pair.answer, pair.clean.reply] == ids[pair.foil, pair.clean.reply]:
            raise UsageError(
                f"Pair {pair.id!r}: the answer {pair.answer!r} and the foil {pair.foil!r} begin "
                "with the same token: choose words whose first tokens differ."
            )
    return ids


def corruption_of(pair: ContrastPair) -> str:
    """How the corrupt run differs: `noise`, `prompt` or `image`."""
    named = pair.labels.get("corruption")
    if named is not None:
        return str(named)
    return "prompt" if pair.clean.prompt != pair.corrupt.prompt else "image"


def _check_aligned(pair: ContrastPair, clean: Inputs, corrupt: Inputs, row: int) -> None:
    first, second = clean.tokens[row], corrupt.tokens[row]
    if len(first.real) != len(second.real):
        raise InputError(
            f"Pair {pair.id!r}: the clean run has {len(first.real)} tokens and the corrupt run "
            f"{len(second.real)}: positions can be patched only between runs of equal length "
            "(replace words by words of as many tokens, and images by images of the same size)."
        )
    if len(first) != len(second) or (first.kind != second.kind).any():
        raise InputError(
            f"Pair {pair.id!r}: clean and corrupt run have different kinds of tokens at the same "
            "position: build both from the same template and image size."
        )
    if not _same_grids(first, second):
        raise InputError(
            f"Pair {pair.id!r}: the images of clean and corrupt run are cut into other grids, so "
            "that a position is another place in each: use images of the same size."
        )


def _same_grids(first: TokenMap, second: TokenMap) -> bool:
    """Whether tokens at the same position lie at the same place of grid, tiles and image."""
    places = ("image_index", "row", "col", "tile")
    if any((getattr(first, name) != getattr(second, name)).any() for name in places):
        return False
    if bool(np.array_equal(first.box, second.box, equal_nan=True)):
        return True
    # Images of other sizes may share a grid: then their tokens lie in the same order each way.
    return all(
        np.array_equal(_order(first, image, edge), _order(second, image, edge))
        for image in range(first.n_images)
        for edge in (0, 1)
    )


def _order(tokens: TokenMap, image: int, edge: int) -> np.ndarray:
    """Rank of each token's left (0) or top (1) edge among those of one image."""
    edges = tokens.box[tokens.image_index == image, edge]
    return np.unique(edges[~np.isnan(edges)].round(3), return_inverse=True)[1]
