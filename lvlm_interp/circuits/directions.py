"""Directions of the projector's output as components: what patching does to heads, done to them.

The component of `projector.out` along a unit vector d is (x . d) d, at every image token. Patching
exchanges it for that of the other run, ablation for 0 or its mean over both runs, and attribution
patching multiplies the exchange with the gradient along d.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.patching.batches import PairBatch, batches
from lvlm_interp.patching.gradients import Integration, gradient_run, mean_gradients
from lvlm_interp.patching.metrics import Scorer
from lvlm_interp.sites import Site

SITE = Site.parse("projector.out")
Side = Literal["clean", "corrupt"]
DirectionMethod = Literal["patch", "zero", "mean", "atp", "atp_star", "ig"]


def score_directions(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    basis: Float[Tensor, "direction d_model"],
    method: DirectionMethod | str,
    *,
    gradient: Side = "corrupt",
    steps: int = 5,
    batch_size: int = 16,
) -> tuple[Float[np.ndarray, " direction"], float]:
    """Effect of every direction on the logit difference, clean minus corrupt, over the pairs.

    Args:
        model: The model.
        pairs: Aligned pairs.
        basis: Unit vectors.
        method: `patch` (clean into corrupt), `zero`, `mean` ablation of the corrupt run, `atp`,
            `atp_star` (GradDrop, unsigned) or `ig` (integrated gradients along the pixels).
        gradient: Run at which `atp` and `atp_star` take the gradient: the corrupt one that clean
            values are patched into (denoising), or the clean one (noising).
        steps: Of integrated gradients.
        batch_size: Pairs at once.

    Returns:
        The scores, and the cost in forwards over one pair.

    Raises:
        UsageError: An unknown method.
    """
    if method not in get_args(DirectionMethod):
        raise UsageError(
            f"method={method!r}: expected one of {', '.join(get_args(DirectionMethod))}."
        )
    total, cost = np.zeros(len(basis)), 0.0
    for batch in batches(model, pairs, batch_size):
        clean, corrupt = (_record(model, batch, side) for side in ("clean", "corrupt"))
        score = Scorer("logit_diff", batch.pairs, batch.answer, batch.foil, clean[1])
        if method in ("patch", "zero", "mean"):
            target = {
                "patch": clean[0],
                "zero": torch.zeros_like(clean[0]),
                "mean": ((clean[0] + corrupt[0]) / 2).mean(dim=(0, 1)).expand_as(clean[0]),
            }[method]
            base = score(corrupt[1])
            effects = [_exchange(model, batch, target, d, score) - base for d in basis]
            found, forwards = torch.stack(effects), 2.0 + len(basis)
        else:
            change = clean[0] - corrupt[0]
            found, forwards = _estimates(
                model, batch, change, basis, score, method, steps, gradient
            )
        total += found.detach().double().sum(-1).numpy()
        cost += forwards * len(batch)
    return total / len(pairs), cost


def _record(model: LVLM, batch: PairBatch, side: str) -> tuple[Tensor, Tensor]:
    inputs = batch.clean if side == "clean" else batch.corrupt
    with torch.no_grad(), model.record([SITE]) as cache:
        logits = model.last_logits(inputs)
    return cache[SITE], logits


def _exchange(
    model: LVLM, batch: PairBatch, target: Tensor, d: Tensor, score: Scorer
) -> Float[Tensor, " pair"]:
    def edit(value: Tensor) -> Tensor:
        return value + ((target - value) @ d)[..., None] * d

    with torch.no_grad(), model.edit({SITE: edit}):
        return score(model.last_logits(batch.corrupt))


def _estimates(
    model: LVLM,
    batch: PairBatch,
    change: Tensor,
    basis: Tensor,
    score: Scorer,
    method: str,
    steps: int,
    gradient: Side,
) -> tuple[Float[Tensor, "direction pair"], float]:
    layers = [("text", layer) for layer in range(model.n_layers)] if method == "atp_star" else []
    inputs = batch.corrupt if gradient == "corrupt" else batch.clean
    run = gradient_run(model, inputs, [SITE], score, droppable=layers)

    def along(grad: Tensor) -> Tensor:
        return torch.einsum("ptd,nd,pte,ne->np", change, basis, grad, basis)

    if method == "ig":
        path = Integration(steps=steps, path="pixels")
        grads = mean_gradients(model, batch.corrupt, batch.clean, [SITE], score, path)
        return along(grads[SITE]), 2.0 + 3.0 * steps
    if not layers:
        return along(run.gradients()[SITE]), 4.0
    total = torch.zeros(len(basis), len(batch))
    for key in layers:
        run.open_layers[key] = False
        total += along(run.gradients(keep_graph=True)[SITE]).abs()
        run.open_layers[key] = True
    return total / max(1, len(layers) - 1), 2.0 + 2.0 * len(layers)
