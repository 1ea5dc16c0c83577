"""Where a residual stream is read, or added to, outside of its blocks: by data, and proved.

A vision tower may be read behind inner blocks (several feature layers, deepstack), and image
features may be added between blocks of the language model. Edges that left such a place out would
leak: a circuit without any input would still see the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lvlm_interp.errors import ModelError
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM, Edit
from lvlm_interp.patching.gradients import weights_frozen
from lvlm_interp.sites import Site

_proved: WeakKeyDictionary[LVLM, set[str]] = WeakKeyDictionary()


def inner_reads(model: LVLM, tower: str) -> tuple[int, ...]:
    """Blocks of a tower, the last that is read left out, behind which its stream is read too.

    By what configurations call them: `vision_feature_layer` with several layers, and deepstack.

    Raises:
        ModelError: The embeddings in front of the first block are read.
    """
    if tower != "vision":
        return ()
    config = model.config
    n_read, n_all = model.towers[tower].n_layers, _n_blocks(model, tower)
    layers: list[int] = []
    for name in ("vision_feature_layer", "vision_feature_layers"):
        chosen = getattr(config, name, None)
        if isinstance(chosen, list | tuple):
            # hidden_states has the embeddings first, so index i is the output of block i - 1.
            layers += [index - 1 if index >= 0 else n_all + index for index in chosen]
    layers += getattr(config.vision_config, "deepstack_visual_indexes", None) or []
    if -1 in layers:
        raise ModelError(
            "The projector reads the embeddings in front of the vision tower's first block, which "
            "is no edge: use a graph without the vision tower (vision=False)."
        )
    return tuple(sorted({layer for layer in layers if layer < n_read - 1}))


def additions(model: LVLM, tower: str) -> tuple[int, ...]:
    """Blocks of a tower behind which image features are added to its stream."""
    found = [site for site in model.sites() if site.name == "deepstack" and site.tower == tower]
    return tuple(site.layer for site in found if site.layer is not None)


def prove_streams(model: LVLM, towers: Sequence[str], inputs: Inputs) -> None:
    """Check once per model that its streams are read and added to nowhere else.

    One run with its gradient. What reads a stream behind a block, beside the next block, makes the
    gradient there differ from that at the next block's input; what is added makes the values
    differ.

    Raises:
        ModelError: Somewhere else they are.
    """
    done = _proved.setdefault(model, set())
    if done >= set(towers):
        return
    sites = [
        Site(tower, layer, name)
        for tower in towers
        for layer in range(model.towers[tower].n_layers)
        for name in ("resid_pre", "resid_post")
    ]
    # Copies at the inputs, so that what the next block reads is told from what others read.
    edits: dict[str | Site, Edit] = {
        site: lambda value: value.clone() for site in sites if site.name == "resid_pre"
    }
    with weights_frozen(model), model._board.silenced(), model.edit(edits):
        with model.record(sites, grad=True) as cache:
            logits = model.last_logits(inputs, grad=True)
    values = {site: cache[site] for site in sites}
    gradients = torch.autograd.grad(
        logits.float().square().sum(), list(values.values()), allow_unused=True
    )
    found = dict(zip(sites, gradients, strict=True))
    for tower in towers:
        _check_tower(model, tower, values, found)
    done |= set(towers)


def _check_tower(
    model: LVLM, tower: str, values: Mapping[Site, Tensor], gradients: Mapping[Site, Any]
) -> None:
    read, added = inner_reads(model, tower), additions(model, tower)
    for layer in range(model.towers[tower].n_layers - 1):
        post, pre = Site(tower, layer, "resid_post"), Site(tower, layer + 1, "resid_pre")
        if layer not in added and not torch.equal(
            values[post].detach(), values[pre].detach().to(values[post].device)
        ):
            raise ModelError(_unknown("something is added to", tower, layer))
        behind, front = gradients[post], gradients[pre]
        if behind is None or front is None:
            raise ModelError(
                f"The logits have no gradient at {post if behind is None else pre}, so it cannot "
                "be shown that the circuit's graph is whole."
            )
        apart = float((behind - front.to(behind.device)).float().abs().max())
        if layer not in read and apart > 1e-3 * float(behind.float().abs().max()):
            raise ModelError(_unknown("something reads", tower, layer))


def _unknown(what: str, tower: str, layer: int) -> str:
    return (
        f"Behind block {layer} of the {tower} tower {what} its stream that the graph does not "
        "know of, so no circuit of it would be whole: use activation_patch or path_patch."
    )


def _n_blocks(model: LVLM, tower: str) -> int:
    config = getattr(model.config, f"{tower}_config")
    names = ("num_hidden_layers", "depth", "num_layers")
    return next(getattr(config, name) for name in names if getattr(config, name, None))
