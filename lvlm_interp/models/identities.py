"""What must hold between the sites of a block, whatever the architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lvlm_interp.models.family import Block, Branch, Scale
from lvlm_interp.models.taps import at, scale_factor
from lvlm_interp.sites import Site

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM

ROUNDINGS = 4
"""Roundings of a number that count as no difference; each is eps times what is rounded."""


@dataclass(frozen=True)
class Passage:
    """A site's value as it came and, where an edit is open, as it went on."""

    came: Tensor
    went: Tensor


Seen = Mapping[str, Passage]


@torch.no_grad()
def block_errors(
    model: LVLM, site: Site, seen: Seen, queries: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """Largest relative error of each site of a block against its neighbours.

    Checked are: `pattern` sums to 1 and is the softmax of `scores`; `scores` are proportional to
    rot_q . rot_k where not masked; pattern . v is `z`; z through the output projection is
    `attn_out`; `mlp_hidden` through the down projection is `mlp_out`; and the block is the sum of
    its terms. Each is what came, against what went on before it: so edits are checked as well.
    Errors are in units of `off`.

    Args:
        model: The model.
        site: Any site of the block.
        seen: Values of the block's sites by name.
        queries: The query positions to which `scores` and `pattern` were cut, by prefix (none or
            `cross_`); None for all.
    """
    tower = next(each for each in model.family.towers if each.name == site.tower)
    block, where = tower.blocks(model.hf)[site.layer or 0]
    errors: dict[str, float] = {}
    cut = queries or {}
    if where.attn:
        errors |= _branch_errors(block, where.own, seen, "", cut.get(""))
    cross = tower.block.cross_of(block)
    if cross is not None:
        errors |= _branch_errors(block, cross, seen, "cross_", cut.get("cross_"))
    return errors | _mlp_errors(block, where, seen) | _sum_errors(block, where, seen)


@torch.no_grad()
def final_errors(model: LVLM, normed: Tensor, logits: Tensor) -> float:
    """Largest relative error of the unembedding of what `text.final_norm` gives."""
    expected = model.tap("logits").module.forward(normed[:, -logits.shape[1] :])
    return off(logits, expected)


def off(
    came: Tensor, expected: Tensor, term: Tensor | None = None, stream: Tensor | None = None
) -> float:
    """Largest difference of two tensors, in units of what was added at the same position.

    What rounding explains is no difference: `ROUNDINGS` times eps times the number that is rounded,
    element by element. The rest is divided by the term's largest element at that position. So one
    channel of a thousand, as real models have it, hides nothing that is wrong beside it.

    Args:
        came: What was read; the last axis is the width.
        expected: What it should be.
        term: What was added last, where both are sums; `expected` by default.
        stream: What it was added to.
    """
    rounded = came.abs().maximum(expected.abs())
    if stream is not None:
        rounded = rounded.maximum(stream.abs())
    eps = max(torch.finfo(each.dtype).eps for each in (came, expected))
    left = (came.double() - expected.double()).abs() - ROUNDINGS * eps * rounded.double()
    unit = (expected if term is None else term).abs().amax(-1, keepdim=True).double()
    return float((left.clamp(min=0) / unit.clamp(min=1e-12)).max())


def wide(value: Tensor) -> Tensor:
    """In single precision at least."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _branch_errors(
    block: nn.Module, branch: Branch, seen: Seen, prefix: str, queries: Tensor | None
) -> dict[str, float]:
    pattern, v = seen[prefix + "pattern"], seen[prefix + "v"].went
    z, o = seen[prefix + "z"], at(block, branch.o)
    added = seen[prefix + "attn_out"].came
    weighted = torch.einsum("bhqk,bkhd->bqhd", pattern.went, _per_head(v, pattern.went.shape[1]))
    soft = torch.softmax(wide(seen[prefix + "scores"].went), -1)
    gap = (wide(pattern.came) - soft).abs().max()
    out = _tail(block, branch.o, branch.out, o.forward(z.went.flatten(-2)))
    errors = {
        prefix + "pattern": float(gap.maximum((wide(pattern.came).sum(-1) - 1).abs().max())),
        prefix + "attn_out": off(added, _times(out, added, block, branch.scale)),
        **_score_errors(seen, prefix, _soft_cap(block, branch), queries),
    }
    came = _cut_to(z.came.reshape(len(weighted), -1, *z.came.shape[-2:]), queries)
    error = _gate_error if branch.gated else off
    errors[prefix + "z"] = error(came.flatten(-2), weighted.flatten(-2))
    return errors


def _gate_error(z: Tensor, weighted: Tensor) -> float:
    """How far z is from pattern . v times factors between 0 and 1 (a sigmoid gate)."""
    z, weighted = wide(z), wide(weighted)
    outside = torch.maximum(z.abs() - weighted.abs(), -z * weighted.sign())
    return float(outside.max().clamp(min=0) / weighted.abs().max().clamp(min=1e-6))


def _score_errors(
    seen: Seen, prefix: str, cap: float | None, queries: Tensor | None
) -> dict[str, float]:
    """Scores are rot_q . rot_k times one factor of the model's own (soft-capped), plus a mask."""
    if prefix + "rot_q" not in seen:
        return {}
    q, k = _cut_to(wide(seen["rot_q"].went), queries), wide(seen["rot_k"].went)
    scores = wide(seen["scores"].came)
    products = torch.einsum("bqhd,bkhd->bhqk", q, _per_head(k, q.shape[2]))
    open_ = scores > -1e4
    if cap is not None:
        # Where the cap is reached, nothing can be told of what was capped.
        open_ &= scores.abs() < 0.99 * cap
        scores = torch.atanh((scores / cap).clamp(-0.99, 0.99)) * cap
    a, b = products * open_, scores * open_
    factor = (a * b).sum() / (a * a).sum().clamp(min=1e-12)
    unit = b.abs().amax(-1, keepdim=True).clamp(min=1e-3 * float(b.abs().max()) + 1e-12)
    return {"scores": float(((b - factor * a).abs() / unit).max())}


def _soft_cap(block: nn.Module, branch: Branch) -> float | None:
    return getattr(attrgetter(branch.attn)(block), "attn_logit_softcapping", None)


def _cut_to(value: Tensor, queries: Tensor | None) -> Tensor:
    """The query positions that were kept, where only some were."""
    return value if queries is None else value[:, queries]


def _mlp_errors(block: nn.Module, where: Block, seen: Seen) -> dict[str, float]:
    if not where.down:
        return {}
    down = at(block, where.down).forward(seen["mlp_hidden"].went)
    out = _tail(block, where.down, where.mlp_out, down)
    came, out = seen["mlp_out"].came, _times(out, seen["mlp_out"].came, block, where.mlp_scale)
    if where.mlp_scale is not None and where.mlp_scale.row_mask:
        # Positions that see no image add nothing, and nothing can be written there.
        out = torch.where((came == 0).all(-1, keepdim=True), came, out)
    return {"mlp_out": off(came, out)}


def _sum_errors(block: nn.Module, where: Block, seen: Seen) -> dict[str, float]:
    errors: dict[str, float] = {}
    stream = seen["resid_pre"].went
    branches = [name for name in ("attn_out", "cross_attn_out") if name in seen]
    for term in branches:
        behind = "resid_mid" if term == branches[-1] else "resid_cross"
        if behind not in seen:  # a parallel block has no state between its branches
            stream = stream + seen[term].went
            continue
        errors[behind] = _sum_error(block, where, seen, term, stream, seen[behind].came)
        stream = seen[behind].went
    stream = _cut(stream, seen["mlp_out"].went)
    post = seen["resid_post"].came
    errors["resid_post"] = _sum_error(block, where, seen, "mlp_out", stream, post)
    return errors


def _sum_error(
    block: nn.Module, where: Block, seen: Seen, term: str, stream: Tensor, came: Tensor
) -> float:
    """How far a residual stream is from the one before it plus one term."""
    added, path = seen[term].went, where.sum_norms.get(term)
    if path is not None:
        total = at(block, path).forward(stream + added)
        return off(_cut(came, total), _cut(total, came))
    total = stream + added
    came, total, added, stream = (_cut(x, came) for x in (_cut(came, total), total, added, stream))
    return off(came, total, added, stream)


def _cut(stream: Tensor, like: Tensor) -> Tensor:
    """The leading positions: of query tokens and text, only the queries go through the branch."""
    return stream[:, : like.shape[1]]


def _tail(block: nn.Module, source: str, target: str, value: Tensor) -> Tensor:
    """What lies between a projection and the module whose output is added (a norm, or nothing)."""
    if source == target or source.startswith(f"{target}."):
        return value
    return at(block, target).forward(value)


def _times(value: Tensor, came: Tensor, block: nn.Module, scale: Scale | None) -> Tensor:
    if scale is None:
        return value
    factor = scale_factor(block, scale)
    # A block on disk has its gate in memory only while it runs: nothing to compare with behind it.
    return came if factor.is_meta else value * factor


def _per_head(value: Tensor, n_heads: int) -> Tensor:
    return value.repeat_interleave(n_heads // value.shape[2], dim=2)
