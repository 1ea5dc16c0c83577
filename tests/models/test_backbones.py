"""Families with language models of other makes: what is said of their blocks holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from lvlm_interp.errors import ModelError
from lvlm_interp.models.families.blocks import TEXT
from lvlm_interp.models.inputs.sample import synthetic_inputs
from lvlm_interp.models.loading import wrap
from lvlm_interp.models.selfcheck import inspect
from lvlm_interp.models.zoo import randomised
from lvlm_interp.models.zoo.parts import text_config, vision_config
from tests.models import zoo

GRANITE = {
    "residual_multiplier": 0.22,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.35,
    "logits_scaling": 8.0,
}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CHANGES: dict[str, dict[str, Any]] = {
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "vaultgemma": GEMMA,
    "olmo2": {},
    "olmo3": {},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 2},
    "glm4": {"head_dim": 8},
    "granite": GRANITE,
    "starcoder2": {},
    "cohere": {},
    "cohere2": {"sliding_window": 8, "layer_types": ["full_attention"] * 2},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS,
    "hyperclovax": {},
}
REFUSED = {"granite_swa": GRANITE, "phi": {}, "phi3": {}, "gpt_neox": {}}


def llava_with(kind: str, **changes: Any) -> Any:
    """A tiny LLaVA with another language model."""
    config = hf.LlavaConfig(
        vision_config=vision_config("clip_vision_model"),
        text_config=text_config(kind, **changes),
        image_token_index=zoo.IMAGE,
        vision_feature_layer=-2,
    )
    return randomised(hf.LlavaForConditionalGeneration, config)


def paligemma2() -> Any:
    config = hf.PaliGemmaConfig(
        vision_config=vision_config(
            "siglip_vision_model", vision_use_head=False, projection_dim=32
        ),
        text_config=text_config("gemma2", **GEMMA),
        image_token_index=zoo.IMAGE,
        projection_dim=32,
        hidden_size=32,
    )
    return randomised(hf.PaliGemmaForConditionalGeneration, config)


def test_every_language_model_of_the_table_is_proved_or_refused() -> None:
    assert set(TEXT) <= {*CHANGES, *REFUSED}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [*CHANGES, "paligemma2"])
def test_what_a_block_adds_is_what_the_sites_say(kind: str, dtype: torch.dtype) -> None:
    net = paligemma2() if kind == "paligemma2" else llava_with(kind, **CHANGES[kind])
    model = wrap(net.to(dtype), selfcheck=False)
    assert inspect(model).failed == []
    inputs = synthetic_inputs(model)
    _, cache = model.run_with_cache(inputs, "text.*")
    hidden = net(**inputs.tensors, use_cache=False, output_hidden_states=True).hidden_states
    bound = 1e-5 if dtype is torch.float32 else 5e-2
    for layer in range(2):
        stream = cache[f"text.{layer}.resid_pre"]
        gap = (stream - hidden[layer].detach()).abs().max()
        assert gap <= bound * stream.abs().max()
        added = cache[f"text.{layer}.attn_out"] + cache[f"text.{layer}.mlp_out"]
        gap = (stream + added - cache[f"text.{layer}.resid_post"]).abs().max()
        assert gap <= bound * cache[f"text.{layer}.resid_post"].abs().max()


@pytest.mark.parametrize("kind", list(REFUSED))
def test_what_has_not_these_blocks_is_refused_in_one_sentence(kind: str) -> None:
    with pytest.raises(ModelError, match=r"^[^\n]+\.$"):
        wrap(llava_with(kind, **REFUSED[kind]))
