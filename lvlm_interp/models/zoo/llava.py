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


CONFIGS = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
}
"""Options of a configuration, by `model_type`."""
