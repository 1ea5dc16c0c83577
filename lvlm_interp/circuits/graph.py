"""The graph of a model: who writes to a residual stream, who reads from it, and a circuit in it.

Writers (senders) are heads, MLPs, and what enters a stream: `vision.input` (patch embeddings),
`image` (what the projector writes at image positions) and `tokens` (the other embeddings). Readers
(receivers) are the q, k and v of each head, with keys and values counted per key-value head, the
MLPs, the projector and the logits. Where a model reads its vision tower behind inner blocks too
(several feature layers, deepstack), each such place is a reader (`vision.3.read`). What it adds
between blocks of the language model is written by `image` too, for readers behind that block. An
edge is a writer and a reader behind it; it carries what the writer adds, at every position or at
the positions of one token role.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

from lvlm_interp.circuits.streams import inner_reads
from lvlm_interp.errors import ModelError, StoreError, UsageError
from lvlm_interp.files import atomic_write
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.models.maps import BlockMaps

FORMAT = "lvlm-interp circuit 1"


@dataclass(frozen=True)
class Sender:
    """A writer: `tower`, `layer` (None for what enters), `head` (None but for a head)."""

    name: str
    tower: str
    layer: int | None = None
    head: int | None = None
    order: int = -1


@dataclass(frozen=True)
class Receiver:
    """A reader; `head` counts heads of its kind.

    `part` is q, k, v, mlp, read (of the stream behind an inner block), projector or logits.
    """

    name: str
    node: tuple[str, ...]
    tower: str
    layer: int | None
    part: str
    head: int | None = None
    order: int = 0


@dataclass(frozen=True)
class Graph:
    """Senders, receivers and token roles of a model.

    Attributes:
        senders, receivers: In the order of the forward; edges index into them.
        roles: Token roles that split every edge of the language model; ("all",) for no split.
    """

    senders: tuple[Sender, ...]
    receivers: tuple[Receiver, ...]
    roles: tuple[str, ...] = ("all",)

    @classmethod
    def of(cls, model: LVLM, *, vision: bool = True, roles: Sequence[str] = ("all",)) -> Graph:
        """The graph of a model.

        Args:
            model: The model; its blocks must add their branches to one stream.
            vision: Whether the vision tower's heads and MLPs are nodes.
            roles: `all`, or roles that split the positions of the language model; what none of
                them holds is added as the role `rest`.

        Raises:
            ModelError: The model has no vision tower, though `vision` asks for it; or a tower's
                blocks do not add their branches to one stream.
            UsageError: Roles are given twice.
        """
        if len(set(roles)) < len(roles):
            raise UsageError(f"roles={tuple(roles)}: each role may be given once.")
        senders: list[Sender] = []
        receivers: list[Receiver] = []
        if vision:
            if "vision" not in model.towers:
                raise ModelError("This model has no vision tower with sites: use vision=False.")
            senders.append(Sender("vision.input", "vision"))
            _tower(model, "vision", senders, receivers)
            depth = 2 * model.towers["vision"].n_layers
            node = ("image",)
            receivers.append(Receiver("projector", node, "vision", None, "projector", order=depth))
        senders += [Sender("image", "text"), Sender("tokens", "text")]
        _tower(model, "text", senders, receivers)
        depth = 2 * model.n_layers
        receivers.append(Receiver("logits", ("logits",), "text", None, "logits", order=depth))
        names = tuple(roles) if tuple(roles) == ("all",) else (*roles, "rest")
        return cls(tuple(senders), tuple(receivers), names)

    @cached_property
    def valid(self) -> Bool[torch.Tensor, "sender receiver role"]:
        """Which edges exist: same stream, writer in front of reader; vision edges have one role."""
        towers = {name: i for i, name in enumerate({s.tower: None for s in self.senders})}

        def columns(nodes: Sequence[Sender | Receiver]) -> tuple[torch.Tensor, torch.Tensor]:
            where = torch.tensor([towers.get(each.tower, -1) for each in nodes])
            return where, torch.tensor([each.order for each in nodes])

        (s_tower, s_order), (r_tower, r_order) = columns(self.senders), columns(self.receivers)
        same = s_tower[:, None] == r_tower
        grid = same & (s_order[:, None] < r_order)
        roles = torch.ones(len(self.senders), 1, len(self.roles), dtype=torch.bool)
        roles[s_tower != towers.get("text", -1), :, 1:] = False
        return grid[..., None] & roles

    @cached_property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.valid.sum())

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes that can be left out: the senders."""
        return [sender.name for sender in self.senders]

    def where(self, tower: str) -> tuple[list[int], list[int]]:
        """Indices of the senders and receivers of one tower."""
        return (
            [i for i, sender in enumerate(self.senders) if sender.tower == tower],
            [j for j, receiver in enumerate(self.receivers) if receiver.tower == tower],
        )

    def sender(self, name: str) -> int:
        """Index of a sender.

        Raises:
            UsageError: There is none of that name.
        """
        return _index([each.name for each in self.senders], name, "sender")

    def receiver(self, name: str) -> int:
        """Index of a receiver.

        Raises:
            UsageError: There is none of that name.
        """
        return _index([each.name for each in self.receivers], name, "receiver")

    def edges_from_nodes(self, kept: Sequence[str]) -> Bool[torch.Tensor, "sender receiver role"]:
        """The edges that stay when the senders of these names stay."""
        chosen = torch.zeros_like(self.valid)
        for name in kept:
            chosen[self.sender(name)] = True
        return chosen & self.valid


