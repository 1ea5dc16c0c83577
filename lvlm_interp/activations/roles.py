"""Positions by role: which tokens an activation is taken from, and whether they are averaged.

A role names tokens as `TokenMap.positions` does, and their mean is taken: `object` is the mean over
the object's image tokens, `last` the one last token. A role that ends in `_all` (`image_all`,
`object_all`, `question_all`), and `all`, keep every token instead.

`caption` is the tokens of the example's description (its label `caption`). The description is no
part of the prompt, so it is read in a run of its own, as the user's words without an image: what
the model makes of the words alone. `caption_all` keeps each of its tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lvlm_interp.errors import SiteError, UsageError
from lvlm_interp.sites import Site
from lvlm_interp.tokens import ROLES

__all__ = ["CAPTION", "IMAGE_ROLES", "Role", "check_sites", "parse_roles", "roles_of"]

IMAGE_ROLES = ("object", "other_object", "other_image", "background", "image_all", "edited")
"""Roles that mean image tokens, and so have patches behind them in the vision tower."""

CAPTION = "caption"
"""The role, and the label that holds the description."""

_WORD = "text:"
_EVERY = "_all"


@dataclass(frozen=True)
class Role:
    """One position that was asked for.

    Attributes:
        name: As the user wrote it.
        base: The role in a `TokenMap`.
        pooled: Whether its tokens are averaged; otherwise each is kept.
    """

    name: str
    base: str
    pooled: bool

    @classmethod
    def parse(cls, name: str) -> Role:
        """Read a role.

        Raises:
            UsageError: It is none; the nearest one is named.
        """
        if name.startswith(_WORD) and len(name) > len(_WORD):
            return cls(name, name, True)
        if name == "image_mean":
            return cls(name, "image_all", True)
        if name in ("image", "image_all", "all"):
            return cls(name, "image_all" if name == "image" else name, False)
        known = [*(role for role in ROLES if not role.startswith(_WORD)), "edited", CAPTION]
        base = name.removesuffix(_EVERY)
        if base in known and base != "image_mean":
            return cls(name, base, pooled=base == name)
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}, text:WORD."
        raise UsageError(f"There is no position role {name!r}; {hint}")

    def applies_to(self, tower: str) -> bool:
        """Whether the role exists in a tower: only the language model has text tokens."""
        return tower == "text" or self.base in IMAGE_ROLES


def parse_roles(names: str | Iterable[str]) -> tuple[Role, ...]:
    """Roles from a comma-separated text or a list, each once, in order.

    Raises:
        UsageError: None was given, or one of them is no role.
    """
    words = names.split(",") if isinstance(names, str) else list(names)
    found = tuple(Role.parse(word.strip()) for word in dict.fromkeys(words) if word.strip())
    if not found:
        raise UsageError("Expected at least one position such as 'last' or 'object', got none.")
    return found


def roles_of(site: Site, roles: Iterable[Role], *, pooled: bool) -> tuple[Role, ...]:
    """The roles of one kind that exist at a site."""
    return tuple(r for r in roles if r.pooled == pooled and r.applies_to(site.tower))


def check_sites(sites: Sequence[Site], roles: Sequence[Role]) -> None:
    """Refuse sites that cannot be taken by role.

    Raises:
        SiteError: A site has no axis of positions, or none of the roles exists there.
    """
    for site in sites:
        if site.shape.split()[1] != "pos":
            raise SiteError(
                f"{site} has the axes '{site.shape}' and no single position axis, so it cannot be "
                "taken by position role: use model.run_with_cache for it."
            )
        if not any(role.applies_to(site.tower) for role in roles):
            asked = ", ".join(role.name for role in roles)
            raise SiteError(
                f"{site} holds image patches and has none of the positions asked for ({asked}): "
                f"add one of {', '.join(IMAGE_ROLES)}, or leave the site out."
            )
