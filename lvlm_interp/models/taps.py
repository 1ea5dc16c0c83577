"""From a family's data to the taps of a model: where each site's value passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_interp.errors import ModelError
from lvlm_interp.models.family import Block, Branch, Family, Scale, Tower, TowerShape, shape_of
from lvlm_interp.models.hooks import Tap
from lvlm_interp.models.inputs.run import CurrentRun
from lvlm_interp.models.views import (
    AS_IS,
    Frame,
    TowerViews,
    View,
    by_row,
    fused_heads,
    heads,
    leading,
    regrouped,
    scaled,
    tower_views,
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


def run_of(hf: Any, family: Family) -> CurrentRun:
    """What follows the runs of a model and knows their rows."""
    return CurrentRun(hf, partial(family.rows_of, hf.config))


def taps_of(hf: Any, family: Family, run: CurrentRun | None = None) -> dict[Site, Tap]:
    """Every declared site of a model and where it passes, in the order of the forward.

    Args:
        hf: The Hugging Face model.
        family: Of the model.
        run: From `run_of`; one of its own by default.

    Raises:
        ModelError: A path of the family is not in the model.
    """
    run = run_of(hf, family) if run is None else run
    taps: dict[Site, Tap] = {}
    try:
        for tower in family.towers:
            if tower.name == "text":
                taps[Site("projector", None, "out")] = Tap(
                    at(hf, family.projector),
                    "output",
                    (family.projector_view or AS_IS).then(by_row(run, "projector")),
                    keyword=family.projector_field,
                    frame=run,
                    ndim=family.projector_ndim,
                )
                module, keyword = family.embed
                where = "input" if keyword else "output"
                taps[Site("text", None, "embed")] = Tap(at(hf, module), where, keyword=keyword)
            taps.update(_tower_taps(hf, tower, run))
        taps[Site("text", None, "final_norm")] = Tap(at(hf, family.final_norm), "output")
        taps[Site("text", None, "logits")] = Tap(at(hf, family.lm_head), "output")
        for site, tap in family.extra_taps(hf).items():
            taps[site] = replace(tap, view=tap.view.then(by_row(run, site.name)), frame=run)
    except AttributeError as error:
        raise ModelError(
            f"This model of the family {family.name} has a vision tower or a language model "
            f"({_kinds(hf)}) whose parts are not known here: {error}."
        ) from error
    return taps


def _kinds(hf: Any) -> str:
    """What the configuration says of the towers, for messages."""
    parts = ("vision_config", "text_config")
    kinds = [getattr(getattr(hf.config, part, None), "model_type", None) for part in parts]
    return ", ".join(kind for kind in kinds if kind) or hf.config.model_type


def packed_modules(hf: Any, family: Family) -> list[nn.Module]:
    """Attention modules that take the images of a batch on one axis."""
    return [
        at(block, where.attn)
        for tower in family.towers
        if tower.flat
        for block, where in tower.blocks(hf)
    ]


def _tower_taps(hf: Any, tower: Tower, run: CurrentRun) -> dict[Site, Tap]:
    size = shape_of(hf, tower)
    text = tower.name == "text"
    views = TowerViews() if text else tower_views(run, tower)
    taps: dict[Site, Tap] = {}
    for layer, (block, where) in enumerate(tower.blocks(hf)):
        for name, tap in _block_taps(block, where, tower.block, size, views).items():
            taps[Site(tower.name, layer, name)] = tap
    if tower.final_norm and tower.name != "text":
        taps[Site(tower.name, None, "final_norm")] = Tap(
            at(hf, tower.final_norm),
            "output",
            views.positions,
            frame=run,
            ndim=None if tower.flat else 3,
        )
    return taps


def _block_taps(
    block: nn.Module, where: Block, general: Block, size: TowerShape, views: TowerViews
) -> dict[str, Tap]:
    taps = {"resid_pre": Tap(block, "input", views.positions, frame=views.run)}
    if where.attn:
        taps |= _branch_taps(block, where.own, size, views, "", rotary=True)
    elif where.attn_out:
        out = Tap(at(block, where.attn_out), "output", views.positions, frame=views.run)
        taps["attn_out"] = _with_scale(out, block, where.attn_scale)
    cross = general.cross_of(block)
    if cross is not None:
        if cross.entry:
            entry = at(block, cross.entry)
            taps["resid_cross"] = Tap(entry, "input", views.positions, frame=views.run)
        taps |= _branch_taps(block, cross, size, views, "cross_", rotary=False)
    return taps | _mlp_taps(block, where, views)


def _branch_taps(
    block: nn.Module,
    branch: Branch,
    size: TowerShape,
    views: TowerViews,
    prefix: str,
    *,
    rotary: bool,
) -> dict[str, Tap]:
    attn = at(block, branch.attn)
    run, z_view = views.run, views.positions.then(heads(size.n_heads, size.d_head))
    parts = ("rot_q", "rot_k", "scores", "pattern") if rotary else ("scores", "pattern")
    out = Tap(at(block, branch.out), "output", views.positions, frame=run)
    return {
        **{prefix + k: tap for k, tap in _projection_taps(block, branch, size, views).items()},
        **{prefix + part: Tap(attn, part, views.of_part(part), frame=run) for part in parts},
        prefix + "z": Tap(at(block, branch.o), "input", z_view, keyword="input", frame=run),
        prefix + "attn_out": _with_scale(out, block, branch.scale),
    }


def _projection_taps(
    block: nn.Module, where: Branch, size: TowerShape, views: TowerViews
) -> dict[str, Tap]:
    outer, run = views.positions, views.run
    counts = {"q": size.n_heads, "k": size.n_kv_heads, "v": size.n_kv_heads}
    taps = {
        name: Tap(
            at(block, where.qkv or getattr(where, name)),
            "output",
            outer.then(head_view(where, name, n, size.d_head)),
            frame=run,
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


def _mlp_taps(block: nn.Module, where: Block, views: TowerViews) -> dict[str, Tap]:
    frame, view = views.run, views.positions
    if where.flat_mlp:
        frame = Frame(block)
        view = unflattened(frame)
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
        "resid_post": Tap(block, "output", views.positions, frame=views.run),
    }


def scale_factor(block: nn.Module, scale: Scale, call: Mapping[str, Any] | None = None) -> Tensor:
    """The factor by which a block multiplies a branch, given the arguments it was called with."""
    value = torch.as_tensor(attrgetter(scale.path)(block))
    value = torch.tanh(value) if scale.tanh else value
    mask = (call or {}).get(scale.row_mask)
    return value if mask is None else value * mask[:, 0]


def _with_scale(tap: Tap, block: nn.Module, scale: Scale | None) -> Tap:
    if scale is None:
        return tap
    scale_factor(block, scale)  # a wrong path must fail on load
    if not scale.row_mask:
        return replace(tap, view=tap.view.then(scaled(lambda: scale_factor(block, scale))))
    frame = Frame(block)
    view = scaled(lambda: scale_factor(block, scale, frame.kwargs))
    return replace(tap, view=tap.view.then(view), frame=frame)
