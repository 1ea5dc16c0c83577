"""The self-check: every declared site reads what it says, and writing there has an effect.

All of it is one forward over a batch of rows made of the same input. Row 0 is clean, row 1 carries
noise from one station to the next, row 2 is a control without noise, and row 3 + i has noise at
the i-th site of each block. At the entry of every block all rows are set back to row 0, so blocks
are tested independently of each other, and the stations between towers close the path from the
vision tower to the logits. In every row, noisy ones included, a block must be the sum of its
terms; noise at a site must change the residual stream behind the block. Noise is additive,
because norms undo a factor; an effect that does not exceed the control's fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm_interp.errors import ModelError
from lvlm_interp.models.hooks import READ
from lvlm_interp.models.identities import Passage, block_errors, final_errors
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.sample import sample_inputs
from lvlm_interp.sites import Site

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM

CLEAN, EXIT, CONTROL, FIRST = 0, 1, 2, 3
"""Rows of the batch; `FIRST` is the row of a block's first site."""

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""Largest error of a read, relative to the largest activation."""


@dataclass(frozen=True)
class SiteCheck:
    """What was found at one site.

    Attributes:
        site: The site.
        read_error: Largest difference from what it should be by its neighbours, relative to the
            largest activation; None where only the write says something.
        write_effect: Largest change of the stream behind, by noise of half a standard deviation.
        floor: The same change in the control row without noise.
    """

    site: str
    read_error: float | None
    write_effect: float
    floor: float

    def ok(self, tolerance: float) -> bool:
        """Whether it reads right and writes with an effect."""
        reads = self.read_error is None or self.read_error <= tolerance
        return reads and self.write_effect > 0 and self.write_effect > 3 * self.floor


@dataclass
class CheckReport:
    """The outcome of a self-check: one line per site."""

    model: str
    tolerance: float
    rows: int
    checks: list[SiteCheck] = field(default_factory=list)

    @property
    def failed(self) -> list[SiteCheck]:
        """Sites that did not pass."""
        return [check for check in self.checks if not check.ok(self.tolerance)]

    def __str__(self) -> str:
        lines = [f"{'site':<28}{'read error':>12}{'write effect':>14}"]
        for check in self.checks:
            read = "" if check.read_error is None else f"{check.read_error:.1e}"
            mark = "" if check.ok(self.tolerance) else "   FAILED"
            lines.append(f"{check.site:<28}{read:>12}{check.write_effect:>14.1e}{mark}")
        passed = len(self.checks) - len(self.failed)
        lines.append(f"{passed} of {len(self.checks)} sites read and write what they say.")
        return "\n".join(lines)


def self_check(model: LVLM, inputs: Inputs | Mapping[str, Any] | None = None) -> CheckReport:
    """Prove on one batch that every declared site reads and writes what it says.

    Args:
        model: The model; it is left as it was.
        inputs: One row to run on; by default a random image with a short prompt.

    Returns:
        The read error and write effect of every site.

    Raises:
        ModelError: A site reads wrong or is written without effect; all such sites are named.
    """
    report = inspect(model, inputs)
    if report.failed:
        names = "; ".join(_complaint(check, report.tolerance) for check in report.failed[:8])
        more = f"; and {len(report.failed) - 8} more" if len(report.failed) > 8 else ""
        raise ModelError(
            f"The self-check of {model.name} failed: {names}{more}. Load it with selfcheck=False "
            "only to find out why."
        )
    return report


def inspect(model: LVLM, inputs: Inputs | Mapping[str, Any] | None = None) -> CheckReport:
    """The self-check's table, whether or not all sites pass."""
    one = model.as_inputs(inputs) if inputs is not None else sample_inputs(model)
    run = _Run(model, one)
    with _unchanged_state(model.hf), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        run.forward()
    return run.report


def _complaint(check: SiteCheck, tolerance: float) -> str:
    if check.read_error is not None and not check.read_error <= tolerance:
        return f"{check.site} reads {check.read_error:.1e} off (allowed {tolerance:.0e})"
    return f"{check.site} has no effect when written"


