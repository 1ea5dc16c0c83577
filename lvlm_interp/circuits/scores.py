"""Scores of edges: exact patching, EAP and EAP-IG; one row per pair and edge.

One direction of effect, as for patching: the clean run is patched with corrupt values (noising), or
the reverse (denoising). Exact: m with that one edge counterfactual, minus m. EAP (Syed et al. 2023,
arXiv 2310.10348): (u' - u) . dm/d(input of v), gradient at the run. EAP-IG (Hanna et al. 2024,
arXiv 2403.17806): that gradient averaged along the straight path between the two runs' inputs.
What moves has a name (pixels; or `embed`, all that enters the language model, where the vision
tower has no gradient and must be left out), and so has the quadrature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.circuits.edges import EdgeRun, ReceiverGradients, role_masks
from lvlm_interp.circuits.graph import Graph
from lvlm_interp.circuits.streams import prove_streams
from lvlm_interp.circuits.tower import Stage, Tower, Written, towers, written
from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import UsageError
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.patching.batches import PairBatch, batches
from lvlm_interp.patching.gradients import Integration
from lvlm_interp.patching.metrics import (
    UNITS,
    Metric,
    Scorer,
    check_metric,
    name_of,
    warn_flat_kl,
)
from lvlm_interp.results import Result, ResultTable, provenance

_KEPT_BYTES = 2**28
"""Of what senders write, kept from one stage of readers to the next."""

Method = Literal["exact", "eap", "eap_ig"]
Direction = Literal["denoise", "noise"]


@dataclass(frozen=True, repr=False)
class EdgeScores(Result):
    """Scores of every edge for every pair.

    The table is made when it is first asked for: a model of 7B has millions of edges for each pair.

    Attributes:
        graph: The graph.
        values: m(patched) - m(run), or its estimate; `pair sender receiver role`.
        method: Of the scores.
        direction: `noise` (clean run patched) or `denoise`.
        n_forwards: Cost in full forwards over one pair; a backward counts as two.
    """

    graph: Graph
    values: Float[Tensor, "pair sender receiver role"]
    method: str = "eap"
    direction: str = "noise"
    n_forwards: float = 0.0

    @property
    def mean(self) -> Float[Tensor, "sender receiver role"]:
        """Mean over the pairs."""
        return self.values.mean(0)

    def importance(self, *, signed: bool = False) -> Float[Tensor, "sender receiver role"]:
        """How much an edge matters: the size of its mean effect.

        Args:
            signed: Count only effects towards the other run (what lowers the answer when noising).
        """
        mean = self.mean
        if not signed:
            return mean.abs()
        return -mean if self.direction == "noise" else mean


def score_edges(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    graph: Graph | None = None,
    *,
    method: Method = "eap",
    metric: str | Metric = "logit_diff",
    direction: Direction = "noise",
    integration: Integration | None = None,
    batch_size: int = 8,
    copies: int = 8,
    progress: bool = True,
) -> EdgeScores:
    """Score every edge.

    Args:
        model: The model.
        pairs: Aligned pairs.
        graph: Nodes and edges; the whole model by default.
        method: `exact` (one run per edge), `eap`, or `eap_ig`.
        metric: As in `activation_patch`.
        direction: `noise` patches the clean run, `denoise` the corrupt run.
        integration: For `eap_ig`; five midpoint steps along the pixels by default, or along merged
            embeddings where the graph has no vision tower.
        batch_size: Pairs at once.
        copies: Edges at once, for `exact`.
        progress: Show a progress bar.

    Raises:
        UsageError: An unknown option, or merged embeddings with a vision tower in the graph.
        ModelError: The model's branches are not added to the stream as they are.
        InputError: As in `activation_patch`.
    """
    check_metric(metric)
    graph = Graph.of(model) if graph is None else graph
    if method not in get_args(Method) or direction not in get_args(Direction):
        raise UsageError(
            f"method={method!r}, direction={direction!r}: expected a method of "
            f"{', '.join(get_args(Method))} and 'noise' or 'denoise'."
        )
    integration = _integration(graph, method, integration)
    if metric == "kl" and direction == "noise" and method == "eap":
        warn_flat_kl("score_edges")
    found, cost = [], 0.0
    with tqdm(total=len(pairs), desc=f"edges, {method}", disable=not progress) as bar:
        for batch in list(batches(model, pairs, batch_size)):
            task = EdgeTask.make(model, graph, batch, metric, direction)
            if method == "exact":
                found.append(_exact(task, copies))
                cost += len(batch) * (2.0 + graph.n_edges)
            else:
                found.append(_estimated(task, integration))
                cost += len(batch) * (2.0 + 3.0 * (integration.steps if integration else 1))
            bar.update(len(batch))
    values = torch.cat(found)
    facts = _facts(model, method, metric, direction, integration)
    table = ResultTable(lambda: _frame(pairs, graph, values, metric, direction), facts)
    return EdgeScores(table, graph, values, method, direction, cost)


@dataclass(frozen=True, eq=False)
class EdgeTask:
    """One batch of pairs with both runs.

    Attributes:
        model, graph, batch: What is scored.
        towers: Of the graph.
        run: Inputs of the run that is patched; `other_inputs` of the counterfactual one.
        now, other: What every sender writes in the two.
        score: The metric.
        m_run, m_other: The metric of the two; shape `pair`.
        roles: Position weights.
    """

    model: LVLM
    graph: Graph
    batch: PairBatch
    towers: list[Tower]
    now: Written
    other: Written
    score: Scorer
    m_run: Tensor
    m_other: Tensor
    roles: Tensor

    @classmethod
    def make(
        cls, model: LVLM, graph: Graph, batch: PairBatch, metric: str | Metric, direction: str
    ) -> EdgeTask:
        """Run both sides once.

        Raises:
            ModelError: A stream is read or added to where the graph has no node.
        """
        sides = (batch.clean, batch.corrupt)
        run, counterfactual = sides if direction == "noise" else sides[::-1]
        all_towers = towers(model, graph)
        prove_streams(model, [tower.name for tower in all_towers], run)
        now, other = (written(model, all_towers, inputs) for inputs in (run, counterfactual))
        clean = now.logits if direction == "noise" else other.logits
        score = Scorer(metric, batch.pairs, batch.answer, batch.foil, clean)
        roles = role_masks(graph, batch, run["input_ids"].shape[1]).to(model.device)
        sizes = score(now.logits), score(other.logits)
        return cls(model, graph, batch, all_towers, now, other, score, *sizes, roles)

    @property
    def run(self) -> Inputs:
        """Inputs of the run that is patched."""
        return self.now.inputs

    def metric(
        self, changed: Float[Tensor, "mask sender receiver role"], copies: int = 1
    ) -> Float[Tensor, "mask pair"]:
        """The metric with each mask's edges counterfactual; several masks in one forward."""
        copies = copies if _tiles(self.run, len(self.batch)) else 1
        other = {tower.name: self.other.whole(tower) for tower in self.towers}
        out = []
        for chunk in changed.split(copies):
            n = len(chunk)
            run = EdgeRun(
                self.model,
                self.towers,
                _tile(self.run, n) if n > 1 else self.run,
                {name: _repeated(stages, n) for name, stages in other.items()},
                chunk.to(self.model.device).repeat_interleave(len(self.batch), dim=0),
                self.roles.repeat(1, n, 1),
            )
            logits = run.logits().unflatten(0, (n, len(self.batch)))
            out.append(self.score(logits))
        return torch.cat(out)


