"""From a family's data to the taps of a model: where each site's value passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_interp.errors import ModelError
from lvlm_interp.models.family import Block, Branch, Family, Scale, Tower, TowerShape, shape_of
from lvlm_interp.models.hooks import (
    AS_IS,
    BATCH_OF_ONE,
    Frame,
    Tap,
    View,
    fused_heads,
    heads,
    leading,
    regrouped,
    scaled,
    unflattened,
)
from lvlm_interp.sites import Site


def at(module: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path.

    Raises:
        AttributeError: There is none.
    """
    found = attrgetter(path)(module) if path else module
    if found is None:
        raise AttributeError(f"{path} is None")
    return found


def taps_of(hf: Any, family: Family) -> dict[Site, Tap]:
    """Every declared site of a model and where it passes, in the order of the forward.

    Raises:
        ModelError: A path of the family is not in the model.
    """
    taps: dict[Site, Tap] = {}
    try:
        for tower in family.towers:
            if tower.name == "text":
                taps[Site("projector", None, "out")] = Tap(
                    at(hf, family.projector),
                    "output",
                    family.projector_view or AS_IS,
                    keyword=family.projector_field,
                )
                module, keyword = family.embed
                where = "input" if keyword else "output"
                taps[Site("text", None, "embed")] = Tap(at(hf, module), where, keyword=keyword)
            taps.update(_tower_taps(hf, tower))
        taps[Site("text", None, "final_norm")] = Tap(at(hf, family.final_norm), "output")
        taps[Site("text", None, "logits")] = Tap(at(hf, family.lm_head), "output")
        taps.update(family.extra_taps(hf))
    except AttributeError as error:
        raise ModelError(
            f"The model does not have the parts of the family {family.name}: {error}. "
            "Was it built for another architecture?"
        ) from error
    return taps


def packed_modules(hf: Any, family: Family) -> list[nn.Module]:
    """Attention modules that take the images of a batch on one axis."""
    return [
        at(block, where.attn)
        for tower in family.towers
        if tower.flat
        for block, where in tower.blocks(hf)
    ]


def _tower_taps(hf: Any, tower: Tower) -> dict[Site, Tap]:
    size = shape_of(hf, tower)
    outer = BATCH_OF_ONE if tower.flat else AS_IS
    taps: dict[Site, Tap] = {}
    for layer, (block, where) in enumerate(tower.blocks(hf)):
        for name, tap in _block_taps(block, where, tower.block, size, outer).items():
            taps[Site(tower.name, layer, name)] = tap
    if tower.final_norm and tower.name != "text":
        taps[Site(tower.name, None, "final_norm")] = Tap(
            at(hf, tower.final_norm), "output", outer, ndim=None if tower.flat else 3
        )
    return taps


def _block_taps(
    block: nn.Module, where: Block, general: Block, size: TowerShape, outer: View
) -> dict[str, Tap]:
    taps = {"resid_pre": Tap(block, "input", outer)}
    if where.attn:
        taps |= _branch_taps(block, where.own, size, outer, "", rotary=True)
    elif where.attn_out:
        out = Tap(at(block, where.attn_out), "output", outer)
        taps["attn_out"] = _with_scale(out, block, where.attn_scale)
    cross = general.cross_of(block)
    if cross is not None:
        if cross.entry:
            taps["resid_cross"] = Tap(at(block, cross.entry), "input", outer)
        taps |= _branch_taps(block, cross, size, outer, "cross_", rotary=False)
    return taps | _mlp_taps(block, where, outer)


def _branch_taps(
    block: nn.Module, branch: Branch, size: TowerShape, outer: View, prefix: str, *, rotary: bool
) -> dict[str, Tap]:
    attn = at(block, branch.attn)
    z_view = outer.then(heads(size.n_heads, size.d_head))
    parts = ("rot_q", "rot_k", "scores", "pattern") if rotary else ("scores", "pattern")
    out = Tap(at(block, branch.out), "output", outer)
    return {
        **{prefix + k: tap for k, tap in _projection_taps(block, branch, size, outer).items()},
        **{prefix + part: Tap(attn, part) for part in parts},
        prefix + "z": Tap(at(block, branch.o), "input", z_view, keyword="input"),
        prefix + "attn_out": _with_scale(out, block, branch.scale),
    }


def _projection_taps(
    block: nn.Module, where: Branch, size: TowerShape, outer: View
) -> dict[str, Tap]:
    counts = {"q": size.n_heads, "k": size.n_kv_heads, "v": size.n_kv_heads}
    taps = {
        name: Tap(
            at(block, where.qkv or getattr(where, name)),
            "output",
            outer.then(head_view(where, name, n, size.d_head)),
        )
        for name, n in counts.items()
    }
    if where.tiled_keys:
        frame = Frame(block)
        for name in "kv":
            view = regrouped(frame).then(heads(counts[name], size.d_head))
            taps[name] = replace(taps[name], view=view, frame=frame)
    return taps


def head_view(branch: Branch, part: str, n: int, d_head: int) -> View:
    """q, k or v of each head, out of the last axis of what a projection of the branch gives."""
    if branch.qkv:
        return fused_heads("qkv".index(part), n, d_head)
    if branch.gated and part == "q":
        return heads(n, 2 * d_head).then(leading(d_head))
    return heads(n, d_head)


def _mlp_taps(block: nn.Module, where: Block, outer: View) -> dict[str, Tap]:
    frame = Frame(block) if where.flat_mlp else None
    view = unflattened(frame) if frame is not None else outer
    out = Tap(at(block, where.mlp_out), "output", view, frame=frame)
    taps: dict[str, Tap] = {}
    if where.mlp_norm:
        taps["resid_mid"] = Tap(at(block, where.mlp_norm), "input_in_place", view, frame=frame)
    if where.down:
        down = at(block, where.down)
        taps["mlp_hidden"] = Tap(down, "input", view, keyword="input", frame=frame)
    return {
        **taps,
        "mlp_out": _with_scale(out, block, where.mlp_scale),
        "resid_post": Tap(block, "output", outer),
    }


def scale_factor(block: nn.Module, scale: Scale, call: Mapping[str, Any] | None = None) -> Tensor:
    """The factor by which a block multiplies a branch, given the arguments it was called with."""
    value = attrgetter(scale.path)(block)
    value = torch.tanh(value) if scale.tanh else value
    mask = (call or {}).get(scale.row_mask)
    return value if mask is None else value * mask[:, 0]


def _with_scale(tap: Tap, block: nn.Module, scale: Scale | None) -> Tap:
    if scale is None:
        return tap
    scale_factor(block, scale)  # a wrong path must fail on load
    frame = Frame(block) if scale.row_mask else None
    view = scaled(lambda: scale_factor(block, scale, frame.kwargs if frame else None))
    return replace(tap, view=tap.view.then(view), frame=frame)
