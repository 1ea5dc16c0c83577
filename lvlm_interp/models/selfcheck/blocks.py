"""Inside a block: noise at every site, heard at the next one; and the block's identities.

At each site all rows are set back to the clean one before one of them is noised, so what changes at
a site comes from the one before it. Sites that are heard at the same place are noised in different
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from lvlm_interp.models.identities import Passage, block_errors
from lvlm_interp.models.selfcheck.rows import (
    FIRST,
    SECOND,
    THIRD,
    gap,
    is_square,
    noised,
    queries,
    reset,
)
from lvlm_interp.sites import Site

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM

ROW = {
    **dict.fromkeys(("q", "rot_q", "pattern", "cross_q", "cross_pattern", "mlp_out"), SECOND),
    **dict.fromkeys(("attn_out", "cross_attn_out"), THIRD),
}
"""Row in which a site is noised, where it is not the first noisy one."""

HEARD_AT: dict[str, tuple[str, ...]] = {
    "resid_pre": ("q", "cross_q", "attn_out", "mlp_hidden", "mlp_out"),
    "q": ("rot_q", "scores"),
    "k": ("rot_k", "scores"),
    "rot_q": ("scores",),
    "rot_k": ("scores",),
    "scores": ("pattern",),
    "pattern": ("z",),
    "v": ("z",),
    "z": ("attn_out",),
    "attn_out": ("resid_cross", "resid_mid", "resid_post"),
    "resid_cross": ("cross_q",),
    "cross_q": ("cross_scores",),
    "cross_k": ("cross_scores",),
    "cross_scores": ("cross_pattern",),
    "cross_pattern": ("cross_z",),
    "cross_v": ("cross_z",),
    "cross_z": ("cross_attn_out",),
    "cross_attn_out": ("resid_mid", "resid_post"),
    "resid_mid": ("mlp_hidden", "mlp_out"),
    "mlp_hidden": ("mlp_out",),
    "mlp_out": ("resid_post",),
}
"""The first of these that a block has is where noise at a site must be seen."""

Effects = dict[Site, tuple[float, float]]


class BlockCheck:
    """What one pass through one block found."""

    def __init__(self, model: LVLM, names: set[str]) -> None:
        self.model = model
        self.names = names
        self.seen: dict[str, Passage] = {}
        self.queries: dict[str, Tensor] = {}
        self.effects: Effects = {}

    def hears(self, source: str) -> str | None:
        """Where noise at a site is seen; None at the end of the block."""
        return next((name for name in HEARD_AT.get(source, ()) if name in self.names), None)

    def visit(self, site: Site, value: Tensor) -> Tensor:
        """Hear the sites before this one, and noise it."""
        self.listen(site, value)
        row = ROW.get(site.name, FIRST)
        if is_square(site):
            return self._square(site, value, row)
        # resid_mid is edited in place, so what came must be kept aside.
        came = value.clone() if site.name == "resid_mid" else value
        went = noised(reset(value), site, row)
        self.seen[site.name] = Passage(came, went)
        return went

    def _square(self, site: Site, value: Tensor, row: int) -> Tensor:
        """The same at some query positions; nobody else holds the tensor, so it is edited."""
        places = queries(value)
        came = value.index_select(2, places)
        went = noised(reset(came), site, row)
        value.index_copy_(2, places, went)
        prefix = "cross_" if site.name.startswith("cross_") else ""
        self.queries[prefix] = places
        self.seen[site.name] = Passage(came, went)
        return value

    def listen(self, site: Site, value: Tensor) -> None:
        """Credit the sites that are heard here."""
        for source in self.seen:
            if self.hears(source) == site.name:
                at = Site(site.tower, site.layer, source)
                self.effects[at] = gap(value, ROW.get(source, FIRST))

    def leave(self, site: Site, value: Tensor) -> dict[str, float]:
        """Hear the last sites; errors of the block's identities by name."""
        self.listen(site, value)
        self.seen["resid_post"] = Passage(value, value)
        if self.names - set(self.seen):
            # A site that nothing passed (attention that is not the registered one) has no effect,
            # which is what the report says of it; its identities cannot be asked.
            return {}
        return block_errors(self.model, site, self.seen, self.queries)

    def outcome(self, written: Callable[[tuple[float, float]], bool]) -> Effects:
        """Effects of the block's sites: what goes nowhere from the next site has none."""
        final: Effects = {}
        for site in reversed(list(self.effects)):
            effect = self.effects[site]
            heard = self.hears(site.name)
            behind = final.get(Site(site.tower, site.layer, heard)) if heard else None
            skips = site.name.startswith("resid_")
            final[site] = behind if behind and not skips and not written(behind) else effect
        return final
