"""Edge-level runs: every receiver may read another run's value of every sender.

With u a sender's contribution in this run and u' its counterfactual one, a receiver reads

    x + sum over its counterfactual edges of (u' - u),

x being the residual stream as it is. u is what the sender writes *in this run*, its own input
changed as the mask says, so the run of a circuit is exact for any set of edges. One edge at a time
gives exact edge patching. Several masks can run in one batch.

What heads write and branches read is asked of the modules (`models.maps`). Heads share what none of
them writes, the bias of the output projection, so that senders sum to the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.circuits.graph import Graph
from lvlm_interp.circuits.tower import Stage, Tower
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM, Edit
from lvlm_interp.patching.batches import PairBatch
from lvlm_interp.patching.components import masks
from lvlm_interp.patching.gradients import GradientRun, gradient_run
from lvlm_interp.patching.metrics import Scorer
from lvlm_interp.sites import Site


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


@dataclass(eq=False)
class EdgeRun:
    """One forward in which some edges carry counterfactual values.

    Attributes:
        model: The model.
        towers: Of its graph.
        inputs: Of the run.
        other: By tower and stage, what the senders write in the counterfactual run; each
            `sender pair pos d_model`.
        changed: Weight of the counterfactual edges, 0 or 1; `pair sender receiver role`.
        roles: From `role_masks`.
    """

    model: LVLM
    towers: Sequence[Tower]
    inputs: Inputs
    other: Mapping[str, Mapping[Stage, Tensor]]
    changed: Float[Tensor, "pair sender receiver role"]
    roles: Float[Tensor, "role pair pos"]
    _delta: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    _stream: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def logits(self) -> Float[Tensor, "pair d_vocab"]:
        """Logits at the answer."""
        edits: dict[str | Site, Edit] = {}
        for tower in self.towers:
            self._delta[tower.name] = {}
            for layer in range(tower.size.n_layers):
                edits |= self._block_edits(tower, layer)
        with self.model.edit(edits):
            return self.model.last_logits(self.inputs)

    def _block_edits(self, tower: Tower, layer: int) -> dict[str | Site, Edit]:
        readers = {part: tower.reading(part, layer) for part in ("q", "k", "v", "mlp")}

        def read(part: str) -> Edit:
            def edit(value: Tensor) -> Tensor:
                streams = self._streams(tower, self._stream[tower.name], readers[part])
                return tower.maps(layer).reads(part, streams).to(value)

            return edit

        def write_heads(z: Tensor) -> Tensor:
            self._note(tower, tower.writer("heads", layer), tower.heads(layer, z))
            return z

        def middle(value: Tensor) -> Tensor:
            # The stream is edited in place behind this point, so a copy is kept.
            self._stream[tower.name] = value.clone()
            return value

        def write_mlp(value: Tensor) -> Tensor:
            stream = self._streams(tower, self._stream[tower.name], readers["mlp"])[:, :, 0]
            new = tower.maps(layer).mlp_writes(stream).to(value)
            self._note(tower, tower.writer("mlp", layer), new[None])
            return new

        names: dict[str, Edit] = {
            "resid_pre": self._enter(tower, layer),
            **{part: read(part) for part in "qkv"},
            "z": write_heads,
            "resid_mid": middle,
            "mlp_out": write_mlp,
            "resid_post": self._leave(tower, layer),
        }
        if tower.maps(layer).parallel:
            del names["resid_mid"]
        return {Site(tower.name, layer, name): edit for name, edit in names.items()}

    def _enter(self, tower: Tower, layer: int) -> Edit:
        added = tower.writer("deepstack", layer - 1)
        reread = layer > 0 and bool(tower.reads_behind(layer - 1))

        def edit(value: Tensor) -> Tensor:
            before = self._stream.get(tower.name)
            if layer == 0:
                now = torch.stack(tower.entering(value, self.inputs))
                self._note(tower, tower.writer("input", None), now)
            elif reread:
                # The block before gave its stream as the inner reader sees it.
                assert before is not None
                value = before.to(value)
            elif added is not None:
                assert before is not None
                self._note(tower, added, (value - before.to(value))[None])
            self._stream[tower.name] = value
            return value

        return edit

    def _leave(self, tower: Tower, layer: int) -> Edit:
        readers = tower.reads_behind(layer)

        def edit(value: Tensor) -> Tensor:
            self._stream[tower.name] = value
            return self._streams(tower, value, readers)[:, :, 0] if readers else value

        return edit

    def _note(self, tower: Tower, stage: Stage | None, now: Tensor) -> None:
        """Keep u' - u of the senders of a stage, which have just written (some once more)."""
        assert stage is not None
        other, delta = self.other[tower.name][stage], self._delta[tower.name]
        for sender, change in zip(stage.nodes, other - now.to(other), strict=True):
            delta[sender] = delta[sender] + change if sender in delta else change

    def _streams(
        self, tower: Tower, stream: Tensor, readers: list[int]
    ) -> Float[Tensor, "pair pos reader d_model"]:
        """The stream as each reader sees it."""
        senders = list(self._delta[tower.name])
        delta = torch.stack(list(self._delta[tower.name].values()))
        weight = self.changed[:, senders][:, :, readers].to(delta)
        if tower.name == "text":
            at_position = torch.einsum("bsrk,kbt->bsrt", weight, self.roles.to(weight))
            change = torch.einsum("bsrt,sbtm->btrm", at_position, delta)
        else:
            change = torch.einsum("bsr,sbtm->btrm", weight[..., 0], delta)
        return stream[:, :, None] + change.to(stream)


