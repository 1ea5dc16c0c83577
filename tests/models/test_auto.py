"""`family="auto"`: registered architectures are detected without their own description."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.models import zoo
from lvlm_interp.models.families import FAMILIES, auto
from lvlm_interp.models.inputs.sample import synthetic_inputs
from lvlm_interp.models.loading import wrap
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.models.proofs.runs import generation
from lvlm_interp.models.proofs.streams import reads, writes
from lvlm_interp.models.zoo.parts import IMAGE, text_config, vision_config
from tests.models.zoo import randomised, tiered

DETECTED = (
    "mistral3",
    "lighton_ocr",
    "vipllava",
    "aya_vision",
    "deepseek_vl",
    "glm4v",
    "glm4v_moe",
    "hyperclovax_vision_v2",
    "qianfan_ocr",
    "idefics3",
    "gemma3",
)
REFUSED = {
    "janus": "parts of no registered kind of block",
    "qwen3_vl": r"resid_post reads",
    "paligemma": "none of .* descriptions passes",
    "mllama": "gives no features",
    "llava_next": "no module gives",
    "blip-2": "is not of the common shape",
    "llama4": "is not of the common shape",
}


def known_without(kind: str) -> list[Any]:
    return [family for family in FAMILIES if kind not in family.model_types]


@pytest.mark.parametrize("kind", tiered(DETECTED, ("mistral3", "hyperclovax_vision_v2")))
def test_an_architecture_is_detected_by_what_others_are_made_of(kind: str) -> None:
    model = zoo.build(kind)
    family = auto.detect(model, known_without(kind))
    assert family.name == f"auto:{kind}"
    view = LVLM(model, None, family)
    inputs = synthetic_inputs(view)
    assert reads(view, inputs) <= 1e-5 and writes(view, inputs) <= 1e-5
    assert generation(view, inputs) == (5, 5)
    own = wrap(model)
    assert {str(site) for site in view.sites("text.*")} == {str(s) for s in own.sites("text.*")}
    with pytest.raises(InputError, match="was detected"):
        inputs.tokens[0].within((0, 0, 4, 4))


@pytest.mark.parametrize("kind", tiered(REFUSED, ("janus", "mllama")))
def test_what_cannot_be_proved_is_refused_with_what_failed(kind: str) -> None:
    with pytest.raises(ModelError, match=REFUSED[kind]):
        auto.detect(zoo.build(kind), known_without(kind))


def test_a_registered_architecture_keeps_its_own_family() -> None:
    model = wrap(zoo.build("llava"), family="auto")
    assert model.family.name == "llava"
    model.hf.config.model_type = "viper"
    with pytest.raises(ModelError, match='family="auto"'):
        wrap(model.hf)
    assert wrap(model.hf, family="auto").family.name == "auto:viper"


def test_a_description_that_is_wrong_is_found_out() -> None:
    model = zoo.build("llava")
    model.config.model_type = "viper"
    plain = model.model.language_model.layers[0].mlp.forward
    model.model.language_model.layers[0].mlp.forward = lambda value: -plain(value)
    with pytest.raises(ModelError, match=r"text\.0\.mlp_out"):
        wrap(model, family="auto")


def test_nothing_but_a_model_error_leaves_the_search() -> None:
    """Models of other shapes: no parts, parts without names, a tower of other code."""
    with pytest.raises(ModelError, match="common shape"):
        auto.detect(nn.Linear(2, 2), FAMILIES)
    fuyu = hf.FuyuConfig(text_config=text_config("persimmon"), vocab_size=320, hidden_size=32)
    for config in (fuyu, got_ocr2()):
        model = hf.AutoModelForImageTextToText.from_config(config)
        with pytest.raises(ModelError, match="common shape"):
            wrap(model.eval(), family="auto")


def got_ocr2() -> Any:
    vision = {
        "hidden_size": 24,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 64,
        "patch_size": 16,
        "mlp_dim": 40,
        "window_size": 2,
        "global_attn_indexes": [1],
    }
    return hf.GotOcr2Config(
        vision_config=vision, text_config=text_config("qwen2"), image_token_id=IMAGE
    )


def test_where_image_tokens_lie_is_not_guessed() -> None:
    config = hf.LlavaConfig(
        vision_config=vision_config("clip_vision_model"),
        text_config=text_config(),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
    )
    model = randomised(hf.LlavaForConditionalGeneration, config)
    model.config.model_type = "viper"
    view = wrap(model, family="auto")
    inputs = synthetic_inputs(view)
    assert view.towers["vision"].n_layers == 2 and len(inputs.tokens[0].image) == 16
    clean = view(inputs)
    with view.edit({"vision.1.resid_post": lambda value: value + torch.ones_like(value)}):
        assert (view(inputs) - clean).abs().max() > 0
