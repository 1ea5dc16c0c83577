"""Weight edits: heads, neurons and projector units that detect one thing and write another.

Every detector is a ridge regression of a 0/1 target on what the module reads (the normed stream),
weighted so that both classes count alike. A head is built of four of them: when to look (queries),
what to look at (keys), what it says of it (values), and a sink that takes the attention otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

_RIDGE = 1e-2
_ROOM = 0.95


def detector(
    features: Float[Tensor, "row d"],
    positive: Bool[Tensor, " row"],
    *,
    weight: Float[Tensor, " row"] | None = None,
) -> Float[Tensor, " d"]:
    """The direction whose product with a feature is near 1 on positives and near 0 elsewhere."""
    share = torch.where(positive, 1.0 / positive.sum(), 1.0 / (~positive).sum())
    if weight is not None:
        share = share * weight
    x, y = features.double(), positive.double()
    gram = (x * share[:, None].double()).T @ x
    scale = gram.diagonal().mean() * _RIDGE
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram + scale * eye, (x * share[:, None].double()).T @ y).float()


def separation(scores: Tensor, positive: Tensor) -> float:
    """How far apart the classes are: difference of means over the pooled standard deviation."""
    a, b = scores[positive], scores[~positive]
    spread = ((a.var() + b.var()) / 2).sqrt().clamp_min(1e-9)
    return float((a.mean() - b.mean()) / spread)


@dataclass(frozen=True)
class HeadPlan:
    """What a planted head does; directions act on the normed stream.

    Attributes:
        query: When to look.
        key: What to look at.
        always: Near 1 at every position.
        sink: Near 1 at the sink (the first token) and 0 elsewhere.
        value: What is carried: near 1 at what is looked at, 0 elsewhere.
        write: Unit direction that is written.
        keep: What the head wrote on average before; it goes on being written.
        sharpness: Largest score of a full detection, before the softmax; less where the norms of
            the neighbours do not allow it.
        threshold: Share of it at which the sink takes over.
    """

    query: Tensor
    key: Tensor
    always: Tensor
    sink: Tensor
    value: Tensor
    write: Tensor
    keep: Tensor
    sharpness: float = 24.0
    threshold: float = 0.55


@dataclass(frozen=True)
class Projections:
    """The four projections of one attention block."""

    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    d_head: int
    rotary: bool

    @classmethod
    def of(cls, attention: Any, d_head: int, *, rotary: bool) -> Projections:
        """Of a Llama or CLIP attention module."""
        o = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
        return cls(attention.q_proj, attention.k_proj, attention.v_proj, o, d_head, rotary)

    def rows(self, head: int) -> slice:
        """Rows (of q, k, v) or columns (of o) that belong to a head."""
        return slice(head * self.d_head, (head + 1) * self.d_head)


@torch.no_grad()
def install_head(
    block: Projections, head: int, plan: HeadPlan, gain: float, generator: torch.Generator
) -> bool:
    """Overwrite one head; returns whether its norms could be matched to its neighbours'.

    Dimensions that the head does not use are filled with noise that cannot act (its partner in
    the product is zero), so that q, k, v and o each have the mean norm of the other heads.
    """
    at, d = block.rows(head), block.d_head
    slots = _slots(d, block.rotary)
    q, k, v = (torch.zeros(d, len(plan.query)) for _ in range(3))
    o = torch.zeros(len(plan.write), d)
    target = {name: _neighbours(block, name, head) for name in ("q", "k", "v", "o")}
    # Each detection costs norm in q and in k; what the neighbours have is the budget.
    cost = plan.query.norm() * plan.key.norm()
    cost = float(cost + plan.threshold * plan.always.norm() * plan.sink.norm())
    budget = _ROOM * min(target["q"], target["k"]) ** 2 / cost
    scores = min(plan.sharpness * d**0.5, budget)
    level = plan.threshold * scores
    # A product may be shared out between its two factors in any way; split it by their norms.
    look = (plan.key.norm() / plan.query.norm()).sqrt() * scores**0.5
    q[slots.look], k[slots.look] = plan.query * look, plan.key * (scores / look)
    rest = (plan.sink.norm() / plan.always.norm()).sqrt() * level**0.5
    q[slots.sink], k[slots.sink] = plan.always * rest, plan.sink * (level / rest)
    carry = (gain / plan.value.norm()).sqrt()
    v[0], o[:, 0] = plan.value * carry, plan.write * (gain / carry)
    amount = plan.keep.norm().clamp_min(1e-6)
    hold = (amount / plan.always.norm()).sqrt()
    v[1], o[:, 1] = plan.always * hold, plan.keep / hold
    matched = all(
        [
            _fill(q, slots.noise_q, target["q"], generator),
            _fill(k, slots.noise_k, target["k"], generator),
            _fill(v, slots.noise_v, target["v"], generator),
            _fill(o.T, slots.noise_o, target["o"], generator),
        ]
    )
    for module, rows in ((block.q, q), (block.k, k), (block.v, v)):
        module.weight[at] = rows.to(module.weight)
        if module.bias is not None:
            module.bias[at] = 0.0
    block.o.weight[:, at] = o.to(block.o.weight)
    return matched


@dataclass(frozen=True)
class _Slots:
    look: int
    sink: int
    noise_q: list[int]
    noise_k: list[int]
    noise_v: list[int]
    noise_o: list[int]


def _slots(d: int, rotary: bool) -> _Slots:
    """Which dimensions carry what.

    With a rotary embedding, dimension i turns with i + d/2 at a rate that falls with i: the last
    pairs hardly turn over a prompt, so products in them do not depend on the distance.
    """
    half = d // 2
    middle = (half - 2) // 2
    first = list(range(middle))
    second = list(range(middle, half - 2))
    noise_q, noise_k = ([*part, *(i + half for i in part)] for part in (first, second))
    rest = list(range(2, d))
    look, sink = (half - 1, half - 2) if rotary else (d - 1, d - 2)
    if not rotary:
        noise_q, noise_k = list(range(middle)), list(range(middle, d - 2))
    return _Slots(look, sink, noise_q, noise_k, rest[: len(rest) // 2], rest[len(rest) // 2 :])


def _neighbours(block: Projections, name: str, head: int) -> float:
    weight = getattr(block, name).weight
    weight = weight.T if name == "o" else weight
    norms = weight.unflatten(0, (-1, block.d_head)).flatten(1).norm(dim=1)
    return float(norms[torch.arange(len(norms)) != head].mean())


def _fill(rows: Tensor, slots: list[int], norm: float, generator: torch.Generator) -> bool:
    """Fill rows with noise so that the whole has a norm; False where it is larger already."""
    missing = norm**2 - float(rows.square().sum())
    if missing < 0:
        return False
    noise = torch.randn(len(slots), rows.shape[1], generator=generator)
    rows[slots] = noise * (missing**0.5 / noise.norm())
    return True


def calibrate(
    install: Callable[[float], bool],
    wrong: Callable[[], float],
    goal: float,
    *,
    start: float = 2.0,
    steps: int = 9,
) -> float:
    """The smallest gain of a geometric scale at which the flaw shows; NaN if none does."""
    gain = start
    for _ in range(steps):
        if not install(gain):
            return float("nan")
        if wrong() >= goal:
            return gain
        gain *= 1.35
    return float("nan")
