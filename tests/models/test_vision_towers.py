"""The vision towers that a LLaVA can have: reads, writes and places against the raw model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from lvlm_interp.errors import ModelError
from lvlm_interp.models.families import family_of
from lvlm_interp.models.families.blocks import VISION
from lvlm_interp.models.inputs.sample import synthetic_inputs
from lvlm_interp.models.loading import wrap
from lvlm_interp.models.selfcheck import self_check
from tests.models import zoo

DINO3 = {"hidden_size": 48, "num_register_tokens": 2}
TOWERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "clip": ("clip_vision_model", {}, 1),
    "siglip": ("siglip_vision_model", {"vision_use_head": False}, 0),
    "vit": ("vit", {}, 1),
    "dinov2": ("dinov2", {"mlp_ratio": 2}, 1),
    "dinov2_swiglu": ("dinov2", {"use_swiglu_ffn": True}, 1),
    "registers": ("dinov2_with_registers", {"mlp_ratio": 2, "num_register_tokens": 3}, 4),
    "dinov3": ("dinov3_vit", DINO3, 3),
    "dinov3_gated": ("dinov3_vit", {**DINO3, "use_gated_mlp": True}, 3),
}
"""Kind, changes of the tiny configuration, tokens before the first patch."""

EXACT = {"atol": 1e-5, "rtol": 1e-5}
FAST = ("dinov2", "registers")


def model_of(name: str, strategy: str, layer: int | list[int] = -2) -> Any:
    kind, changes, _ = TOWERS[name]
    config = hf.LlavaConfig(
        vision_config=zoo.vision_config(kind, **changes),
        text_config=zoo.text_config(),
        image_token_index=zoo.IMAGE,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    return wrap(zoo.randomised(hf.LlavaForConditionalGeneration, config))


def test_every_kind_of_tower_is_proved() -> None:
    assert {kind for kind, _, _ in TOWERS.values()} == set(VISION)


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("name", zoo.tiered(TOWERS, FAST))
def test_a_tower_reads_and_writes_what_the_raw_model_does(name: str, strategy: str) -> None:
    model = model_of(name, strategy)
    self_check(model)
    inputs = synthetic_inputs(model)
    _, cache = model.run_with_cache(inputs, ["vision.*.resid_*", "vision.*.*_out"])
    raw = model.hf.model.vision_tower
    with torch.no_grad():
        states = raw(inputs["pixel_values"], output_hidden_states=True).hidden_states
    assert model.towers["vision"].n_layers == 2
    for layer in range(2):
        for site, index in (("resid_pre", layer), ("resid_post", layer + 1)):
            torch.testing.assert_close(cache[f"vision.{layer}.{site}"], states[index], **EXACT)
        parts = sum(cache[f"vision.{layer}.{part}"] for part in ("attn_out", "mlp_out"))
        torch.testing.assert_close(parts, states[layer + 1] - states[layer], **EXACT)
    block = model.hf.model.vision_tower.get_submodule(f"{VISION[TOWERS[name][0]].layers}.1")
    bare = block.forward
    block.forward = lambda *args, **kwargs: bare(*args, **kwargs) + 0.3
    expected = model.hf(**inputs, use_cache=False).logits.detach()
    del block.forward
    with model.edit({"vision.1.resid_post": lambda value: value + 0.3}):
        torch.testing.assert_close(model(inputs), expected, **EXACT)
    with model.edit({"vision.1.attn_out": lambda value: value + 0.3}):
        torch.testing.assert_close(
            model.run_with_cache(inputs, "vision.1.resid_mid")[1]["vision.1.resid_mid"],
            cache["vision.1.resid_mid"] + 0.3,
            **EXACT,
        )


@pytest.mark.parametrize("strategy", ["default", "full"])
@pytest.mark.parametrize("name", zoo.tiered(TOWERS, FAST))
def test_the_pixels_of_a_patch_move_its_token_and_no_other(name: str, strategy: str) -> None:
    model = model_of(name, strategy)
    inputs = synthetic_inputs(model)
    tokens = inputs.tokens[0]
    leading = TOWERS[name][2] - (strategy == "default")
    assert int((tokens.kind == "query").sum()) == max(leading, 0)
    assert len(tokens.image) == 16 + leading

    def embeds(tensors: Any) -> torch.Tensor:
        with model.edit({"vision.*.attn_out": torch.zeros_like}):
            return model.run_with_cache(tensors, "text.embed")[1]["text.embed"][0]

    before = embeds(inputs)
    for row, col in ((0, 1), (1, 3), (3, 0)):
        pixels = inputs["pixel_values"].clone()
        pixels[..., row * 6 : row * 6 + 6, col * 6 : col * 6 + 6] += 1
        moved = embeds({**inputs, "pixel_values": pixels}) - before
        found = np.flatnonzero(moved.abs().amax(-1).numpy() > 0)
        box = (col * 6, row * 6, col * 6 + 6, row * 6 + 6)
        np.testing.assert_array_equal(found, tokens.within(box))
        assert len(found) == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_the_tiled_families_choose_their_tower_too(family: str) -> None:
    config = zoo.BUILDERS[family]().config
    config.vision_config = hf.Dinov2Config(**zoo.vision_config("dinov2"), mlp_ratio=2)
    config.vision_feature_select_strategy = "default"
    self_check(wrap(zoo.randomised(type(zoo.BUILDERS[family]()), config)))


def test_an_unknown_tower_is_named() -> None:
    config = hf.LlavaConfig(
        vision_config=zoo.vision_config("clip_vision_model"), text_config=zoo.text_config()
    )
    config.vision_config.model_type = "beit"
    with pytest.raises(ModelError, match=r"vision tower 'beit' is not supported.*dinov2"):
        family_of(config)
