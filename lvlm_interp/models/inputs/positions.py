"""Where a role is in any tower: the one map from the positions of a prompt to those of a tower."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lvlm_interp.errors import InputError
from lvlm_interp.tokens import NONE, PixelBox, TokenMap

WHOLE_IMAGE = ("image_all", "image_mean")


def tower_positions(
    tokens: TokenMap,
    tower: str,
    role: str,
    boxes: Mapping[str, PixelBox] | None = None,
    real: np.ndarray | None = None,
) -> np.ndarray:
    """Positions that play a role, counted as the sites of a tower count them.

    In the language model these are the map's own. In the towers before it and in the projector a
    role means what is behind its image tokens: patches (of all tiles of an image and of several
    images, one behind the other), not class tokens. `all` is every real position there. A position
    as text (`7`, `-1`) counts the row's real positions.

    Args:
        tokens: Map of one row.
        tower: `text`, a tower before it, or `projector`.
        role: As in `TokenMap.positions`; `edited` for the box of that name; or a position as text.
        boxes: Pixel boxes by name.
        real: Real positions of the row at the site, from `Inputs.real`; needed for `all` and
            numbers outside of the language model.

    Raises:
        InputError: The role does not exist there.
    """
    if tower == "text":
        real = tokens.real
    if role.lstrip("-").isdigit():
        return _single(int(role), tower, _needed(tower, real))
    if tower == "text":
        return role_positions(tokens, role, boxes)
    if role == "all":
        return _needed(tower, real)
    if role in WHOLE_IMAGE:
        return in_tower(tokens, tower, role, np.arange(len(tokens)))
    return in_tower(tokens, tower, role, role_positions(tokens, role, boxes))


def in_tower(tokens: TokenMap, tower: str, role: str, found: np.ndarray) -> np.ndarray:
    """What a tower has behind some positions of the prompt.

    Args:
        tokens: Map of one row.
        tower: `text`, a tower before it, or `projector`.
        role: For messages.
        found: Positions in the language model, from `role_positions`.

    Raises:
        InputError: There is nothing behind them, or the family does not know what.
    """
    if tower == "text":
        return found
    if tower not in tokens.towers:
        why = "the row has no image" if tokens.n_images == 0 else "; ".join(tokens.notes)
        raise InputError(
            f"What is behind the image tokens is not known in the {tower} ({why or 'no map'}): use "
            "the role 'all', or sites of the language model."
        )
    at = np.unique(tokens.towers[tower][found])
    at = at[at != NONE]
    if len(at) == 0:
        raise InputError(
            f"The role {role!r} has no image tokens, so no patch in the {tower} tower."
        )
    return at


def role_positions(
    tokens: TokenMap, role: str, boxes: Mapping[str, PixelBox] | None = None
) -> np.ndarray:
    """Positions of a role in the language model, sorted.

    Raises:
        InputError: The role does not exist in this row.
    """
    if role != "edited":
        found = tokens.positions(role, boxes)
    elif boxes and "edited" in boxes:
        found = tokens.within(boxes["edited"])
    else:
        raise InputError("The role 'edited' needs to know what was edited: there is no box.")
    if len(found) == 0:
        raise InputError(f"The role {role!r} has no position in this prompt.")
    return found


def _needed(tower: str, real: np.ndarray | None) -> np.ndarray:
    if real is None:
        raise InputError(f"The real positions of the row in the tower {tower!r} are needed.")
    return real


def _single(position: int, tower: str, real: np.ndarray) -> np.ndarray:
    if not -len(real) <= position < len(real):
        raise InputError(
            f"There is no position {position}: in the {tower} tower this row has {len(real)}."
        )
    return real[[position]]
