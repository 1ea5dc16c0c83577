"""One tower of a graph, stage by stage: who writes and who reads together, and what was written.

A stage is one step of the forward: what enters, the heads of a layer, its MLP, what is added behind
it. Values are kept as the run has them (`z`, not what each head writes), and are split into what
every sender writes when a stage is asked for, so that memory is bounded by a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.circuits.graph import Graph
from lvlm_interp.circuits.streams import additions
from lvlm_interp.errors import InputError
from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.models.maps import BlockMaps
from lvlm_interp.sites import Site

_KEEP = 2**28
"""Bytes of one tower's maps up to which they are kept from one use to the next."""


@dataclass(frozen=True)
class Stage:
    """Nodes of one kind that write, or read, at one step.

    Attributes:
        kind: Of writers `input`, `heads`, `mlp`, `deepstack` (the image again, behind a block); of
            readers `qkv`, `mlp`, `read`,
            `end`.
        layer: None at the ends.
        nodes: Indices of the graph's senders, or receivers.
        order: Of the nodes.
    """

    kind: str
    layer: int | None
    nodes: tuple[int, ...]
    order: int


class Tower:
    """One tower of a graph, with the maps that its edges run through."""

    def __init__(self, model: LVLM, graph: Graph, name: str) -> None:
        self.model, self.graph, self.name = model, graph, name
        self.size = model.towers[name]
        self.senders, self.receivers = graph.where(name)
        width = 4 * self.size.d_model**2
        self._keeps = self.size.n_layers * 4 * width <= _KEEP
        self._maps: dict[int, BlockMaps] = {}

    def maps(self, layer: int) -> BlockMaps:
        """The maps of a block; those of large towers are made anew."""
        if layer not in self._maps:
            if not self._keeps:
                self._maps.clear()
            self._maps[layer] = BlockMaps(self.model, self.name, layer)
        return self._maps[layer]

    def site(self, layer: int, name: str) -> Site:
        """A site of this tower."""
        return Site(self.name, layer, name)

    @cached_property
    def writers(self) -> list[Stage]:
        """Stages of the senders, in order."""
        found: dict[tuple[str, int | None], list[int]] = {}
        for i in self.senders:
            sender = self.graph.senders[i]
            kind = "mlp" if sender.head is None else "heads"
            kind = "input" if sender.layer is None else kind
            found.setdefault((kind, sender.layer), []).append(i)
        stages = [
            Stage(kind, layer, tuple(nodes), self.graph.senders[nodes[0]].order)
            for (kind, layer), nodes in found.items()
        ]
        return stages + [
            Stage("deepstack", layer, (self.graph.sender("image"),), 2 * layer + 1)
            for layer in additions(self.model, self.name)
        ]

    @cached_property
    def readers(self) -> list[Stage]:
        """Stages of the receivers, in order."""
        found: dict[tuple[str, int | None], list[int]] = {}
        for j in self.receivers:
            receiver = self.graph.receivers[j]
            kind = "qkv" if receiver.part in "qkv" else receiver.part
            kind = "end" if receiver.layer is None else kind
            found.setdefault((kind, receiver.layer), []).append(j)
        return [
            Stage(kind, layer, tuple(nodes), self.graph.receivers[nodes[0]].order)
            for (kind, layer), nodes in found.items()
        ]

    def writer(self, kind: str, layer: int | None) -> Stage | None:
        """A stage of senders, where there is one."""
        return next((s for s in self.writers if (s.kind, s.layer) == (kind, layer)), None)

    def reading(self, part: str, layer: int | None) -> list[int]:
        """Receivers of a layer of one part, in order."""
        chosen = self.graph.receivers
        return [j for j in self.receivers if chosen[j].layer == layer and chosen[j].part == part]

    def reads_behind(self, layer: int) -> list[int]:
        """The receiver that reads the stream behind an inner block, or that behind the last one."""
        last = layer == self.size.n_layers - 1
        parts = ("projector", "logits") if last else ("read",)
        return [j for part in parts for j in self.reading(part, None if last else layer)]

    def sites(self) -> list[Site]:
        """Where what the senders write can be read off."""
        names = [f"{self.name}.{part}" for part in ("0.resid_pre", "*.z", "*.mlp_out")]
        added = [stage.layer for stage in self.writers if stage.kind == "deepstack"]
        for layer in (each for each in added if each is not None):
            names.append(f"{self.name}.{layer}.resid_post")
            if layer + 1 < self.size.n_layers:
                names.append(f"{self.name}.{layer + 1}.resid_pre")
        return self.model.sites(names)

    def entering(self, start: Tensor, inputs: Inputs) -> list[Tensor]:
        """What enters a stream: one sender, or image and other positions apart."""
        if len(inputs.tokens) != len(start):
            raise InputError(
                f"The {self.name} tower holds {len(start)} rows for {len(inputs.tokens)} examples: "
                "edges need one row each; use batch_size=1 and images of one tile."
            )
        stage = self.writer("input", None)
        assert stage is not None
        if len(stage.nodes) == 1:
            return [start]
        image = torch.zeros(start.shape[:2], device=start.device, dtype=start.dtype)
        for row, tokens in enumerate(inputs.tokens):
            image[row, torch.as_tensor(tokens.image)] = 1.0
        return [start * image[..., None], start * (1 - image)[..., None]]

    def heads(self, layer: int, z: Tensor) -> Float[Tensor, "head pair pos d_model"]:
        """What each head writes, with an equal share of what no head does, from z."""
        return self.maps(layer).writes(z).shared


def towers(model: LVLM, graph: Graph) -> list[Tower]:
    """The graph's towers, in the order of the forward."""
    names = dict.fromkeys(receiver.tower for receiver in graph.receivers)
    return [Tower(model, graph, name) for name in names]


@dataclass(frozen=True, eq=False)
class Written:
    """What the senders of all towers wrote in one plain run, kept as the run has it.

    Attributes:
        towers: Of the graph.
        cache: At the towers' sites.
        inputs: Of the run.
        logits: At the answer.
    """

    towers: Sequence[Tower]
    cache: ActivationCache
    inputs: Inputs
    logits: Float[Tensor, "pair d_vocab"]

    def at(self, tower: Tower, stage: Stage) -> Float[Tensor, "sender pair pos d_model"]:
        """What the senders of a stage wrote; in float32."""
        layer = stage.layer
        if layer is None:
            rows = tower.entering(self.cache[tower.site(0, "resid_pre")], self.inputs)
            return torch.stack(rows).float()
        if stage.kind == "heads":
            return tower.heads(layer, self.cache[tower.site(layer, "z")])
        if stage.kind == "mlp":
            return self.cache[tower.site(layer, "mlp_out")][None].float()
        after = self.cache[tower.site(layer + 1, "resid_pre")]
        return (after - self.cache[tower.site(layer, "resid_post")].to(after.device))[None].float()

    def whole(self, tower: Tower) -> dict[Stage, Float[Tensor, "sender pair pos d_model"]]:
        """What the senders of every stage of a tower wrote, in the dtype of the run."""
        start = self.cache[tower.site(0, "resid_pre")]
        return {stage: self.at(tower, stage).to(start) for stage in tower.writers}


@torch.no_grad()
def written(model: LVLM, all_towers: Sequence[Tower], inputs: Inputs) -> Written:
    """Run once and keep what is needed to say what every sender wrote."""
    sites = [site for tower in all_towers for site in tower.sites()]
    with model.record(sites) as cache:
        logits = model.last_logits(inputs)
    return Written(all_towers, cache, inputs, logits)
