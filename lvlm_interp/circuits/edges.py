"""Edge-level runs: every receiver may read another run's value of every sender.

With u a sender's contribution in this run and u' its counterfactual one, a receiver reads

    x + sum over its counterfactual edges of (u' - u),

x being the residual stream as it is. u is what the sender writes *in this run*, its own input
changed as the mask says, so the run of a circuit is exact for any set of edges. One edge at a time
gives exact edge patching. Several masks can run in one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvlm_interp.circuits.graph import Graph
from lvlm_interp.errors import ModelError
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM, Edit
from lvlm_interp.patching.batches import PairBatch
from lvlm_interp.patching.components import masks
from lvlm_interp.patching.gradients import gradient_run
from lvlm_interp.patching.metrics import Scorer
from lvlm_interp.sites import Site

_ATTENTION_NORMS = ("input_layernorm", "layer_norm1", "norm1", "layernorm_before")

Contributions = dict[str, Tensor]
"""What every sender of a tower writes, by tower; each `sender pair pos d_model`."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Modules of one block that an edge-level run needs."""

    attention_norm: nn.Module
    mlp_norm: nn.Module
    mlp: nn.Module
    output: nn.Module
    projections: Mapping[str, nn.Module]


class Tower:
    """One tower of a graph, with the modules that its edges run through."""

    def __init__(self, model: LVLM, graph: Graph, name: str) -> None:
        self.name = name
        self.size = model.towers[name]
        self.senders, self.receivers = graph.where(name)
        self.parts = [_parts(model, name, layer) for layer in range(self.size.n_layers)]
        self.inputs = [i for i in self.senders if graph.senders[i].layer is None]
        self.graph = graph

    def heads_of(self, layer: int) -> list[int]:
        """Senders that are heads of a layer, in order."""
        chosen = self.graph.senders
        return [i for i in self.senders if chosen[i].layer == layer and chosen[i].head is not None]

    def mlp_of(self, layer: int) -> int:
        """The sender that is a layer's MLP."""
        chosen = self.graph.senders
        return next(i for i in self.senders if chosen[i].layer == layer and chosen[i].head is None)

    def readers(self, layer: int | None, part: str) -> list[int]:
        """Receivers of a layer of one part, in order."""
        chosen = self.graph.receivers
        return [j for j in self.receivers if chosen[j].layer == layer and chosen[j].part == part]

    def split(self, z: Tensor, layer: int) -> Float[Tensor, "head pair pos d_model"]:
        """What each head writes, from z."""
        weight = self.parts[layer].output.weight
        assert isinstance(weight, Tensor)
        per_head = weight.unflatten(1, (self.size.n_heads, self.size.d_head))
        return torch.einsum("bthd,mhd->hbtm", z, per_head)

    def project(
        self, part: str, layer: int, streams: Float[Tensor, "pair pos head d_model"]
    ) -> Float[Tensor, "pair pos head d_head"]:
        """q, k or v of each head from its own stream."""
        parts = self.parts[layer]
        module = parts.projections[part]
        weight, bias = module.weight, getattr(module, "bias", None)
        assert isinstance(weight, Tensor)
        normed = parts.attention_norm.forward(streams)
        per_head = weight.unflatten(0, (-1, self.size.d_head))
        out = torch.einsum("bthm,hdm->bthd", normed, per_head)
        return out if bias is None else out + bias.unflatten(0, (-1, self.size.d_head))

    def mlp_out(self, layer: int, stream: Tensor) -> Tensor:
        """What the MLP writes, from its own stream."""
        parts = self.parts[layer]
        return parts.mlp.forward(parts.mlp_norm.forward(stream))


def towers(model: LVLM, graph: Graph) -> list[Tower]:
    """The graph's towers, in the order of the forward.

    Raises:
        ModelError: A branch is normed or scaled before it is added, or projections are fused.
    """
    names = dict.fromkeys(receiver.tower for receiver in graph.receivers)
    return [Tower(model, graph, name) for name in names]


