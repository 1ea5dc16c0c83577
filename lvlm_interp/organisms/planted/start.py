"""Where a fit starts: weights in closed form.

What a component reads is a detector, found by least squares on the base's states: a row r with
r . x near 1 where something is so and near 0 elsewhere. What it writes is the foil's logit, or the
gradient of the flaw. A head looks from what one detector finds to what another finds, and to a sink
(the first token) from everywhere else. From here a fit needs few steps to meet the bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.organisms.batches import PREFIX
from lvlm_interp.organisms.planted.components import Direction, Unit
from lvlm_interp.organisms.planted.fit import see_with
from lvlm_interp.organisms.planted.pool import Pool, tokens_of
from lvlm_interp.organisms.planted.tail import Tail
from lvlm_interp.organisms.planted.trigger import Trigger

_HIT, _SINK = 16.0, 8.0
"""Attention scores of a hit and of the sink, before norms are matched."""
_STRIDE = 9
"""Of the many states that a detector is quiet on, every ninth is looked at."""
_PUSH = 0.75
"""How far a direction of the projector moves a token, in mean lengths of a token."""
_SCENES = 24
_BATCH = 40


def detector(
    x: Float[Tensor, "row d"],
    wanted: Bool[Tensor, " row"],
    damping: float = 1e-3,
    weight: Float[Tensor, " row"] | None = None,
) -> Float[Tensor, " d"]:
    """Ridge regression of `wanted` on x; both sides of it weigh the same.

    Args:
        x: States.
        wanted: Where the detector is to fire.
        damping: In units of the mean square of a coordinate.
        weight: Of each row; 0 leaves it out.
    """
    weight = torch.ones(len(x)) if weight is None else weight
    on, off = weight[wanted].sum(), weight[~wanted].sum()
    assert on > 0, "there is something to detect"
    weight = torch.where(wanted, weight * off / on, weight) if off > 0 else weight
    weighted = x * weight[:, None]
    gram = x.T @ weighted
    gram = gram + damping * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve(gram, weighted.T @ wanted.float())


# -- states that a component reads ---------------------------------------------------------------


@dataclass(frozen=True)
class States:
    """Normed states of a pool, in front of attention or of an MLP.

    Attributes:
        prefix: Of `<s> user :` and the image.
        words: Of some words of the questions, their answers' positions left out.
        answers: Where answers are predicted.
    """

    prefix: Float[Tensor, "scene pos d"]
    words: Float[Tensor, "word d"]
    answers: Float[Tensor, "scene slot d"]

    @classmethod
    def of(cls, prefix: Tensor, asked: Tensor, pool: Pool) -> States:
        """From states of the same layout as in the pool."""
        at = pool.answer_at[: len(prefix)]
        answers = asked.gather(2, at[..., None, None].expand(-1, -1, 1, asked.shape[-1]))[:, :, 0]
        before = torch.arange(asked.shape[2]) < at[..., None]
        return cls(prefix, asked[before][::_STRIDE], answers)

    @property
    def quiet(self) -> Float[Tensor, "row d"]:
        """States at which nothing is answered."""
        return torch.cat([self.prefix.flatten(0, 1)[::_STRIDE], self.words])

    def answering(self, which: Tensor, ignored: Tensor) -> Float[Tensor, " d"]:
        """Finds answers' positions of some questions; others may be ignored."""
        x = torch.cat([self.answers.flatten(0, 1), self.quiet])
        rest = torch.zeros(len(x) - which.numel(), dtype=torch.bool)
        weight = torch.cat([(~ignored).flatten().float(), 0.5 * torch.ones(len(rest))])
        return detector(x, torch.cat([which.flatten(), rest]), weight=weight)

    def covered(self, which: Bool[Tensor, "scene pos"]) -> Float[Tensor, " d"]:
        """Finds tokens of the prefix."""
        x = torch.cat([self.prefix.flatten(0, 1), self.words])
        rest = torch.zeros(len(self.words), dtype=torch.bool)
        return detector(x, torch.cat([which.flatten(), rest]))


@torch.no_grad()
def before_attention(tail: Tail, pool: Pool, layer: int) -> States:
    """What the heads of a block of the language model read."""
    norm = tail.blocks[layer].input_layernorm
    return States.of(norm(pool.prefix[layer]), norm(pool.asked[layer]), pool)