def _repeated(stages: dict[Stage, Tensor], n: int) -> dict[Stage, Tensor]:
    return {stage: value.repeat(1, n, 1, 1) for stage, value in stages.items()}


def _exact(task: EdgeTask, copies: int) -> Tensor:
    """One edge counterfactual at a time."""
    graph = task.graph
    out = torch.zeros(len(task.batch), *graph.valid.shape)
    edges = graph.valid.nonzero()
    for chunk in edges.split(copies):
        masks = torch.zeros(len(chunk), *graph.valid.shape)
        masks[torch.arange(len(chunk)), chunk[:, 0], chunk[:, 1], chunk[:, 2]] = 1.0
        effect = task.metric(masks, copies) - task.m_run
        out[:, chunk[:, 0], chunk[:, 1], chunk[:, 2]] = effect.T.cpu()
    return out


def _estimated(task: EdgeTask, integration: Integration | None) -> Tensor:
    """(u' - u) . gradient, split by role; averaged over the points of a path.

    Stage by stage: never more at once than what the heads of a layer write, and the gradients of
    those that read there.
    """
    out = torch.zeros(len(task.batch), *task.graph.valid.shape)
    gradients = _gradients(task, integration)
    n_points = 1 if integration is None else integration.steps
    for point in gradients:
        for tower in task.towers:
            changes = _Changes(task, tower)
            for reading in tower.readers:
                grad = point.at(tower, reading)
                for writing in (stage for stage in tower.writers if stage.order < reading.order):
                    scores = _products(task, tower, changes[writing], grad) / n_points
                    rows, columns = torch.tensor(writing.nodes), torch.tensor(reading.nodes)
                    out[:, rows[:, None], columns[None], : scores.shape[-1]] += scores
    return out * task.graph.valid


