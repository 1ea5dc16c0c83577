"""Stations: what holds between blocks, and between the vision tower, the projector and the logits.

One row carries noise from a station to the next, where it must be seen; so the path from the vision
tower to the logits is closed. What leaves a block must be what enters the next one.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lvlm_interp.models.identities import final_errors, off
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.selfcheck.blocks import BlockCheck, Effects
from lvlm_interp.models.selfcheck.report import SiteCheck
from lvlm_interp.models.selfcheck.rows import CLEAN, EXIT, N, distance, gap, noised, reset
from lvlm_interp.sites import Site

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM


class Stations:
    """What one forward over the rows finds, site by site.

    Attributes:
        effects: Change behind each site, and the control's.
        reads: Error of each site that can be told from its neighbours.
    """

    def __init__(self, model: LVLM, one: Inputs) -> None:
        self.model = model
        self.one = one
        self.effects: Effects = {}
        self.reads: dict[Site, float] = {}
        self._names = _by_block(model.sites())
        self._block: BlockCheck | None = None
        self._previous: dict[str, Tensor] = {}
        self._notes: dict[str, Tensor] = {}

    def visit(self, site: Site, value: Tensor) -> Tensor | None:
        """Look at a site's value and give what flows on."""
        if site.layer is None or site.name == "deepstack":
            return self._station(site, value)
        if site.name == "resid_pre":
            self._enter(site, value)
        elif site.name.endswith("cross_k"):
            self._arrived(("vision", "projector"), value, site)
        assert self._block is not None
        return (
            self._leave(site, value)
            if site.name == "resid_post"
            else self._block.visit(site, value)
        )

    # -- from block to block -------------------------------------------------------------------

    def _enter(self, site: Site, value: Tensor) -> None:
        """What comes in is what the block before gave (plus deepstack features)."""
        self._block = BlockCheck(self.model, self._names[site.tower, site.layer])
        before = self._previous.pop(site.tower, None)
        last = Site(site.tower, (site.layer or 0) - 1, "resid_post")
        if before is not None:
            self._effect(last, value)
            if before.shape == value.shape:
                added = self._deepstack(Site(site.tower, last.layer, "deepstack"), value, before)
                if not self._restarts(site):
                    self._read(last, off(value, before + added))
        elif site.tower == "text":
            embed = self._notes.pop("embed", None)
            self._effect(Site("text", None, "embed"), value)
            if embed is not None and self.model.family.embed_is_resid:
                self._read(Site("text", None, "embed"), off(value, embed))

    def _restarts(self, site: Site) -> bool:
        """Whether a second stack begins at a site, behind a norm or embeddings of its own."""
        for tower in self.model.family.towers:
            if tower.name == site.tower and tower.then is not None:
                return site.layer == len(attrgetter(tower.layers)(self.model.hf))
        return False

    def _deepstack(self, site: Site, value: Tensor, before: Tensor) -> Tensor | float:
        key = f"deepstack{site.layer}" if site.tower == "text" else ""
        added = self._notes.pop(key, None)
        if added is None:
            return 0.0
        self._effect(site, value - before)
        self._read(site, off(value, before + added))
        return added

    def _leave(self, site: Site, value: Tensor) -> Tensor:
        assert self._block is not None
        for name, error in self._block.leave(site, value).items():
            self._read(Site(site.tower, site.layer, name), error)
        self.effects |= self._block.outcome(_written)
        # Only one row leaves the block with a change, so that what follows can be told apart.
        out = noised(reset(value), site, EXIT)
        self._previous[site.tower] = out
        return out

    # -- from tower to tower -------------------------------------------------------------------

    def _station(self, site: Site, value: Tensor) -> Tensor:
        if site.name == "logits":
            return self._logits(site, value)
        if site.name == "final_norm":
            return self._final_norm(site, value)
        if site.name == "out":
            self._arrived(("qformer", "vision"), value, site)
        if site.name == "deepstack":
            self._arrived((), value, site)
        if site.name == "embed":
            self._embed(value)
        value = noised(reset(value), site, EXIT)
        if site.name == "deepstack":
            self._notes[f"deepstack{site.layer}"] = value
        elif site.name == "embed":
            self._notes["embed"] = value
        return value

    def _arrived(self, towers: tuple[str, ...], value: Tensor, here: Site) -> None:
        """Credit the exit of the tower before with the change that reaches this place."""
        for tower in towers:
            if tower == "projector":
                source = Site("projector", None, "out")
                if source not in self.effects:
                    self._effect(source, value)
            elif tower in self._previous:
                source = self.model.sites(f"{tower}.*.resid_post")[-1]
                self._effect(source, value)
                if here.name == "out":
                    self._previous.pop(tower)
                return

    def _embed(self, value: Tensor) -> None:
        """Noise in the projector changes the image's positions, all of them and no others."""
        source = Site("projector", None, "out")
        if not self.model.family.merged:
            return
        self._effect(source, value)
        changed = (value[EXIT] - value[CLEAN]).abs().amax(-1) > 0
        expected = self._image_mask(value)[EXIT]
        self._read(source, (changed != expected).float().mean())

    def _image_mask(self, value: Tensor) -> Tensor:
        tokens = self.one.tokens[0]
        mask = torch.zeros(N, len(tokens), dtype=torch.bool, device=value.device)
        mask[:, torch.as_tensor(tokens.image, device=value.device)] = True
        return mask

    def _final_norm(self, site: Site, value: Tensor) -> Tensor:
        before = self._previous.pop(site.tower, None)
        if before is not None:
            last = self.model.sites(f"{site.tower}.*.resid_post")[-1]
            self._effect(last, value)
            norm = self.model.tap(site).module
            added = self._notes.pop(f"deepstack{last.layer}", None)
            if added is not None and site.tower == "text":  # behind the last block
                behind = Site("text", last.layer, "deepstack")
                self._effect(behind, value - norm.forward(before))
                before = before + added
                self._read(behind, off(value, norm.forward(before)))
            self._read(site, off(value, norm.forward(before)))
        value = noised(reset(value), site, EXIT)
        self._notes["final_norm"] = value
        if site.tower != "text":
            self._previous[site.tower] = value
            self.effects[site] = (distance(value[EXIT], value[CLEAN]), 0.0)
        return value

    def _logits(self, site: Site, value: Tensor) -> Tensor:
        self._effect(Site("text", None, "final_norm"), value)
        self._read(site, final_errors(self.model, self._notes["final_norm"], value))
        out = noised(value, site, EXIT)
        self.effects[site] = (distance(out[EXIT], value[EXIT]), 0.0)
        return out

    def _effect(self, source: Site, value: Tensor) -> None:
        self.effects[source] = gap(value, EXIT)

    def _read(self, site: Site, error: Tensor | float) -> None:
        self.reads[site] = max(self.reads.get(site, 0.0), float(error))


def _written(effect: tuple[float, float]) -> bool:
    return SiteCheck("", None, *effect).written


def _by_block(sites: list[Site]) -> dict[tuple[str, int | None], set[str]]:
    blocks: dict[tuple[str, int | None], set[str]] = {}
    for site in sites:
        if site.layer is not None and site.name != "deepstack":
            blocks.setdefault((site.tower, site.layer), set()).add(site.name)
    return blocks