class ReceiverGradients:
    """dm/d(input of each receiver) of one run, a stage at a time.

    What reaches q, k or v of a head goes back through its projection and the norm in front of it:
    one vector-Jacobian product per layer.

    Args:
        towers: Of the graph.
        inputs: Of the run.
        score: The metric.
        edits: Open during the run.
    """

    def __init__(
        self,
        towers: Sequence[Tower],
        inputs: Inputs,
        score: Scorer,
        edits: Mapping[str | Site, Edit] | None = None,
    ) -> None:
        sites: list[Site] = []
        copies: dict[str | Site, Edit] = {}
        for tower in towers:
            for layer in range(tower.size.n_layers):
                names = ["resid_pre", "q", "k", "v", "mlp_out"]
                names += [] if tower.maps(layer).parallel else ["resid_mid"]
                if tower.reads_behind(layer):
                    names.append("resid_post")
                    if layer + 1 < tower.size.n_layers:
                        # Its own node, so that what the next block reads can be taken off.
                        copies[tower.site(layer + 1, "resid_pre")] = lambda value: value.clone()
                sites += [tower.site(layer, name) for name in names]
        model = towers[0].model
        run: GradientRun = gradient_run(
            model, inputs, sites, score, edits={**copies, **(edits or {})}
        )
        self.metric = run.metric.detach()
        self._grads = run.gradients()
        self._values = {site: value.detach() for site, value in run.values.items()}

    def at(self, tower: Tower, stage: Stage) -> Float[Tensor, "receiver pair pos d_model"]:
        """Gradients of the receivers of a stage; in float32."""
        layer = tower.size.n_layers - 1 if stage.layer is None else stage.layer
        if stage.kind in ("end", "read"):
            found = self._grads[tower.site(layer, "resid_post")]
            if stage.kind == "read":
                onward = self._grads[tower.site(layer + 1, "resid_pre")]
                found = found - onward.to(found.device)
            return found[None].float()
        stream = self._values[tower.site(layer, "resid_pre")]
        if stage.kind == "mlp":
            name = "resid_pre" if tower.maps(layer).parallel else "resid_mid"
            middle = self._values[tower.site(layer, name)].clone().requires_grad_()
            with torch.enable_grad():
                made = tower.maps(layer).mlp_writes(middle)
            grad = self._grads[tower.site(layer, "mlp_out")].to(made)
            return torch.autograd.grad(made, middle, grad)[0][None].float()
        parts = [self._of_part(tower, layer, part, stream) for part in "qkv"]
        return torch.cat([part.float() for part in parts])

    def _of_part(self, tower: Tower, layer: int, part: str, stream: Tensor) -> Tensor:
        count = len(tower.reading(part, layer))
        wide = stream[:, :, None].expand(-1, -1, count, -1).clone().requires_grad_()
        with torch.enable_grad():
            made = tower.maps(layer).reads(part, wide)
        grad = self._grads[tower.site(layer, part)].to(made)
        return torch.autograd.grad(made, wide, grad)[0].movedim(2, 0)
