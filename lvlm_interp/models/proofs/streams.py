"""Reads and writes of the view against the raw model: hooks of torch, hidden states, weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lvlm_interp.models.family import Tower
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.taps import at

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM


@torch.no_grad()
def reads(model: LVLM, inputs: Inputs) -> float:
    """Largest relative difference of the streams from torch's own hooks and transformers."""
    worst = 0.0
    for tower in model.family.towers:
        with _raw(tower, model.hf) as seen:
            model.hf(**inputs.tensors, use_cache=False)
        _, cache = model.run_with_cache(inputs, f"{tower.name}.*.resid_p*")
        for layer, (came, left) in enumerate(seen):
            for site, raw in (("resid_pre", came), ("resid_post", left)):
                value = cache[f"{tower.name}.{layer}.{site}"]
                worst = max(worst, off(_multiset(value), _multiset(raw)))
    return max(worst, _hidden_states(model, inputs), _patterns(model, inputs))


def _multiset(value: Tensor) -> Tensor:
    """One number per position, sorted: towers may order rows and windows as they like."""
    flat = value.reshape(-1, value.shape[-1]).double()
    ramp = torch.linspace(0.5, 1.5, flat.shape[-1], dtype=torch.double, device=flat.device)
    return (flat @ ramp).sort().values


@contextmanager
def _raw(tower: Tower, hf: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    seen: list[tuple[Tensor, Tensor]] = []

    def note(_module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        came = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values())))
        seen.append((came, out[0] if isinstance(out, tuple) else out))

    blocks = [block for block, _ in tower.blocks(hf)]
    handles = [block.register_forward_hook(note, with_kwargs=True) for block in blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _hidden_states(model: LVLM, inputs: Inputs) -> float:
    """Difference of the language model's streams from transformers' hidden states, by position."""
    out = model.hf(**inputs.tensors, use_cache=False, output_hidden_states=True)
    states = out.get("hidden_states")
    if states is None:
        states = out["language_model_outputs"].hidden_states
    _, cache = model.run_with_cache(inputs, ["text.*.resid_pre", "text.*"])
    worst = 0.0
    for layer in range(model.n_layers):
        expected = states[layer].clone()
        if layer and (added := f"text.{layer - 1}.deepstack") in cache:
            # transformers records a block's output before deepstack features are added to it.
            expected += cache[added]
        worst = max(worst, off(cache[f"text.{layer}.resid_pre"], expected))
    return worst


def _patterns(model: LVLM, inputs: Inputs) -> float:
    """Difference of the language model's patterns from those of transformers' eager code."""
    with model._runs.running(lambda _config: "eager"):
        out = model.hf(**inputs.tensors, use_cache=False, output_attentions=True)
    if (theirs := out.get("attentions")) is None:
        theirs = out["language_model_outputs"].attentions
    names = ("pattern", "cross_pattern")
    own = [site for site in model.sites("text.*.*pattern") if site.name in names]
    _, cache = model.run_with_cache(inputs, own)
    given = [pattern for pattern in theirs if pattern is not None]
    if len(given) != len(own):
        return float("inf")
    return max(
        off(cache[site], pattern)
        for site, pattern in zip(own, given, strict=True)
        if site.name == "pattern"  # the keys of a cross-attention lie as its tower likes
    )


@torch.no_grad()
def writes(model: LVLM, inputs: Inputs) -> float:
    """Largest relative difference of logits under an edit, from the same done to the raw model."""
    clean = model(inputs)
    with model.edit({"*": torch.clone}):
        worst = off(model(inputs), clean)
    for tower in model.family.towers:
        if tower.name not in ("vision", "text"):
            continue
        blocks = tower.blocks(model.hf)
        layer = len(blocks) // 2
        with _moved(blocks[layer][0]):
            expected = model.hf(**inputs.tensors, use_cache=False).logits
        with model.edit({f"{tower.name}.{layer}.resid_post": _shift}):
            edited = model(inputs)
        if not (edited - clean).abs().max() > 0:
            return float("inf")
        worst = max(worst, off(edited, expected))
        worst = max(worst, _without_a_head(model, inputs, tower), _silenced(model, inputs, tower))
    return worst


def _shift(value: Tensor) -> Tensor:
    ramp = torch.linspace(-1, 1, value.shape[-1], device=value.device, dtype=value.dtype)
    return value + 0.3 * ramp


@contextmanager
def _moved(block: nn.Module) -> Iterator[None]:
    plain = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = plain(*args, **kwargs)
        return (_shift(out[0]), *out[1:]) if isinstance(out, tuple) else _shift(out)

    block.forward = forward
    try:
        yield
    finally:
        del block.forward


def _without_a_head(model: LVLM, inputs: Inputs, tower: Tower) -> float:
    """Zeroing z of one head is the output projection without that head's columns."""
    layer, block, data = next(
        (i, block, data) for i, (block, data) in enumerate(tower.blocks(model.hf)) if data.attn
    )
    size, head = model.towers[tower.name], 1
    columns = slice(head * size.d_head, (head + 1) * size.d_head)

    def cut(z: Tensor) -> Tensor:
        z = z.clone()
        z[..., head, :] = 0
        return z

    with _zeroed(at(block, data.o), columns):
        expected = model.hf(**inputs.tensors, use_cache=False).logits
    with model.edit({f"{tower.name}.{layer}.z": cut}):
        return off(model(inputs), expected)


def _nothing(_module: nn.Module, _args: Any, out: Any) -> Any:
    if isinstance(out, tuple):
        return (torch.zeros_like(out[0]), *out[1:])
    return torch.zeros_like(out)


def _silenced(model: LVLM, inputs: Inputs, tower: Tower) -> float:
    """A branch without effect: `mlp_out` set to zero, and its module answering zero."""
    block, data = tower.blocks(model.hf)[0]
    module = at(block, data.mlp_out)
    handle = module.register_forward_hook(_nothing)
    try:
        expected = model.hf(**inputs.tensors, use_cache=False).logits
    finally:
        handle.remove()
    with model.edit({f"{tower.name}.0.mlp_out": torch.zeros_like}):
        return off(model(inputs), expected)


@contextmanager
def _zeroed(projection: nn.Module, columns: slice) -> Iterator[None]:
    weight: Any = projection.weight
    before = weight[:, columns].clone()
    weight[:, columns] = 0
    try:
        yield
    finally:
        weight[:, columns] = before


def off(value: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest number that is expected."""
    scale = expected.double().abs().max().clamp(min=1e-6)
    return float((value.double() - expected.double()).abs().max() / scale)
