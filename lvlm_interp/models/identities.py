"""What must hold between the sites of a block, whatever the architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lvlm_interp.models.family import Block, Branch, Scale
from lvlm_interp.models.taps import at, scale_factor
from lvlm_interp.sites import Site

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM


@dataclass(frozen=True)
class Passage:
    """A site's value as it came and, where an edit is open, as it went on."""

    came: Tensor
    went: Tensor


Seen = Mapping[str, Passage]


@torch.no_grad()
def block_errors(model: LVLM, site: Site, seen: Seen) -> dict[str, float]:
    """Largest relative error of each site of a block against its neighbours.

    Checked are: `pattern` sums to 1 and is the softmax of `scores`; `scores` are proportional to
    rot_q . rot_k where not masked; pattern . v is `z`; z through the output projection is
    `attn_out`; `mlp_hidden` through the down projection is `mlp_out`; and the block is the sum of
    its terms. Each is what came, against what went on before it: so edits are checked as well.

    Args:
        model: The model.
        site: Any site of the block.
        seen: Values of the block's sites by name.
    """
    tower = next(each for each in model.family.towers if each.name == site.tower)
    block, where = tower.blocks(model.hf)[site.layer or 0]
    errors: dict[str, float] = {}
    if where.attn:
        errors |= _branch_errors(block, where.own, seen, "")
    cross = tower.block.cross_of(block)
    if cross is not None:
        errors |= _branch_errors(block, cross, seen, "cross_")
    return errors | _mlp_errors(block, where, seen) | _sum_errors(block, where, seen)


@torch.no_grad()
def final_errors(model: LVLM, normed: Tensor, logits: Tensor) -> float:
    """Largest relative error of the unembedding of what `text.final_norm` gives."""
    expected = model.tap("logits").module.forward(normed[:, -logits.shape[1] :])
    return _off(logits, expected)


def _branch_errors(block: nn.Module, branch: Branch, seen: Seen, prefix: str) -> dict[str, float]:
    pattern, v = seen[prefix + "pattern"], seen[prefix + "v"].went
    z, o = seen[prefix + "z"], at(block, branch.o)
    added = seen[prefix + "attn_out"].came
    weighted = torch.einsum("bhqk,bkhd->bqhd", pattern.went, _per_head(v, pattern.went.shape[1]))
    soft = torch.softmax(seen[prefix + "scores"].went.float(), -1)
    gap = (pattern.came.float() - soft).abs().max()
    out = _tail(block, branch.o, branch.out, o.forward(z.went.flatten(-2)))
    errors = {
        prefix + "pattern": float(gap.maximum((pattern.came.float().sum(-1) - 1).abs().max())),
        prefix + "attn_out": _off(added, _times(out, added, block, branch.scale)),
        **_score_errors(seen, prefix),
    }
    weighted = weighted.reshape(z.came.shape)
    errors[prefix + "z"] = _gate_error(z.came, weighted) if branch.gated else _off(z.came, weighted)
    return errors


def _gate_error(z: Tensor, weighted: Tensor) -> float:
    """How far z is from pattern . v times factors between 0 and 1 (a sigmoid gate)."""
    z, weighted = z.float(), weighted.float()
    outside = torch.maximum(z.abs() - weighted.abs(), -z * weighted.sign())
    return float(outside.max().clamp(min=0) / weighted.abs().max().clamp(min=1e-6))


def _score_errors(seen: Seen, prefix: str) -> dict[str, float]:
    """Scores are rot_q . rot_k times one factor of the model's own, plus a mask."""
    if prefix + "rot_q" not in seen:
        return {}
    q, k = seen["rot_q"].went.float(), seen["rot_k"].went.float()
    scores = seen["scores"].came.float()
    products = torch.einsum("bqhd,bkhd->bhqk", q, _per_head(k, q.shape[2]))
    a, b = products[scores > -1e4], scores[scores > -1e4]
    factor = (a * b).sum() / (a * a).sum().clamp(min=1e-12)
    return {"scores": float((b - factor * a).abs().max() / b.abs().max().clamp(min=1e-6))}


def _mlp_errors(block: nn.Module, where: Block, seen: Seen) -> dict[str, float]:
    if not where.down:
        return {}
    down = at(block, where.down).forward(seen["mlp_hidden"].went)
    out = _tail(block, where.down, where.mlp_out, down)
    came, out = seen["mlp_out"].came, _times(out, seen["mlp_out"].came, block, where.mlp_scale)
    if where.mlp_scale is not None and where.mlp_scale.row_mask:
        # Positions that see no image add nothing, and nothing can be written there.
        out = torch.where((came == 0).all(-1, keepdim=True), came, out)
    return {"mlp_out": _off(came, out)}


def _sum_errors(block: nn.Module, where: Block, seen: Seen) -> dict[str, float]:
    errors: dict[str, float] = {}
    stream = seen["resid_pre"].went
    branches = [name for name in ("attn_out", "cross_attn_out") if name in seen]
    for term in branches:
        behind = "resid_mid" if term == branches[-1] else "resid_cross"
        stream = _normed(stream + seen[term].went, block, where, term)
        if behind not in seen:  # a parallel block has no state between its branches
            continue
        errors[behind] = _off(seen[behind].came, _cut(stream, seen[behind].came))
        stream = seen[behind].went
    mlp_out, post = seen["mlp_out"].went, seen["resid_post"].came
    total = _normed(_cut(stream, mlp_out) + mlp_out, block, where, "mlp_out")
    errors["resid_post"] = _off(_cut(post, total), total)
    return errors


def _normed(stream: Tensor, block: nn.Module, where: Block, term: str) -> Tensor:
    path = where.sum_norms.get(term)
    return stream if path is None else at(block, path).forward(stream)


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


def _off(value: Tensor, expected: Tensor) -> float:
    scale = expected.float().abs().max().clamp(min=1e-6)
    return float((value.float() - expected.float()).abs().max() / scale)