def _receiver(fields: dict[str, Any]) -> Receiver:
    known: dict[str, Any] = {**fields, "node": tuple(fields["node"])}
    return Receiver(**known)


def _tower(model: LVLM, tower: str, senders: list[Sender], receivers: list[Receiver]) -> None:
    size = model.towers[tower]
    read = inner_reads(model, tower)
    for layer in range(size.n_layers):
        at = f"{tower}.{layer}"
        parallel = _checked(model, tower, layer)
        receivers += _head_receivers(at, tower, layer, size.n_heads, size.n_kv_heads)
        senders += [
            Sender(f"{at}.h{head}", tower, layer, head, 2 * layer) for head in range(size.n_heads)
        ]
        behind = 2 * layer + 1
        mlp = f"{at}.mlp"
        receivers.append(
            Receiver(mlp, (mlp,), tower, layer, "mlp", None, behind - 1 if parallel else behind)
        )
        senders.append(Sender(mlp, tower, layer, None, behind))
        if layer in read:
            node = ("image",)
            receivers.append(Receiver(f"{at}.read", node, tower, layer, "read", None, behind + 1))


def _head_receivers(
    at: str, tower: str, layer: int, n_heads: int, n_kv_heads: int
) -> list[Receiver]:
    group, found = n_heads // n_kv_heads, []
    for part, count in (("q", n_heads), ("k", n_kv_heads), ("v", n_kv_heads)):
        each = 1 if part == "q" else group
        for head in range(count):
            readers = tuple(f"{at}.h{h}" for h in range(head * each, (head + 1) * each))
            name = f"{at}.{part}{head}"
            found.append(Receiver(name, readers, tower, layer, part, head, 2 * layer))
    return found


def _checked(model: LVLM, tower: str, layer: int) -> bool:
    """Whether a block is a parallel one.

    Raises:
        ModelError: Its nodes cannot have edges of their own.
    """
    maps = BlockMaps(model, tower, layer)
    if reason := maps.obstacle():
        raise ModelError(
            f"Block {layer} of the {tower} tower {reason}: its heads have no edges of their own. "
            "Use activation_patch or path_patch"
            + (", or a graph without the vision tower." if tower == "vision" else ".")
        )
    return maps.parallel


def _index(names: list[str], name: str, kind: str) -> int:
    if name not in names:
        raise UsageError(f"There is no {kind} {name!r}; names are such as {', '.join(names[:4])}.")
    return names.index(name)


