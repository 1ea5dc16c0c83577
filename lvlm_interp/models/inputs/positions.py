"""Where a role is in any tower: the one map from `TokenMap` positions to vision-tower positions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lvlm_interp.errors import InputError
from lvlm_interp.tokens import PixelBox, TokenMap


def tower_positions(
    tokens: TokenMap,
    tower: str,
    role: str,
    boxes: Mapping[str, PixelBox] | None = None,
    n_positions: int | None = None,
) -> np.ndarray:
    """Positions that play a role, counted as the sites of a tower count them.

    In the language model these are the map's own. In the vision tower and the projector a role
    means the patches behind its image tokens; `all` is every position there, a class token too. A
    position as text (`7`, `-1`) counts the positions of the row that are not padding.

    Args:
        tokens: Map of one row.
        tower: `text`, `vision` or `projector`.
        role: As in `TokenMap.positions`; `edited` for the box of that name; or a position as text.
        boxes: Pixel boxes by name.
        n_positions: Positions that the site has; needed outside of the language model.

    Raises:
        InputError: The role does not exist there, or patches and image tokens cannot be matched.
    """
    if role.lstrip("-").isdigit():
        return _single(int(role), tokens, tower, n_positions)
    if tower != "text" and role == "all":
        return np.arange(_needed(tower, n_positions))
    return in_tower(tokens, tower, role, role_positions(tokens, role, boxes), n_positions)


def in_tower(
    tokens: TokenMap, tower: str, role: str, found: np.ndarray, n_positions: int | None
) -> np.ndarray:
    """Where a tower has what a role means in the language model.

    Args:
        tokens: Map of one row.
        tower: `text`, `vision` or `projector`.
        role: For messages.
        found: Its positions in the language model, from `role_positions`.
        n_positions: Positions that the site has; needed outside of the language model.

    Raises:
        InputError: The role has no patches, or patches and image tokens cannot be matched.
    """
    if tower == "text":
        return found
    n_positions = _needed(tower, n_positions)
    if tokens.n_images != 1:
        raise InputError(
            f"Roles in the {tower} tower need exactly one image in the row, it has "
            f"{tokens.n_images}."
        )
    image = tokens.image
    # Both are sorted, so the places of the common ones are found by looking each up.
    at = np.searchsorted(image, found).clip(max=max(len(image) - 1, 0))
    at = at[image[at] == found] if len(image) else at[:0]
    if len(at) == 0:
        raise InputError(
            f"The role {role!r} has no image tokens, so no patch in the {tower} tower."
        )
    offset = n_positions - len(image)
    if offset not in (0, 1):
        raise InputError(
            f"The {tower} tower has {n_positions} positions for {len(image)} image tokens: they "
            "do not correspond one to one; use the role 'all', or sites of the language model."
        )
    # A class token, where there is one, stands first and has no image token.
    return at + offset


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


def _needed(tower: str, n_positions: int | None) -> int:
    if n_positions is None:
        raise InputError(f"The number of positions of the tower {tower!r} is needed.")
    return n_positions


def _single(position: int, tokens: TokenMap, tower: str, n_positions: int | None) -> np.ndarray:
    real = tokens.real if tower == "text" else np.arange(n_positions or 0)
    if not -len(real) <= position < len(real):
        raise InputError(
            f"There is no position {position}: in the {tower} tower this row has {len(real)}."
        )
    return real[[position]]
