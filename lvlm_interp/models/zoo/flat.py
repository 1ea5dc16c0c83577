"""Tiny models whose towers lay all patches on one axis, beside those of Qwen-VL."""

from __future__ import annotations

from typing import Any

from lvlm_interp.models.zoo.parts import IMAGE, MROPE, text_config, vision_config
from lvlm_interp.models.zoo.qwen import qwen2_5_vl, qwen3_vl, qwen3_vl_moe


def video_llama_3() -> dict[str, Any]:
    """Options of `video_llama_3`."""
    return dict(
        vision_config=vision_config("video_llama_3_vision"),
        text_config=text_config("qwen2"),
        image_token_id=IMAGE,
        video_token_id=5,
    )


def paddleocr_vl() -> dict[str, Any]:
    """Options of `paddleocr_vl`."""
    return dict(
        vision_config=vision_config("paddleocr_vl_vision", spatial_merge_size=2, image_size=48),
        text_config=text_config("paddleocr_vl_text", head_dim=8, rope_parameters=MROPE),
        image_token_id=IMAGE,
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
    )


def exaone4_5() -> dict[str, Any]:
    """Options of `exaone4_5`."""
    vision = {**qwen2_5_vl()["vision_config"], "num_heads": 4, "num_key_value_heads": 2}
    kinds = ["sliding_attention", "full_attention"]
    return dict(
        vision_config={**vision, "hidden_size": 32},
        text_config=text_config("exaone4", head_dim=8, sliding_window=8, layer_types=kinds),
        image_token_id=IMAGE,
        video_token_id=5,
    )


AUDIO = {
    "num_mel_bins": 8,
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "output_dim": 32,
    "n_window": 4,
}


def qwen2_5_omni() -> dict[str, Any]:
    """Options of `qwen2_5_omni_thinker`."""
    return dict(
        vision_config=qwen2_5_vl()["vision_config"],
        text_config=text_config("qwen2_5_omni_text", rope_parameters=MROPE),
        audio_config=AUDIO,
        **_omni(),
    )


def qwen3_omni() -> dict[str, Any]:
    """Options of `qwen3_omni_moe_thinker`."""
    text = {**qwen3_vl_moe()["text_config"], "model_type": "qwen3_omni_moe_text"}
    return dict(
        vision_config=qwen3_vl()["vision_config"],
        text_config=text,
        audio_config={**AUDIO, "downsample_hidden_size": 8, "conv_chunksize": 8},
        **_omni(),
    )


def _omni() -> dict[str, Any]:
    return dict(image_token_id=IMAGE, video_token_id=5, audio_token_id=8, vision_start_token_id=6)


def hyperclovax() -> dict[str, Any]:
    """Options of `hyperclovax_vision_v2`."""
    vision = {"model_type": "qwen2_5_vl_vision", **qwen2_5_vl()["vision_config"]}
    text = text_config(
        "hyperclovax",
        head_dim=8,
        residual_multiplier=0.7,
        embedding_multiplier=2.0,
        attention_multiplier=0.3,
        logits_scaling=1.5,
        use_post_norm=True,
    )
    return dict(vision_config=vision, text_config=text, image_token_id=IMAGE, video_token_id=5)


CONFIGS = {
    "hyperclovax_vision_v2": hyperclovax,
    "video_llama_3": video_llama_3,
    "paddleocr_vl": paddleocr_vl,
    "exaone4_5": exaone4_5,
    "qwen2_5_omni_thinker": qwen2_5_omni,
    "qwen3_omni_moe_thinker": qwen3_omni,
}
"""Options of a configuration, by `model_type`."""
