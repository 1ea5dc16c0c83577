"""A tiny random-weight model of every family, built from configurations alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

IMAGE = 4
"""Id of the image placeholder in every tiny model."""

SPECIALS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VOCAB = 320


def text_config(kind: str = "llama", **changes: Any) -> dict[str, Any]:
    """A language model of two layers, with two key-value heads for four heads."""
    return {
        "model_type": kind,
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        **SPECIALS,
        **changes,
    }


def vision_config(kind: str, **changes: Any) -> dict[str, Any]:
    """A vision tower of three layers over 24 x 24 pixels in patches of 6."""
    return {
        "model_type": kind,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": 24,
        "patch_size": 6,
        **changes,
    }


def llava() -> Any:
    config = hf.LlavaConfig(
        vision_config=vision_config("clip_vision_model"),
        text_config=text_config(),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
    )
    return hf.LlavaForConditionalGeneration(config)


PINPOINTS = [[24, 48], [48, 24], [48, 48]]


def llava_next() -> Any:
    config = hf.LlavaNextConfig(
        vision_config=vision_config("clip_vision_model"),
        text_config=text_config(),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        image_grid_pinpoints=PINPOINTS,
    )
    return hf.LlavaNextForConditionalGeneration(config)


def llava_onevision() -> Any:
    config = hf.LlavaOnevisionConfig(
        vision_config=vision_config("siglip_vision_model", vision_use_head=False),
        text_config=text_config("qwen2"),
        image_token_index=IMAGE,
        video_token_index=5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=PINPOINTS,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config)


QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": 5,
    "vision_start_token_id": 6,
    "vision_end_token_id": 7,
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def qwen2_vl() -> Any:
    config = hf.Qwen2VLConfig(
        vision_config={
            "depth": 3,
            "embed_dim": 24,
            "hidden_size": 32,
            "num_heads": 3,
            "mlp_ratio": 2,
            "patch_size": 6,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        text_config=text_config("qwen2_vl_text", rope_parameters=MROPE),
        **QWEN_IDS,
    )
    return hf.Qwen2VLForConditionalGeneration(config)


def qwen2_5_vl() -> Any:
    config = hf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 24,
            "out_hidden_size": 32,
            "intermediate_size": 40,
            "num_heads": 3,
            "patch_size": 6,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 24,
            "fullatt_block_indexes": [1],
        },
        text_config=text_config("qwen2_5_vl_text", rope_parameters=MROPE),
        **QWEN_IDS,
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl() -> Any:
    config = hf.Qwen3VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 24,
            "out_hidden_size": 32,
            "intermediate_size": 40,
            "num_heads": 3,
            "patch_size": 6,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config=text_config(
            "qwen3_vl_text",
            num_hidden_layers=3,
            head_dim=8,
            rope_parameters={**MROPE, "mrope_interleaved": True, "mrope_section": [2, 1, 1]},
        ),
        **QWEN_IDS,
    )
    return hf.Qwen3VLForConditionalGeneration(config)


def idefics3() -> Any:
    config = hf.Idefics3Config(
        vision_config=vision_config("idefics3_vision"),
        text_config=text_config(),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    return hf.Idefics3ForConditionalGeneration(config)


def smolvlm() -> Any:
    config = hf.SmolVLMConfig(
        vision_config=vision_config("smolvlm_vision"),
        text_config=text_config(),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    return hf.SmolVLMForConditionalGeneration(config)


def paligemma() -> Any:
    config = hf.PaliGemmaConfig(
        vision_config=vision_config(
            "siglip_vision_model", vision_use_head=False, projection_dim=32
        ),
        text_config=text_config("gemma", head_dim=8),
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def gemma3() -> Any:
    config = hf.Gemma3Config(
        vision_config=vision_config("siglip_vision_model", vision_use_head=False),
        text_config=text_config(
            "gemma3_text",
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=6,
        eoi_token_index=7,
    )
    return hf.Gemma3ForConditionalGeneration(config)


def internvl() -> Any:
    config = hf.InternVLConfig(
        vision_config=vision_config(
            "internvl_vision", image_size=[24, 24], patch_size=[6, 6], use_qk_norm=True
        ),
        text_config=text_config("qwen2"),
        image_token_id=IMAGE,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return hf.InternVLForConditionalGeneration(config)


ASPECTS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]


def mllama() -> Any:
    config = hf.MllamaConfig(
        vision_config={
            "hidden_size": 24,
            "attention_heads": 3,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_global_layers": 2,
            "image_size": 24,
            "patch_size": 6,
            "max_num_tiles": 4,
            "supported_aspect_ratios": ASPECTS,
            "intermediate_layers_indices": [0, 2],
            "vision_output_dim": 72,
        },
        text_config=text_config(
            "mllama_text_model",
            num_hidden_layers=3,
            cross_attention_layers=[1],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        image_token_index=IMAGE,
    )
    return hf.MllamaForConditionalGeneration(config)


def _blip_parts(vision: str, qformer: str) -> dict[str, Any]:
    return {
        "vision_config": vision_config(vision),
        "qformer_config": {
            "model_type": qformer,
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "cross_attention_frequency": 2,
            "encoder_hidden_size": 24,
            "max_position_embeddings": 64,
        },
        "text_config": {
            "model_type": "opt",
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            **SPECIALS,
        },
        "num_query_tokens": 5,
        "image_token_index": IMAGE,
    }


def blip_2() -> Any:
    config = hf.Blip2Config(**_blip_parts("blip_2_vision_model", "blip_2_qformer"))
    return hf.Blip2ForConditionalGeneration(config)


def instructblip() -> Any:
    config = hf.InstructBlipConfig(
        **_blip_parts("instructblip_vision_model", "instructblip_qformer")
    )
    return hf.InstructBlipForConditionalGeneration(config)


BUILDERS: dict[str, Callable[[], Any]] = {
    builder.__name__: builder
    for builder in (
        llava,
        llava_next,
        llava_onevision,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        idefics3,
        smolvlm,
        paligemma,
        gemma3,
        internvl,
        mllama,
        blip_2,
        instructblip,
    )
}
"""By the name of the family."""


def build(name: str, seed: int = 0) -> Any:
    """A tiny model in evaluation mode, with weights large enough for every path to matter."""
    torch.manual_seed(seed)
    model = _stirred(BUILDERS[name]())
    model.generation_config = hf.GenerationConfig(**SPECIALS, do_sample=False)
    return model.eval()


def randomised(kind: Any, config: Any) -> Any:
    """A model of a class and a configuration, in the same way."""
    torch.manual_seed(0)
    return _stirred(kind(config)).eval()


def _stirred(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            _randomise(parameter)
    return model


def _randomise(parameter: nn.Parameter) -> None:
    if parameter.ndim > 1:
        parameter.normal_(0, 0.8 / parameter[0].numel() ** 0.5)
    else:
        parameter.add_(torch.randn_like(parameter) * 0.1)


FAST = ("llava", "qwen3_vl", "gemma3", "mllama", "instructblip")
"""One family of each special kind; the others prove the same in the second tier."""


def tiered(names: Iterable[str], fast: Sequence[str] = FAST) -> list[Any]:
    """Parameters of a test over families."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]