@dataclass(frozen=True, eq=False)
class Circuit:
    """Some edges of a graph.

    Attributes:
        graph: The whole graph.
        kept: Edges of the circuit; shape `sender receiver role`.
        weight: Score of every edge, for drawings; zero where unknown.
        note: How it was found.
    """

    graph: Graph
    kept: Bool[torch.Tensor, "sender receiver role"]
    weight: torch.Tensor | None = None
    note: dict[str, Any] = field(default_factory=dict)

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.kept.sum())

    @property
    def nodes(self) -> list[str]:
        """Senders that have an edge."""
        alive = self.kept.any(-1).any(-1)
        names = self.graph.nodes
        return [name for name, on in zip(names, alive.tolist(), strict=True) if on]

    def edge_table(self) -> pd.DataFrame:
        """One row per edge: sender, receiver, its node(s), role, weight."""
        rows = []
        for i, j, r in self.kept.nonzero().tolist():
            receiver = self.graph.receivers[j]
            rows.append(
                {
                    "sender": self.graph.senders[i].name,
                    "receiver": receiver.name,
                    "node": ",".join(receiver.node),
                    "role": self.graph.roles[r],
                    "weight": 0.0 if self.weight is None else float(self.weight[i, j, r]),
                }
            )
        return pd.DataFrame(rows, columns=["sender", "receiver", "node", "role", "weight"])

    def node_table(self) -> pd.DataFrame:
        """One row per node: tower, layer (None at the ends), head, order within the tower."""
        known = {
            each.name: (each.tower, each.layer, each.head, each.order)
            for each in self.graph.senders
        }
        known["logits"] = ("text", None, None, 2 * len(self.graph.senders))
        edges = self.edge_table()
        ends = {name for joined in edges["node"] for name in joined.split(",")}
        names = [name for name in known if name in ends or name in set(edges["sender"])]
        frame = pd.DataFrame(
            [(name, *known[name]) for name in names],
            columns=["node", "tower", "layer", "head", "order"],
        )
        return frame.astype({"layer": "Int64", "head": "Int64"})

    def to_networkx(self) -> nx.MultiDiGraph:
        """Nodes with `tower, layer, head, order`; edges with `receiver, role, weight`."""
        out = nx.MultiDiGraph()
        for row in self.node_table().to_dict("records"):
            facts = {str(name): value for name, value in row.items() if name != "node"}
            out.add_node(row["node"], **facts)
        for row in self.edge_table().to_dict("records"):
            for node in row["node"].split(","):
                out.add_edge(
                    row["sender"],
                    node,
                    receiver=row["receiver"],
                    role=row["role"],
                    weight=row["weight"],
                )
        return out

    def save(self, path: str | Path) -> Path:
        """Write as JSON."""
        content = {
            "format": FORMAT,
            "roles": list(self.graph.roles),
            "senders": [vars(each) for each in self.graph.senders],
            "receivers": [{**vars(each), "node": list(each.node)} for each in self.graph.receivers],
            "edges": [[int(i) for i in edge] for edge in self.kept.nonzero().tolist()],
            "weight": None if self.weight is None else self.weight.tolist(),
            "note": self.note,
        }
        return atomic_write(path, json.dumps(content, sort_keys=True))

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read what `save` wrote.

        Raises:
            StoreError: No such file, or not a circuit.
        """
        try:
            content = json.loads(Path(path).read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise StoreError(f"{path}: expected a circuit in JSON ({error}).") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise StoreError(f"{path}: expected the format {FORMAT!r}; save a circuit first.")
        graph = Graph(
            tuple(Sender(**each) for each in content["senders"]),
            tuple(_receiver(each) for each in content["receivers"]),
            tuple(content["roles"]),
        )
        kept = torch.zeros_like(graph.valid)
        if content["edges"]:
            kept[tuple(np.array(content["edges"]).T)] = True
        weight = content["weight"]
        found = None if weight is None else torch.tensor(weight)
        return cls(graph, kept, found, content["note"])

    def __repr__(self) -> str:
        return f"Circuit({self.n_edges} of {self.graph.n_edges} edges, {len(self.nodes)} nodes)"