def _products(
    task: EdgeTask,
    tower: Tower,
    change: Float[Tensor, "sender pair pos d_model"],
    grad: Float[Tensor, "receiver pair pos d_model"],
) -> Float[Tensor, "pair sender receiver role"]:
    grad = grad.to(change.device)
    roles = task.roles.to(change) if tower.name == "text" else torch.ones_like(change[:1, ..., 0])
    per_role = [
        torch.einsum("sbtm,rbtm->bsr", change, grad if len(roles) == 1 else grad * role[..., None])
        for role in roles
    ]
    return torch.stack(per_role, dim=-1).cpu()


class _Changes:
    """u' - u of the senders of each stage; kept while they are small, else made anew."""

    def __init__(self, task: EdgeTask, tower: Tower) -> None:
        self._task, self._tower = task, tower
        self._kept: dict[Stage, Tensor] = {}
        self._bytes = 0

    def __getitem__(self, stage: Stage) -> Float[Tensor, "sender pair pos d_model"]:
        if stage in self._kept:
            return self._kept[stage]
        found = self._task.other.at(self._tower, stage) - self._task.now.at(self._tower, stage)
        if self._bytes + found.nbytes <= _KEPT_BYTES:
            self._kept[stage] = found
            self._bytes += found.nbytes
        return found


def _gradients(task: EdgeTask, integration: Integration | None) -> Iterator[ReceiverGradients]:
    """Gradients of every receiver's input, at the run or along the path to the other."""
    if integration is None:
        yield ReceiverGradients(task.towers, task.run, task.score)
        return
    for inputs, edits in integration.runs(task.model, task.run, task.other.inputs):
        yield ReceiverGradients(task.towers, inputs, task.score, edits)


def _integration(graph: Graph, method: str, integration: Integration | None) -> Integration | None:
    if method != "eap_ig":
        if integration is not None:
            raise UsageError(f"integration is for method='eap_ig', not for {method!r}.")
        return None
    has_vision = any(receiver.tower == "vision" for receiver in graph.receivers)
    if integration is None:
        return Integration(path="pixels" if has_vision else "embed")
    if has_vision and integration.path == "embed":
        raise UsageError(
            "Along merged embeddings the vision tower gets no gradient: use path='pixels', or a "
            "graph without it (Graph.of(model, vision=False))."
        )
    return integration


def _tiles(inputs: Inputs, n: int) -> bool:
    tensors = [value for value in inputs.tensors.values() if isinstance(value, Tensor)]
    return all(len(value) == n for value in tensors)


def _tile(inputs: Inputs, n: int) -> Inputs:
    tensors = {
        name: value.repeat(n, *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else value
        for name, value in inputs.tensors.items()
    }
    return replace(inputs, tensors=tensors, tokens=inputs.tokens * n, examples=inputs.examples * n)


def _frame(
    pairs: Sequence[ContrastPair], graph: Graph, values: Tensor, metric: Any, direction: str
) -> pd.DataFrame:
    edges = graph.valid.nonzero().numpy()
    scores = values[:, graph.valid].numpy().astype(float)  # pair edge
    n_pairs, n_edges = scores.shape
    senders = [graph.senders[i] for i in edges[:, 0]]
    readers = [graph.receivers[j].name for j in edges[:, 1]]

    def each_edge(items: list[Any]) -> np.ndarray:
        return np.tile(np.array(items, dtype=object), n_pairs)

    def each_pair(items: list[Any]) -> np.ndarray:
        return np.repeat(np.array(items, dtype=object), n_edges)

    return pd.DataFrame(
        {
            "example": each_pair(
                [p.clean.id if direction == "noise" else p.corrupt.id for p in pairs]
            ),
            "pair": each_pair([p.id for p in pairs]),
            "tower": each_edge([s.tower for s in senders]),
            "layer": pd.array(each_edge([s.layer for s in senders]), dtype="Int64"),
            "site": each_edge([f"{s.name}->{r}" for s, r in zip(senders, readers, strict=True)]),
            "head": pd.array(each_edge([s.head for s in senders]), dtype="Int64"),
            "position": each_edge([graph.roles[k] for k in edges[:, 2]]),
            "metric": "edge effect",
            "value": scores.ravel(),
            "unit": UNITS.get(name_of(metric), "metric"),
            "sender": each_edge([s.name for s in senders]),
            "receiver": each_edge(readers),
            "direction": direction,
            "group": each_pair([p.group if p.group is not None else p.id for p in pairs]),
        }
    )


def _facts(
    model: LVLM, method: str, metric: Any, direction: str, integration: Integration | None
) -> dict[str, Any]:
    return provenance(
        model=model.name,
        method=method,
        of=name_of(metric),
        direction=direction,
        integration=None if integration is None else vars(integration),
    )