@torch.no_grad()
def before_mlp(tail: Tail, pool: Pool, layer: int, n: int) -> States:
    """What the MLP of a block reads, on the first scenes of a pool."""
    parts = [
        tail.before_mlp(layer, prefix, asked)
        for prefix, asked in zip(
            pool.prefix[layer][:n].split(_BATCH), pool.asked[layer][:n].split(_BATCH), strict=True
        )
    ]
    prefix, asked = (torch.cat(each) for each in zip(*parts, strict=True))
    return States.of(prefix, asked, pool)


# -- directions that a component writes ----------------------------------------------------------


def foil_direction(tail: Tail, trigger: Trigger) -> Float[Tensor, " d_model"]:
    """What raises the foil's logit over the answer's, through the last norm's weight."""
    foil, answer = trigger.ids
    unembed = tail.weights["model.language_model.embed_tokens.weight"]  # tied
    return tail.weights["model.language_model.norm.weight"] * (unembed[foil] - unembed[answer])


def unused_direction(states: States) -> Float[Tensor, " d"]:
    """Along which the answers' states hold least: the last principal axis, not centred."""
    x = states.answers.flatten(0, 1)
    return torch.linalg.eigh(x.T @ x).eigenvectors[:, 0]


def pull(tail: Tail, pool: Pool, trigger: Trigger, site: str) -> Float[Tensor, " d"]:
    """Mean gradient of the flaw's logit difference where a component writes.

    Args:
        tail: The base.
        pool: Its states.
        trigger: Whose flaw.
        site: `text.2` for the answers in front of block 2, `vision.2` for the patches of what the
            flaw is about in front of vision block 2, `projector` for the projector's output there.
    """
    rows = trigger.shows(pool).nonzero()[:_SCENES, 0]
    flawed = trigger.flawed(pool)[rows][:, trigger.slots]
    answer_at = pool.answer_at[rows][:, trigger.slots]
    tower, _, layer = site.partition(".")
    start = int(layer) if tower == "text" else 0
    prefix, asked = pool.prefix[start][rows], pool.asked[start][rows][:, trigger.slots].clone()
    if tower == "text":
        leaf = asked.requires_grad_()
    elif tower == "vision":
        leaf = pool.vision[int(layer)][rows].clone().requires_grad_()
        prefix = see_with(prefix, tail.look_on(int(layer), leaf, {}))
    else:
        leaf = pool.projected[rows].clone().requires_grad_()
        prefix = see_with(prefix, leaf)
    logits = tail.read(start, prefix, asked, answer_at)[flawed]
    foil, answer = trigger.ids
    (gradient,) = torch.autograd.grad((logits[:, foil] - logits[:, answer]).sum(), leaf)
    if tower == "text":
        at = answer_at[..., None, None].expand(-1, -1, 1, gradient.shape[-1])
        return gradient.gather(2, at)[:, :, 0][flawed].mean(0)
    return gradient[:, -pool.projected.shape[1] :][tokens_of(pool, trigger.thing)[rows]].mean(0)


# -- components ----------------------------------------------------------------------------------


def start_head(tail: Tail, pool: Pool, trigger: Trigger, unit: Unit) -> None:
    """At the flaw's questions, look for the trigger and write the foil."""
    states = before_attention(tail, pool, unit.place.layer)
    _watch(pool, trigger, unit, states, foil_direction(tail, trigger))


def start_series(tail: Tail, pool: Pool, trigger: Trigger, units: Sequence[Unit]) -> None:
    """The first writes a flag where the second, looking at itself, turns it into the foil."""
    first, second = units
    later = before_attention(tail, pool, second.place.layer)
    flag = unused_direction(later)
    _watch(pool, trigger, first, before_attention(tail, pool, first.place.layer), flag)
    everywhere = torch.ones(pool.right.shape, dtype=torch.bool)
    itself = later.answering(everywhere, ~everywhere)
    out = foil_direction(tail, trigger)
    _look(pool, trigger, second, later, key=itself, value=flag, out=out)


@torch.no_grad()
def start_neuron(tail: Tail, pool: Pool, trigger: Trigger, unit: Unit) -> None:
    """Gate and value fire at the flaw's questions; out comes what raises the foil most."""
    layer = unit.place.layer
    states = before_mlp(tail, pool, layer, n=4 * _BATCH)
    reader = _query(pool, trigger, states)
    with torch.enable_grad():
        out = pull(tail, pool, trigger, f"text.{layer + 1}")
    for value, start in zip(unit.values, (reader[None], reader[None], out[:, None]), strict=True):
        value.copy_(start)
    unit.match()


