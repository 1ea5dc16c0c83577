"""Gradients of the metric at sites, at one run or averaged along the path between two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM, Edit
from lvlm_interp.patching.metrics import Scorer
from lvlm_interp.sites import Site

Quadrature = Literal["right", "left", "midpoint"]
Path = Literal["embed", "pixels"]

EMBED = Site("text", None, "embed")

Step = tuple[Inputs, dict[str | Site, Edit]]
"""One point of a path."""


@dataclass(frozen=True)
class Integration:
    """A straight path from the run that is patched (0) to the other run (1).

    Attributes:
        steps: Points on the path.
        quadrature: `right` k/m for k = 1..m, `left` k/m for k = 0..m-1, or `midpoint`. Papers and
            released code differ here, so it has a name.
        path: What moves: `embed`, all that enters the language model (the vision tower then gets
            no gradient), or `pixels`.
    """

    steps: int = 5
    quadrature: Quadrature = "midpoint"
    path: Path = "embed"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"steps={self.steps}: integration needs at least one step.")
        if self.quadrature not in get_args(Quadrature) or self.path not in get_args(Path):
            raise UsageError(
                f"quadrature={self.quadrature!r}, path={self.path!r}: expected a quadrature of "
                f"{', '.join(get_args(Quadrature))} and a path of {', '.join(get_args(Path))}."
            )

    @property
    def points(self) -> list[float]:
        """Places on the path, 0 to 1."""
        shift = {"right": 1.0, "left": 0.0, "midpoint": 0.5}[self.quadrature]
        return [(k + shift) / self.steps for k in range(self.steps)]

    def runs(self, model: LVLM, target: Inputs, source: Inputs) -> Iterator[Step]:
        """Inputs of the run at each point, and the edits that are open in it.

        Raises:
            InputError: What moves is not all that differs: along pixels, prompts or sizes differ;
                along embeddings, the end of the path is not the other run.
        """
        if self.path == "pixels":
            return _along_pixels(target, source, self.points)
        return _along_entries(model, target, source, self.points)


@dataclass(eq=False)
class GradientRun:
    """One forward with its graph.

    Attributes:
        values: The activation at each site, part of the graph.
        metric: Of each pair; shape `pair`.
        open_layers: (tower, layer) to whether gradients flow through its branches (GradDrop).
    """

    values: dict[Site, Tensor]
    metric: Tensor
    open_layers: dict[tuple[str, int], bool] = field(default_factory=dict)

    def gradients(self, *, keep_graph: bool = False) -> dict[Site, Tensor]:
        """dm/da at each site.

        Raises:
            UsageError: The metric does not depend on what passes a site.
        """
        values = list(self.values.values())
        found: Sequence[Tensor | None] = [None] * len(values)
        if self.metric.requires_grad:
            found = torch.autograd.grad(
                self.metric.sum(), values, retain_graph=keep_graph, allow_unused=True
            )
        cut = [site for site, grad in zip(self.values, found, strict=True) if grad is None]
        if cut:
            raise UsageError(
                f"The metric has no gradient at {', '.join(map(str, cut[:3]))}: nothing that it "
                "reads depends on what passes there, so no effect can be estimated. Leave the site "
                "out, or patch it (activation_patch)."
            )
        return {
            site: grad for site, grad in zip(self.values, found, strict=True) if grad is not None
        }


def gradient_run(
    model: LVLM,
    inputs: Inputs,
    sites: Sequence[Site],
    score: Scorer,
    *,
    edits: Mapping[str | Site, Edit] | None = None,
    droppable: Sequence[tuple[str, int]] = (),
) -> GradientRun:
    """Run with gradients at sites.

    Args:
        model: The model.
        inputs: Of the run.
        sites: Where gradients are wanted.
        score: The metric.
        edits: Open during the run.
        droppable: (tower, layer) whose branches can be closed to gradients afterwards.
    """
    gates = dict.fromkeys(droppable, True)
    with weights_frozen(model), model.edit({**(edits or {}), **_gated(model, gates)}):
        with model.record(sites, grad=True) as cache:
            logits = model.last_logits(inputs, grad=True)
    return GradientRun({site: cache[site] for site in sites}, score(logits), gates)


def mean_gradients(
    model: LVLM,
    target: Inputs,
    source: Inputs,
    sites: Sequence[Site],
    score: Scorer,
    integration: Integration,
) -> dict[Site, Tensor]:
    """Gradients averaged over the points of a path (integrated gradients, Sundararajan 2017).

    Raises:
        UsageError: Along what enters the language model, a site lies in front of that and gets no
            gradient.
        InputError: As in `Integration.runs`.
    """
    if integration.path == "embed":
        entries = entry_sites(model)
        blind = [site for site in sites if site.tower != "text" and site not in entries]
        if blind:
            raise UsageError(
                f"Along merged embeddings {blind[0]} gets no gradient: use path='pixels', or sites "
                "of the language model."
            )
    total: dict[Site, Tensor] = {}
    for inputs, edits in integration.runs(model, target, source):
        run = gradient_run(model, inputs, sites, score, edits=edits)
        for site, grad in run.gradients().items():
            total[site] = total[site] + grad if site in total else grad
    return {site: grad / integration.steps for site, grad in total.items()}


def entry_sites(model: LVLM) -> list[Site]:
    """Everywhere that something enters the language model: all of it moves along `embed`.

    Merged embeddings; features added between blocks (deepstack); and what cross-attention reads
    where nothing is merged.
    """
    added = [site for site in model.sites() if site.name == "deepstack"]
    crossed = [] if model.family.merged else [Site("projector", None, "out")]
    return [EMBED, *added, *crossed]


def _along_entries(
    model: LVLM, target: Inputs, source: Inputs, points: Sequence[float]
) -> Iterator[Step]:
    entries = entry_sites(model)
    with torch.no_grad():
        (_, start), (there, end) = (
            model.run_with_cache(inputs, entries, logits_to_keep=1) for inputs in (target, source)
        )

        def at_point(point: float) -> dict[str | Site, Edit]:
            moved = {site: start[site] + point * (end[site] - start[site]) for site in entries}
            return {site: lambda _value, new=new: new for site, new in moved.items()}

        with model.edit(at_point(1.0)):
            arrived = model(target, logits_to_keep=1)
    off = float((arrived - there).float().abs().max())
    if off > 64 * torch.finfo(there.dtype).eps * max(1.0, float(there.float().abs().max())):
        raise InputError(
            "With everything that enters the language model moved to the other run, its logits "
            f"are off by {off:.1e}: masks or positions of the two runs differ, or something else "
            "enters. Use path='pixels', or pairs whose images have one layout."
        )
    for point in points:
        yield target, at_point(point)


def _along_pixels(target: Inputs, source: Inputs, points: Sequence[float]) -> Iterator[Step]:
    if not torch.equal(target["input_ids"], source["input_ids"]):
        raise InputError(
            "Integration along pixels needs the same prompt on both sides: use path='embed' and "
            "sites of the language model."
        )
    start, end = target["pixel_values"], source["pixel_values"]
    if start.shape != end.shape:
        raise InputError(
            f"Integration along pixels needs images of one size, not {tuple(start.shape)} and "
            f"{tuple(end.shape)}: use path='embed'."
        )
    for point in points:
        tensors: dict[str, Any] = {**target.tensors, "pixel_values": start + point * (end - start)}
        yield replace(target, tensors=tensors), {}


BRANCHES = ("attn_out", "cross_attn_out", "mlp_out")


def _gated(model: LVLM, gates: dict[tuple[str, int], bool]) -> dict[str | Site, Edit]:
    """Edits that change no value but stop the gradient of a branch while its gate is closed."""

    def gate(key: tuple[str, int]) -> Edit:
        def edit(value: Tensor) -> Tensor:
            if value.requires_grad:
                value.register_hook(lambda grad: grad if gates[key] else torch.zeros_like(grad))
            return value

        return edit

    return {
        site: gate((site.tower, site.layer))
        for site in model.sites()
        if site.layer is not None and (site.tower, site.layer) in gates and site.name in BRANCHES
    }


@contextmanager
def weights_frozen(model: LVLM) -> Iterator[None]:
    """No graph for the weights: only activations need gradients."""
    trained = [weight for weight in model.hf.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
