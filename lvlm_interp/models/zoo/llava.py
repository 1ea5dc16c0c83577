"""Tiny LLaVA-shaped models."""

from __future__ import annotations

from typing import Any

from lvlm_interp.models.zoo.parts import IMAGE, PINPOINTS, text_config, vision_config


def llava() -> dict[str, Any]:
    """Options of `llava`."""
    return dict(
        vision_config=vision_config("clip_vision_model"),
        text_config=text_config(),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
    )


def llava_next() -> dict[str, Any]:
    """Options of `llava_next`."""
    return dict(
        vision_config=vision_config("clip_vision_model"),
        text_config=text_config(),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        image_grid_pinpoints=PINPOINTS,
    )


def llava_onevision() -> dict[str, Any]:
    """Options of `llava_onevision`."""
    return dict(
        vision_config=vision_config("siglip_vision_model", vision_use_head=False),
        text_config=text_config("qwen2"),
        image_token_index=IMAGE,
        video_token_index=5,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        image_grid_pinpoints=PINPOINTS,
    )


def vipllava() -> dict[str, Any]:
    """Options of `vipllava`."""
    return dict(
        vision_config=vision_config("clip_vision_model"),
        text_config=text_config(),
        vision_feature_layer=[-2, 1],
        image_token_index=IMAGE,
    )


def llava_next_video() -> dict[str, Any]:
    """Options of `llava_next_video`."""
    return dict(llava_next(), video_token_index=5)


def _pixtral() -> dict[str, Any]:
    return vision_config("pixtral", head_dim=8, image_size=48)


def mistral3() -> dict[str, Any]:
    """Options of `mistral3`."""
    return dict(
        vision_config=_pixtral(),
        text_config=text_config("mistral", head_dim=8),
        spatial_merge_size=2,
        vision_feature_layer=-1,
        image_token_index=IMAGE,
    )


def lighton_ocr() -> dict[str, Any]:
    """Options of `lighton_ocr`."""
    return dict(
        vision_config=_pixtral(),
        text_config=text_config("qwen3", head_dim=8),
        spatial_merge_size=2,
        image_token_id=IMAGE,
    )


def aya_vision() -> dict[str, Any]:
    """Options of `aya_vision`."""
    return dict(
        vision_config=vision_config("siglip_vision_model", vision_use_head=False),
        text_config=_cohere(),
        downsample_factor=2,
        alignment_intermediate_size=40,
        image_token_index=IMAGE,
    )


def cohere2_vision() -> dict[str, Any]:
    """Options of `cohere2_vision`."""
    return dict(
        vision_config=vision_config("siglip_vision_model", vision_use_head=False),
        text_config=_cohere(),
        downsample_factor=2,
        alignment_intermediate_size=40,
        image_token_id=IMAGE,
    )


def _cohere() -> dict[str, Any]:
    kinds = ["sliding_attention", "full_attention"]
    return text_config("cohere2", head_dim=8, sliding_window=8, layer_types=kinds)


def deepseek_vl() -> dict[str, Any]:
    """Options of `deepseek_vl`."""
    return dict(
        vision_config=vision_config("siglip_vision_model", vision_use_head=False),
        text_config=text_config(),
        image_token_id=IMAGE,
    )


def janus() -> dict[str, Any]:
    """Options of `janus`."""
    return dict(
        vision_config=vision_config("janus_vision_model", mlp_ratio=2, projection_dim=32, depth=1),
        vq_config=dict(
            embed_dim=8,
            num_embeddings=8,
            base_channels=32,
            latent_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            num_hidden_layers=1,
            projection_dim=32,
            image_token_embed_dim=32,
        ),
        text_config=text_config(),
        image_token_id=IMAGE,
    )


CONFIGS = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "vipllava": vipllava,
    "llava_next_video": llava_next_video,
    "mistral3": mistral3,
    "lighton_ocr": lighton_ocr,
    "aya_vision": aya_vision,
    "cohere2_vision": cohere2_vision,
    "deepseek_vl": deepseek_vl,
    "janus": janus,
}
"""Options of a configuration, by `model_type`."""
