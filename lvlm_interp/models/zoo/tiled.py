"""Tiny models that cut an image into tiles."""

from __future__ import annotations

from typing import Any

from lvlm_interp.models.zoo.parts import IMAGE, text_config, vision_config


def idefics3() -> dict[str, Any]:
    """Options of `idefics3`."""
    return dict(
        vision_config=vision_config("idefics3_vision"),
        text_config=text_config(),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )


def smolvlm() -> dict[str, Any]:
    """Options of `smolvlm`."""
    return dict(
        vision_config=vision_config("smolvlm_vision"),
        text_config=text_config(),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )


def internvl() -> dict[str, Any]:
    """Options of `internvl`."""
    return dict(
        vision_config=vision_config(
            "internvl_vision", image_size=[24, 24], patch_size=[6, 6], use_qk_norm=True
        ),
        text_config=text_config("qwen2"),
        image_token_id=IMAGE,
        image_seq_length=4,
        downsample_ratio=0.5,
    )


def qianfan_ocr() -> dict[str, Any]:
    """Options of `qianfan_ocr`."""
    parts = internvl()
    vision = {**parts["vision_config"], "model_type": "qianfan_ocr_vision", "use_qk_norm": False}
    return dict(parts, vision_config=vision, text_config=text_config("qwen3", head_dim=8))


def llama4() -> dict[str, Any]:
    """Options of `llama4`."""
    return dict(
        vision_config=vision_config(
            "llama4_vision_model",
            intermediate_size=96,
            vision_output_dim=24,
            projector_input_dim=24,
            projector_output_dim=24,
            pixel_shuffle_ratio=0.5,
        ),
        text_config=text_config(
            "llama4_text",
            head_dim=8,
            intermediate_size_mlp=48,
            num_local_experts=2,
            num_experts_per_tok=1,
            interleave_moe_layer_step=2,
            layer_types=["chunked_attention", "full_attention"],
            attention_chunk_size=16,
        ),
        image_token_index=IMAGE,
    )


def ovis2() -> dict[str, Any]:
    """Options of `ovis2`."""
    return dict(
        vision_config=vision_config(
            "ovis2_vision", vocab_size=32, hidden_stride=2, num_visual_indicator_tokens=3
        ),
        text_config=text_config("qwen2"),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[6, 7, 8],
        vocab_size=320,
        hidden_size=32,
    )


CONFIGS = {
    "qianfan_ocr": qianfan_ocr,
    "llama4": llama4,
    "ovis2": ovis2,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "internvl": internvl,
}
"""Options of a configuration, by `model_type`."""
