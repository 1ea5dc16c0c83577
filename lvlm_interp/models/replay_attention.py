"""The registered attention function of replay: it notes what a run sees, and serves branches.

While a run is recorded it is SDPA that keeps keys, values, mask and z of every block. In a branch
it attends to the recorded keys and values of the prefix and to the branch's own positions; the
branches of a batch lie one behind the other along the position axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask

from lvlm_interp.models.attention import unknown_to_us
from lvlm_interp.models.runs import Runs, eager

NAME = "lvlm_interp_replay"


@dataclass(frozen=True, eq=False)
class Seen:
    """What the attention of one block saw and gave.

    Attributes:
        key, value: After the rotary embedding; shape `batch kv_head pos d_head`.
        mask: Added to the scores; shape `batch 1 pos pos`, None for none.
        causal: Whether the mask hides exactly what lies ahead.
        z: What heads gave; shape `batch pos head d_head`.
    """

    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    z: Tensor


@dataclass(eq=False)
class Notes:
    """Calls of each attention module during a recorded run, by the module's id.

    Attributes:
        seen: The calls.
        inputs: Names of the model's own inputs.
        unknown: Arguments of the attention function that are not understood here.
    """

    seen: dict[int, list[Seen]]
    inputs: frozenset[str] = frozenset()
    unknown: set[str] = field(default_factory=set)
    _causal: dict[int, tuple[Tensor, bool]] = field(default_factory=dict)

    def is_causal(self, mask: Tensor | None) -> bool:
        """Whether a mask hides exactly what lies ahead; blocks share theirs, so it is kept."""
        if mask is None:
            return False
        if id(mask) not in self._causal:
            hidden = mask < torch.finfo(mask.dtype).min / 2
            n, m = mask.shape[-2:]
            ahead = torch.ones(n, m, dtype=torch.bool, device=mask.device).triu(1)
            plain = n == m and bool((hidden == ahead).all())
            self._causal[id(mask)] = (mask, plain and not bool((mask * ~hidden).any()))
        return self._causal[id(mask)][1]


@dataclass(frozen=True, eq=False)
class Branching:
    """What the attention function needs to run branches of one block.

    Attributes:
        seen: Of the recorded run.
        start: First position of the branches.
        n_branches: How many there are.
        answer: Place, behind `start`, of the one position of each row that is asked for; shape
            `batch`. None asks for all; z of the others is then zero.
    """

    seen: Seen
    start: int
    n_branches: int
    answer: Tensor | None = None


_recording: list[Notes] = []
_branching: dict[int, Branching] = {}


@contextmanager
def noting(modules: Sequence[nn.Module], inputs: frozenset[str]) -> Iterator[Notes]:
    """Keep what these attention modules see while the context is open."""
    notes = Notes({id(module): [] for module in modules}, inputs)
    _recording.append(notes)
    try:
        yield notes
    finally:
        _recording.remove(notes)


@contextmanager
def serving(module: nn.Module, branching: Branching) -> Iterator[None]:
    """Calls of one attention module are branches while the context is open."""
    _branching[id(module)] = branching
    try:
        yield
    finally:
        del _branching[id(module)]


@contextmanager
def replaying(runs: Runs) -> Iterator[None]:
    """Run a model under this attention function while the context is open."""
    with eager(), runs.running(lambda config: NAME):
        yield


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    branching = _branching.get(id(module))
    if branching is not None:
        return _attend_branches(branching, query, key, value, factor, softcap), None
    notes = next((notes for notes in _recording if id(module) in notes.seen), None)
    if notes is not None:
        notes.unknown.update(unknown_to_us(kwargs, notes.inputs))
    causal = notes is not None and notes.is_causal(attention_mask)
    if softcap is not None:
        z = _softcapped(query, key, value, attention_mask, factor, softcap)
    else:
        # SDPA skips what lies ahead where it knows that the mask is causal.
        mask = None if causal else attention_mask
        extra = {**kwargs, "is_causal": True} if causal else kwargs
        z = sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=factor, **extra
        )[0]
    if notes is not None:
        notes.seen[id(module)].append(Seen(key, value, attention_mask, causal, z))
    return z, None


def _softcapped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, cap: float
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    scores = query @ repeat_kv(key, groups).transpose(-1, -2) * scaling
    scores = torch.tanh(scores / cap) * cap
    if mask is not None:
        scores = scores + mask
    pattern = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (pattern @ repeat_kv(value, groups)).transpose(1, 2).contiguous()


def _attend_branches(
    branching: Branching,
    query: Float[Tensor, "batch head row d_head"],
    key: Float[Tensor, "batch kv_head row d_head"],
    value: Float[Tensor, "batch kv_head row d_head"],
    scaling: float,
    softcap: float | None,
) -> Float[Tensor, "batch row head d_head"]:
    """Attention of every branch; `row` runs over branches and their positions."""
    split = (branching.n_branches, query.shape[2] // branching.n_branches)
    q, k, v = (x.unflatten(2, split) for x in (query, key, value))
    answer, mask = branching.answer, branching.seen.mask
    if mask is not None:
        mask = mask.expand(len(query), -1, -1, -1)[:, :, branching.start :]
    if answer is None and softcap is None and split[1] > branching.start:
        z = _attend_apart(branching, q, k, v, mask, scaling)
        return z.permute(0, 2, 3, 1, 4).flatten(1, 2)
    if answer is None:
        z = _attend_shared(branching, q, k, v, mask, scaling, softcap)
        return z.permute(0, 2, 3, 1, 4).flatten(1, 2)
    rows = torch.arange(len(query), device=query.device)
    q = q[rows, :, :, answer].unsqueeze(3)
    if mask is not None:
        mask = mask[rows, :, answer].unsqueeze(2)
    z = _attend_shared(branching, q, k, v, mask, scaling, softcap)
    whole = query.new_zeros(len(query), *split, *z.shape[1::3])
    whole[rows, :, answer] = z[:, :, :, 0].transpose(1, 2)
    return whole.flatten(1, 2)


def _attend_shared(
    branching: Branching,
    query: Float[Tensor, "batch head branch query_pos d_head"],
    key: Float[Tensor, "batch kv_head branch pos d_head"],
    value: Float[Tensor, "batch kv_head branch pos d_head"],
    mask: Float[Tensor, "batch 1 query_pos key_pos"] | None,
    scaling: float,
    softcap: float | None,
) -> Float[Tensor, "batch head branch query_pos d_head"]:
    """One matrix product serves all branches for the prefix, which is never copied."""
    start = branching.start
    n_batch, n_heads, n_branches, n_query, d_head = query.shape
    n_kv = key.shape[1]
    groups = n_heads // n_kv
    shape = (n_batch, n_kv, groups, n_branches, n_query)
    by_kv = query.reshape(n_batch, n_kv, -1, d_head)
    own_k, own_v = key.unsqueeze(2), value.unsqueeze(2)
    before_k, before_v = branching.seen.key[:, :, :start], branching.seen.value[:, :, :start]
    ahead = (by_kv @ before_k.transpose(-1, -2)).reshape(*shape, start)
    own = by_kv.reshape(*shape, d_head) @ own_k.transpose(-1, -2)
    scores = torch.cat([ahead, own], dim=-1) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask[:, :, None, None]
    pattern = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    flat = pattern[..., :start].reshape(n_batch, n_kv, groups * n_branches * n_query, start)
    z = (flat @ before_v).reshape(*shape, d_head)
    z = z + pattern[..., start:] @ own_v
    return z.reshape(query.shape)


def _attend_apart(
    branching: Branching,
    query: Float[Tensor, "batch head branch pos d_head"],
    key: Float[Tensor, "batch kv_head branch pos d_head"],
    value: Float[Tensor, "batch kv_head branch pos d_head"],
    mask: Float[Tensor, "batch 1 pos key_pos"] | None,
    scaling: float,
) -> Float[Tensor, "batch head branch pos d_head"]:
    """SDPA of each branch by itself, where the prefix is shorter than what is its own."""
    n_batch, n_heads, n_branches = query.shape[:3]
    start, groups = branching.start, n_heads // key.shape[1]

    def whole(own: Tensor, seen: Tensor) -> Tensor:
        if start:
            prefix = seen[:, :, None, :start].expand(-1, -1, n_branches, -1, -1)
            own = torch.cat([prefix, own], dim=3)
        return repeat_kv(own.transpose(1, 2).flatten(0, 1), groups)

    k, v = whole(key, branching.seen.key), whole(value, branching.seen.value)
    causal = branching.seen.causal and start == 0
    each = None
    if mask is not None and not causal:
        each = mask.repeat_interleave(n_branches, dim=0) if n_batch > 1 else mask
    q = query.transpose(1, 2).flatten(0, 1)
    z = scaled_dot_product_attention(q, k, v, attn_mask=each, is_causal=causal, scale=scaling)
    return z.unflatten(0, (n_batch, n_branches)).transpose(1, 2)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, eager_mask)