class _Run:
    """One forward over the rows, and what it finds."""

    def __init__(self, model: LVLM, one: Inputs) -> None:
        self.model = model
        self.one = one
        self.blocks = _by_block(model.sites())
        self.n = FIRST + max(len(names) for names in self.blocks.values())
        self.report = CheckReport(model.name, TOLERANCE.get(model.dtype, 1e-2), self.n)
        self.seen: dict[str, Passage] = {}
        self.reads: dict[Site, float] = {}
        self.effects: dict[Site, tuple[float, float]] = {}
        self.previous: dict[str, Tensor] = {}
        self.notes: dict[str, Tensor] = {}

    def forward(self) -> None:
        """Run the batch and fill the report."""
        visitors = {site: self._visitor(site) for site in self.model.sites()}
        with self.model._connected(visitors, READ):
            self.model(_repeat(self.one, self.n))
        for site in self.model.sites():
            effect, floor = self.effects.get(site, (0.0, 0.0))
            self.report.checks.append(SiteCheck(str(site), self.reads.get(site), effect, floor))

    def _visitor(self, site: Site) -> Callable[[Tensor], Tensor | None]:
        if site.layer is None or site.name == "deepstack":
            return lambda value: self._station(site, value)
        return lambda value: self._inner(site, value)

    # -- inside a block ------------------------------------------------------------------------

    def _inner(self, site: Site, value: Tensor) -> Tensor | None:
        # resid_mid is edited in place, so what came must be kept aside.
        came = value.clone() if site.name == "resid_mid" else value
        if site.name == "resid_pre":
            self._enter(site, value)
            value = self._reset(value, site)
        elif site.name.endswith("cross_k"):
            self._arrived(("vision", "projector"), value, site)
        if site.name == "resid_post":
            return self._leave(site, value)
        row = FIRST + self.blocks[site.tower, site.layer].index(site)
        value = self._noised(value, site, row)
        self.seen[site.name] = Passage(came, value)
        return value

    def _enter(self, site: Site, value: Tensor) -> None:
        """The chain: what comes in is what the block before gave (plus deepstack features)."""
        before = self.previous.pop(site.tower, None)
        last = Site(site.tower, (site.layer or 0) - 1, "resid_post")
        if before is not None:
            self._effect(last, value)
            if before.shape == value.shape:
                added = self._deepstack(Site(site.tower, last.layer, "deepstack"), value, before)
                if not self._restarts(site):
                    self._read(last, (value - before - added).abs().max() / value.abs().max())
        elif site.tower == "text":
            embed = self.notes.pop("embed", None)
            self._effect(Site("text", None, "embed"), value)
            if embed is not None and self.model.family.embed_is_resid:
                self._read(Site("text", None, "embed"), (value - embed).abs().max())
        self.seen.clear()

    def _restarts(self, site: Site) -> bool:
        """Whether a second stack begins at a site, behind a norm or embeddings of its own."""
        for tower in self.model.family.towers:
            if tower.name == site.tower and tower.then is not None:
                return site.layer == len(attrgetter(tower.layers)(self.model.hf))
        return False

    def _deepstack(self, site: Site, value: Tensor, before: Tensor) -> Tensor | float:
        key = f"deepstack{site.layer}" if site.tower == "text" else ""
        added = self.notes.pop(key, None)
        if added is None:
            return 0.0
        self._effect(site, value - before)
        self._read(site, (value - before - added).abs().max() / value.abs().max())
        return added

    def _leave(self, site: Site, value: Tensor) -> Tensor:
        self.seen["resid_post"] = Passage(value, value)
        rows = self._rows(value, site)
        names = self.blocks[site.tower, site.layer]
        floor = _gap(rows[CONTROL], rows[CLEAN])
        for index, each in enumerate(names):
            if each.name != "resid_post":
                self.effects[each] = (_gap(rows[FIRST + index], rows[CLEAN]), floor)
        for name, error in block_errors(self.model, site, self.seen).items():
            self._read(Site(site.tower, site.layer, name), error)
        # Only one row leaves the block with a change, so that what follows can be told apart.
        out = self._noised(self._reset(value, site), site, EXIT)
        self.previous[site.tower] = out
        return out

    # -- between blocks ------------------------------------------------------------------------

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
        value = self._noised(self._reset(value, site), site, EXIT)
        if site.name == "deepstack":
            self.notes[f"deepstack{site.layer}"] = value
        elif site.name == "embed":
            self.notes["embed"] = value
        return value

    def _arrived(self, towers: tuple[str, ...], value: Tensor, here: Site) -> None:
        """Credit the exit of the tower before with the change that reaches this place."""
        for tower in towers:
            if tower == "projector":
                source = Site("projector", None, "out")
                if source not in self.effects:
                    self._effect(source, value, here)
            elif tower in self.previous:
                source = self.model.sites(f"{tower}.*.resid_post")[-1]
                self._effect(source, value, here)
                if here.name == "out":
                    self.previous.pop(tower)
                return

    def _embed(self, value: Tensor) -> None:
        """Noise in the projector changes the image's positions, all of them and no others."""
        source = Site("projector", None, "out")
        if not self.model.family.merged:
            return
        self._effect(source, value, Site("text", None, "embed"))
        rows = self._rows(value, Site("text", None, "embed"))
        changed = (rows[EXIT, 0] - rows[CLEAN, 0]).abs().amax(-1) > 0
        expected = self._image_mask(value)[EXIT]
        self._read(source, (changed != expected).float().mean())

    def _image_mask(self, value: Tensor) -> Tensor:
        tokens = self.one.tokens[0]
        mask = torch.zeros(self.n, len(tokens), dtype=torch.bool, device=value.device)
        mask[:, torch.as_tensor(tokens.image, device=value.device)] = True
        return mask

    def _final_norm(self, site: Site, value: Tensor) -> Tensor:
        before = self.previous.pop(site.tower, None)
        if before is not None:
            last = self.model.sites(f"{site.tower}.*.resid_post")[-1]
            self._effect(last, value)
            expected = self.model.tap(site).module.forward(before)
            self._read(site, (value - expected).abs().max() / value.abs().max())
        value = self._noised(self._reset(value, site), site, EXIT)
        self.notes["final_norm"] = value
        if site.tower != "text":
            self.previous[site.tower] = value
            self.effects[site] = (_gap(value[EXIT], value[CLEAN]), 0.0)
        return value

    def _logits(self, site: Site, value: Tensor) -> Tensor:
        self._effect(Site("text", None, "final_norm"), value, site)
        self._read(site, final_errors(self.model, self.notes["final_norm"], value))
        out = self._noised(value, site, EXIT)
        self.effects[site] = (_gap(out[EXIT], value[EXIT]), 0.0)
        return out

    # -- rows ------------------------------------------------------------------------------------

    def _rows(self, value: Tensor, site: Site) -> Tensor:
        """`row rest ...`: a site's value by row."""
        return value.unflatten(0, (self.n, -1))

    def _reset(self, value: Tensor, site: Site) -> Tensor:
        out = value.clone()
        rows = self._rows(out, site)
        rows[CLEAN + 1 :] = rows[CLEAN].clone()
        return out

    def _noised(self, value: Tensor, site: Site, row: int) -> Tensor:
        out = value.clone()
        target = self._rows(out, site)[row]
        finite = target[target.abs() < torch.finfo(value.dtype).max / 4]
        scale = 0.5 * finite.float().std().clamp(min=1e-3)
        noise = torch.randn(target.shape, dtype=torch.float32).to(value.device) * scale
        if site.name in ("mlp_out", "deepstack"):
            # Positions that a gate shuts off (Mllama before the image), and those that deepstack
            # does not reach, take nothing up.
            noise = noise * (target != 0).any(-1, keepdim=True)
        elif site.name == "pattern" and site.tower != "text":
            noise = noise * (target != 0)  # tiles of an image do not read each other
        # Masked scores stay masked: a number beside the smallest one would overflow to -inf.
        target.copy_(
            torch.where(target.abs() < torch.finfo(value.dtype).max / 4, target + noise, target)
        )
        return out

    def _effect(self, source: Site, value: Tensor, here: Site | None = None) -> None:
        rows = self._rows(value, here or source)
        self.effects[source] = (_gap(rows[EXIT], rows[CLEAN]), _gap(rows[CONTROL], rows[CLEAN]))

    def _read(self, site: Site, error: Tensor | float) -> None:
        self.reads[site] = max(self.reads.get(site, 0.0), float(error))


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def _by_block(sites: list[Site]) -> dict[tuple[str, int | None], list[Site]]:
    blocks: dict[tuple[str, int | None], list[Site]] = {}
    for site in sites:
        if site.layer is not None and site.name != "deepstack":
            blocks.setdefault((site.tower, site.layer), []).append(site)
    return blocks


def _repeat(one: Inputs, n: int) -> Inputs:
    tensors = {
        name: torch.cat([value] * n) if isinstance(value, Tensor) else value
        for name, value in one.tensors.items()
    }
    return replace(one, tensors=tensors, tokens=one.tokens * n)


@contextmanager
def _unchanged_state(hf: Any) -> Iterator[None]:
    """Put back what a forward of transformers leaves on its modules (M-RoPE offsets)."""
    before = [
        (module, module.rope_deltas) for module in hf.modules() if hasattr(module, "rope_deltas")
    ]
    try:
        yield
    finally:
        for module, value in before:
            module.rope_deltas = value
