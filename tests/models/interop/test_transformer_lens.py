"""TransformerLens as an oracle on the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lvlm_interp.errors import InputError, ModelError, SiteError, UsageError
from lvlm_interp.models.interop.transformer_lens import FAMILIES
from lvlm_interp.models.loading import wrap
from tests.models import processors, zoo

EXACT: Any = {"atol": 1e-5, "rtol": 1e-5}
FAST = ("llava", "gemma3")
SUPPORTED = zoo.tiered(FAMILIES, FAST)


def model_and_inputs(name: str) -> tuple[Any, Any, Any]:
    model = wrap(zoo.build(name), processors.build(name))
    pictures = [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8))
        for i in range(2)
    ]
    return model, *(model.prepare([(each, "is there a dog?")]) for each in pictures)


@pytest.mark.parametrize("name", SUPPORTED)
def test_head_and_residual_patching_agree(name: str) -> None:
    from transformer_lens import patching

    model, clean, corrupt = model_and_inputs(name)
    bridge = model.to_transformer_lens(corrupt)
    source = model.to_transformer_lens(clean)
    torch.testing.assert_close(
        bridge.run_with_hooks(corrupt["input_ids"], fwd_hooks=[]), model(corrupt), **EXACT
    )
    _, their_cache = source.run_with_cache(clean["input_ids"])
    _, cache = model.run_with_cache(clean, ["text.*.z", "text.*.resid_pre"])

    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, 20] - logits[0, -1, 21]

    heads = patching.get_act_patch_attn_head_out_all_pos(
        bridge, corrupt["input_ids"], their_cache, metric
    )
    size = model.towers["text"]
    ours = torch.zeros(size.n_layers, size.n_heads)
    for layer in range(size.n_layers):
        for head in range(size.n_heads):

            def patch(z: Tensor, layer: int = layer, head: int = head) -> Tensor:
                z = z.clone()
                z[:, :, head] = cache[f"text.{layer}.z"][:, :, head]
                return z

            with model.edit({f"text.{layer}.z": patch}):
                ours[layer, head] = metric(model(corrupt))
    torch.testing.assert_close(ours, heads.cpu(), **EXACT)

    streams = patching.get_act_patch_resid_pre(bridge, corrupt["input_ids"], their_cache, metric)
    position = clean["input_ids"].shape[1] - 1
    for layer in range(size.n_layers):

        def patch_stream(value: Tensor, layer: int = layer) -> Tensor:
            value = value.clone()
            value[:, position] = cache[f"text.{layer}.resid_pre"][:, position]
            return value

        with model.edit({f"blocks.{layer}.hook_resid_pre": patch_stream}):
            torch.testing.assert_close(metric(model(corrupt)), streams[layer, position], **EXACT)


@pytest.mark.parametrize("name", SUPPORTED)
def test_caches_hold_the_same_values_under_their_names(name: str) -> None:
    model, inputs, _ = model_and_inputs(name)
    bridge = model.to_transformer_lens(inputs)
    _, theirs = bridge.run_with_cache(inputs["input_ids"])
    _, cache = model.run_with_cache(inputs, "text.*")
    ours = cache.to_transformer_lens(bridge)
    names = ["hook_resid_pre", "hook_resid_post", "attn.hook_z", "attn.hook_pattern", "attn.hook_v"]
    for layer in range(model.n_layers):
        for hook in names:
            torch.testing.assert_close(
                ours[f"blocks.{layer}.{hook}"], theirs[f"blocks.{layer}.{hook}"], **EXACT
            )
    torch.testing.assert_close(ours["resid_post", 0], theirs["resid_post", 0], **EXACT)


def test_our_model_stays_untouched() -> None:
    model, inputs, _ = model_and_inputs("llava")
    before, types = model(inputs), [type(module) for module in model.hf.modules()]
    model.to_transformer_lens(inputs).run_with_hooks(inputs["input_ids"], fwd_hooks=[])
    assert [type(module) for module in model.hf.modules()] == types
    assert torch.equal(model(inputs), before)


def test_what_misleads_is_refused() -> None:
    model, inputs, _ = model_and_inputs("llava")
    unbound = model.to_transformer_lens()
    with pytest.raises(InputError, match="without the image"):
        unbound.run_with_hooks(inputs["input_ids"], fwd_hooks=[])
    bridge = model.to_transformer_lens(inputs)
    with pytest.raises(InputError, match="bind inputs"):
        bridge.run_with_hooks(inputs["input_ids"][:, :-1], fwd_hooks=[])
    seen: list[Any] = []
    name = "blocks.0.hook_resid_mid"
    read = [(name, lambda value, hook: seen.append(value.shape))]
    bridge.run_with_hooks(inputs["input_ids"], fwd_hooks=read)
    assert len(seen) == 1
    with pytest.raises(SiteError, match="skip connection"):
        write = [(name, lambda value, hook: value * 0)]
        bridge.run_with_hooks(inputs["input_ids"], fwd_hooks=write)


@pytest.mark.parametrize("name", ["mllama", "internvl"])
def test_unsupported_families_are_named(name: str) -> None:
    with pytest.raises(ModelError, match=f"does not support the family {name}"):
        wrap(zoo.build(name)).to_transformer_lens()


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_plain_call_has_its_image_too(name: str) -> None:
    model, inputs, _ = model_and_inputs(name)
    bridge = model.to_transformer_lens(inputs)
    torch.testing.assert_close(bridge(inputs["input_ids"]), model(inputs), **EXACT)
    torch.testing.assert_close(bridge(input=inputs["input_ids"]), model(inputs), **EXACT)
    blind = model.to_transformer_lens()
    with pytest.raises(InputError, match="run without the image"):
        blind(inputs["input_ids"])
    with pytest.raises(InputError, match="read a text without its image"):
        bridge("is there a dog?")
    with pytest.raises(InputError, match="bind inputs that fit"):
        bridge(inputs["input_ids"][:, :-1])


def test_no_bridge_is_made_of_a_model_that_is_being_edited() -> None:
    model, inputs, _ = model_and_inputs("llava")
    with (
        model.edit({"text.0.z": torch.zeros_like}),
        pytest.raises(UsageError, match="leave that context first"),
    ):
        model.to_transformer_lens(inputs)
