"""Edits of chosen heads, for interventions and for generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.sites import Site

HeadMode = Literal["scale", "zero", "mean"]
HeadMeans = Mapping[int, Float[Tensor, "head d_head"]]
"""Mean of z per head of each layer."""


def head_edit(
    model: LVLM,
    heads: Sequence[tuple[int, int]],
    mode: HeadMode = "scale",
    strength: float | None = None,
    reference: Sequence[Example | ContrastPair] | HeadMeans | None = None,
    *,
    positions: Literal["all", "last"] = "all",
    tower: str = "text",
) -> dict[str | Site, Callable[[Tensor], Tensor]]:
    """Edits for `model.edit` (and `model.generate`) that weaken or replace heads.

    Args:
        model: The model.
        heads: (layer, head) pairs.
        mode: `scale` multiplies z by `strength` (0 by default); `zero` sets it to 0; `mean` moves
            it towards the reference mean, z + strength * (mean - z), and replaces it by default.
        strength: See `mode`; not used by `zero`.
        reference: For `mean`: examples or pairs, or what `head_means` gave.
        positions: `all`, or `last` for the position of the answer alone (the last of the row).
        tower: Tower of the heads.

    Returns:
        Site to edit; empty for no heads.

    Raises:
        UsageError: A head out of range, an unknown mode, or no reference for `mean`.
    """
    check_heads(model, heads, tower)
    if mode not in get_args(HeadMode) or positions not in ("all", "last"):
        raise UsageError(
            f"mode={mode!r}, positions={positions!r}: expected a mode of "
            f"{', '.join(get_args(HeadMode))} and positions 'all' or 'last'."
        )
    if strength is None:
        strength = 1.0 if mode == "mean" else 0.0
    means: HeadMeans = {}
    if mode == "mean":
        if reference is None:
            raise UsageError("mode='mean' needs a reference: examples, pairs or head_means(...).")
        given = isinstance(reference, Mapping)
        means = reference if given else head_means(model, reference, tower=tower)
    edits: dict[str | Site, Callable[[Tensor], Tensor]] = {}
    for layer in sorted({layer for layer, _ in heads}):
        mine = torch.tensor([head for at, head in heads if at == layer])
        edits[Site(tower, layer, "z")] = _edit(mine, mode, strength, means.get(layer), positions)
    return edits


def head_means(
    model: LVLM,
    examples: Sequence[Example | ContrastPair],
    *,
    positions: Literal["all", "last"] = "all",
    tower: str = "text",
    batch_size: int = 32,
) -> dict[int, Float[Tensor, "head d_head"]]:
    """Mean of z per layer and head over a reference set.

    Args:
        model: The model.
        examples: Examples, or pairs, both of whose sides then count.
        positions: Average over all real positions, or over the last of each row.
        tower: Tower of the heads.
        batch_size: Examples at once.

    Raises:
        UsageError: The reference set is empty.
    """
    flat = [
        side
        for item in examples
        for side in ([item.clean, item.corrupt] if isinstance(item, ContrastPair) else [item])
    ]
    if not flat:
        raise UsageError("The reference set is empty: give the examples to take means over.")
    sums: dict[int, Tensor] = {}
    count: dict[int, int] = {}
    for start in range(0, len(flat), batch_size):
        inputs = model.prepare(flat[start : start + batch_size])
        _, cache = model.run_with_cache(inputs, f"{tower}.*.z", logits_to_keep=1)
        for site in cache.sites:
            assert site.layer is not None
            value = cache[site]
            keep = torch.ones(value.shape[:2], dtype=torch.bool)
            if tower == "text":
                for row, tokens in enumerate(inputs.tokens):
                    keep[row] = torch.as_tensor(tokens.kind != "pad")
            if positions == "last":
                keep[:] = False
                keep[torch.arange(len(keep)), inputs.last] = True
            chosen = value[keep.to(value.device)].double()
            sums[site.layer] = sums.get(site.layer, 0) + chosen.sum(0)
            count[site.layer] = count.get(site.layer, 0) + len(chosen)
    return {layer: (total / count[layer]).to(model.dtype) for layer, total in sums.items()}


def check_heads(model: LVLM, heads: Sequence[tuple[int, int]], tower: str = "text") -> None:
    """Refuse heads that the model does not have.

    Raises:
        UsageError: A layer or head out of range.
    """
    if tower not in model.towers:
        raise UsageError(f"The model has no tower {tower!r}: it has {', '.join(model.towers)}.")
    size = model.towers[tower]
    for layer, head in heads:
        if not (0 <= layer < size.n_layers and 0 <= head < size.n_heads):
            raise UsageError(
                f"There is no head ({layer}, {head}) in the {tower} tower: it has {size.n_layers} "
                f"layers of {size.n_heads} heads, both counted from 0."
            )


def _edit(
    heads: Tensor, mode: str, strength: float, mean: Tensor | None, positions: str
) -> Callable[[Tensor], Tensor]:
    def edit(z: Float[Tensor, "batch pos head d_head"]) -> Tensor:
        new = z.clone()
        # In a step of generation the only position is the last one.
        at = slice(None) if positions == "all" else slice(-1, None)
        part = new[:, at, heads]
        if mode == "mean":
            assert mean is not None
            part = part + strength * (mean[heads].to(part) - part)
        else:
            part = part * (strength if mode == "scale" else 0.0)
        new[:, at, heads] = part
        return new

    return edit