def role_masks(graph: Graph, batch: PairBatch, n: int) -> Float[Tensor, "role pair pos"]:
    """Weight 1 where a position plays a role; the last role is `rest`, or `all` is everything.

    Raises:
        InputError: A pair lacks a role.
    """
    if graph.roles == ("all",):
        return torch.ones(1, len(batch), n)
    named = masks(batch, "text", n, graph.roles[:-1])
    free = torch.ones(len(batch), n, dtype=torch.bool)
    out = []
    for _, mask in named:
        out.append(mask & free)  # a position plays the first role that holds it
        free = free & ~mask
    return torch.stack([*out, free]).float()


@torch.no_grad()
def contributions(model: LVLM, graph: Graph, inputs: Inputs) -> tuple[Contributions, Tensor]:
    """What every sender writes in a plain run, and the logits at the answer."""
    found: Contributions = {}
    all_towers = towers(model, graph)
    sites = [
        site
        for tower in all_towers
        for site in model.sites(
            [f"{tower.name}.{part}" for part in ("0.resid_pre", "*.z", "*.mlp_out")]
        )
    ]
    with model.record(sites) as cache:
        logits = model.last_logits(inputs)
    for tower in all_towers:
        start = cache[Site(tower.name, 0, "resid_pre")]
        rows = list(_entering(tower, start, inputs))
        for layer in range(tower.size.n_layers):
            rows += list(tower.split(cache[Site(tower.name, layer, "z")], layer))
            rows.append(cache[Site(tower.name, layer, "mlp_out")])
        found[tower.name] = torch.stack(rows)
    return found, logits


def _entering(tower: Tower, start: Tensor, inputs: Inputs) -> list[Tensor]:
    """What enters a stream: one sender, or image and other positions apart."""
    if len(tower.inputs) == 1:
        return [start]
    image = torch.zeros(start.shape[:2], device=start.device)
    for row, tokens in enumerate(inputs.tokens):
        image[row, torch.as_tensor(tokens.image)] = 1.0
    return [start * image[..., None], start * (1 - image)[..., None]]


@dataclass(eq=False)
class EdgeRun:
    """One forward in which some edges carry counterfactual values.

    Attributes:
        model, graph: The model and its graph.
        inputs: Of the run.
        other: Contributions in the counterfactual run.
        changed: Weight of the counterfactual edges, 0 or 1; `pair sender receiver role`.
        roles: From `role_masks`.
    """

    model: LVLM
    graph: Graph
    inputs: Inputs
    other: Contributions
    changed: Float[Tensor, "pair sender receiver role"]
    roles: Float[Tensor, "role pair pos"]
    _delta: dict[str, list[Tensor]] = field(default_factory=dict)
    _stream: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def logits(self) -> Float[Tensor, "pair d_vocab"]:
        """Logits at the answer."""
        edits: dict[str | Site, Edit] = {}
        for tower in towers(self.model, self.graph):
            self._delta[tower.name] = []
            for layer in range(tower.size.n_layers):
                edits |= self._block_edits(tower, layer)
            last = Site(tower.name, tower.size.n_layers - 1, "resid_post")
            edits[last] = self._end(tower)
        with self.model.edit(edits):
            return self.model.last_logits(self.inputs)

    def _block_edits(self, tower: Tower, layer: int) -> dict[str | Site, Edit]:
        def enter(value: Tensor) -> Tensor:
            if layer == 0:
                now = torch.stack(_entering(tower, value, self.inputs))
                self._note(tower, tower.inputs, now)
            self._stream[tower.name] = value
            return value

        def read(part: str) -> Edit:
            def edit(_value: Tensor) -> Tensor:
                readers = tower.readers(layer, part)
                streams = self._streams(tower, self._stream[tower.name], readers)
                return tower.project(part, layer, streams)

            return edit

        def write_heads(z: Tensor) -> Tensor:
            self._note(tower, tower.heads_of(layer), tower.split(z, layer))
            return z

        def middle(value: Tensor) -> Tensor:
            # The stream is edited in place behind this point, so a copy is kept.
            self._stream[tower.name] = value.clone()
            return value

        def write_mlp(_value: Tensor) -> Tensor:
            readers = tower.readers(layer, "mlp")
            stream = self._streams(tower, self._stream[tower.name], readers)[:, :, 0]
            new = tower.mlp_out(layer, stream)
            self._note(tower, [tower.mlp_of(layer)], new[None])
            return new

        names: dict[str, Edit] = {
            "resid_pre": enter,
            **{part: read(part) for part in "qkv"},
            "z": write_heads,
            "resid_mid": middle,
            "mlp_out": write_mlp,
        }
        return {Site(tower.name, layer, name): edit for name, edit in names.items()}

    def _end(self, tower: Tower) -> Edit:
        readers = [j for part in ("projector", "logits") for j in tower.readers(None, part)]

        def edit(value: Tensor) -> Tensor:
            # Only the projector, or the final norm, reads this stream.
            return self._streams(tower, value, readers)[:, :, 0] if readers else value

        return edit

    def _note(self, tower: Tower, senders: list[int], now: Tensor) -> None:
        """Keep u' - u of senders that have just written."""
        first = tower.senders[0]
        index = [sender - first for sender in senders]
        self._delta[tower.name] += list(self.other[tower.name][index] - now)

    def _streams(
        self, tower: Tower, stream: Tensor, readers: list[int]
    ) -> Float[Tensor, "pair pos reader d_model"]:
        """The stream as each reader sees it."""
        delta = torch.stack(self._delta[tower.name])
        senders = tower.senders[: len(delta)]
        weight = self.changed[:, senders][:, :, readers]
        if tower.name == "text":
            at_position = torch.einsum("bsrk,kbt->bsrt", weight, self.roles.to(weight))
            change = torch.einsum("bsrt,sbtm->btrm", at_position, delta)
        else:
            change = torch.einsum("bsr,sbtm->btrm", weight[..., 0], delta)
        return stream[:, :, None] + change