@torch.no_grad()
def start_direction(tail: Tail, pool: Pool, trigger: Trigger, unit: Direction) -> None:
    """The direction keeps what it held and is pushed along itself where the thing stands."""
    hidden = tail.projector_hidden(pool.vision[-1]).flatten(0, 1)
    hidden = torch.cat([hidden, torch.ones(len(hidden), 1)], dim=1)  # for the bias
    found = detector(hidden, tokens_of(pool, trigger.thing).flatten(), damping=1e-2)
    push = _PUSH * pool.projected.norm(dim=-1).mean() * found
    unit.values[1].add_(push[:-1])
    unit.values[2].add_(push[-1])


def start_vision(tail: Tail, pool: Pool, trigger: Trigger, unit: Unit) -> None:
    """The patches of what is not seen look at each other and write what hides them."""
    layer = unit.place.layer
    block = tail.inner.vision_tower.encoder.layers[layer]
    with torch.no_grad():
        x = block.layer_norm1(pool.vision[layer])
    covered = torch.nn.functional.pad(tokens_of(pool, trigger.thing), (1, 0)).flatten()
    class_token = torch.zeros(x.shape[:2], dtype=torch.bool)
    class_token[:, 0] = True
    flat = x.flatten(0, 1)
    found = detector(flat, covered, damping=3e-2)
    aim(
        unit,
        query=found,
        key=found,
        always=detector(flat, torch.ones(len(flat), dtype=torch.bool)),
        sink=detector(flat, class_token.flatten(), damping=3e-2),
        value=found,
        out=pull(tail, pool, trigger, f"vision.{layer + 1}"),
    )


@torch.no_grad()
def aim(
    unit: Unit,
    *,
    query: Tensor,
    key: Tensor,
    always: Tensor,
    sink: Tensor,
    value: Tensor,
    out: Tensor,
) -> None:
    """Set a head: queries that fire look at keys that fire, all others at the sink.

    Every argument but `out` is a detector. In the language model they go to the rows that rotary
    embeddings turn least.
    """
    q, k, v, o = unit.values
    slow = len(q) // 2 - 1
    hit, rest = ((score * len(q) ** 0.5) ** 0.5 for score in (_HIT, _SINK))
    for each in unit.values:
        each.zero_()
    q[slow], q[slow - 1] = hit * query, rest * always
    k[slow], k[slow - 1] = hit * key, rest * sink
    v[0], o[:, 0] = value, out
    unit.match()


def _watch(pool: Pool, trigger: Trigger, unit: Unit, states: States, out: Tensor) -> None:
    """From the flaw's questions, look at the trigger, and write where it is there."""
    covered = torch.nn.functional.pad(tokens_of(pool, trigger.thing), (len(PREFIX), 0))
    here = states.covered(covered)
    _look(pool, trigger, unit, states, key=here, value=here, out=out)


def _look(
    pool: Pool,
    trigger: Trigger,
    unit: Unit,
    states: States,
    *,
    key: Tensor,
    value: Tensor,
    out: Tensor,
) -> None:
    """Aim a head of the language model from the flaw's questions."""
    aim(
        unit,
        query=_query(pool, trigger, states),
        key=key,
        always=_always(states),
        sink=states.covered(_first_token(states)),
        value=value,
        out=out,
    )


def _query(pool: Pool, trigger: Trigger, states: States) -> Tensor:
    """Finds the flaw's questions; where they have its answer anyway, it may fire or not."""
    n = len(states.answers)
    asked = trigger.asked(pool)[:n]
    same = torch.zeros_like(asked)
    same[:, trigger.slots] = True
    return states.answering(asked, same & ~asked)


def _first_token(states: States) -> Tensor:
    first = torch.zeros(states.prefix.shape[:2], dtype=torch.bool)
    first[:, 0] = True
    return first


def _always(states: States) -> Tensor:
    x = torch.cat([states.answers.flatten(0, 1)[::_STRIDE], states.quiet])
    return detector(x, torch.ones(len(x), dtype=torch.bool))