def receiver_gradients(
    model: LVLM,
    graph: Graph,
    inputs: Inputs,
    score: Scorer,
    edits: Mapping[str | Site, Edit] | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """dm/d(input of each receiver) by tower (`receiver pair pos d_model`), and the metric.

    What reaches q, k or v of a head goes back through its projection and the norm in front of it:
    one vector-Jacobian product per layer.
    """
    all_towers = towers(model, graph)
    parts = ("resid_pre", "q", "k", "v", "resid_mid", "mlp_out", "resid_post")
    sites = [
        site for tower in all_towers for site in model.sites([f"{tower.name}.*.{p}" for p in parts])
    ]
    run = gradient_run(model, inputs, sites, score, edits=edits)
    grads = run.gradients()
    out: dict[str, Tensor] = {}
    for tower in all_towers:
        rows: list[Tensor] = []
        for layer in range(tower.size.n_layers):

            def here(name: str, layer: int = layer, tower: Tower = tower) -> Site:
                return Site(tower.name, layer, name)

            stream = run.values[here("resid_pre")].detach()
            for part in "qkv":
                count = len(tower.readers(layer, part))
                wide = stream[:, :, None].expand(-1, -1, count, -1).clone().requires_grad_()
                with torch.enable_grad():
                    made = tower.project(part, layer, wide)
                rows += list(torch.autograd.grad(made, wide, grads[here(part)])[0].unbind(2))
            middle = run.values[here("resid_mid")].detach().clone().requires_grad_()
            with torch.enable_grad():
                made = tower.mlp_out(layer, middle)
            rows.append(torch.autograd.grad(made, middle, grads[here("mlp_out")])[0])
        if tower.readers(None, "projector") or tower.readers(None, "logits"):
            rows.append(grads[Site(tower.name, tower.size.n_layers - 1, "resid_post")])
        out[tower.name] = torch.stack(rows)
    return out, run.metric.detach()


def _parts(model: LVLM, tower: str, layer: int) -> Parts:
    def module(name: str) -> nn.Module:
        return model.tap(Site(tower, layer, name)).module

    block = module("resid_pre")
    norm = next((getattr(block, name) for name in _ATTENTION_NORMS if hasattr(block, name)), None)
    projections = {part: module(part) for part in "qkv"}
    output = module("z")
    plain = module("attn_out") is output and len({id(each) for each in projections.values()}) == 3
    width = model.towers[tower].d_model
    weight = getattr(output, "weight", None)
    whole = isinstance(weight, Tensor) and weight.shape[0] == width
    if norm is None or not plain or not whole:
        raise ModelError(
            f"Edges of the {tower} tower need a block with one norm in front of each branch, "
            "separate projections, and branches added as they are; this model's differ."
        )
    return Parts(norm, module("resid_mid"), module("mlp_out"), output, projections)
