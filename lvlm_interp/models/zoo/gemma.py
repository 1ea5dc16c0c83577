"""Tiny models of the Gemma line."""

from __future__ import annotations

from typing import Any

from lvlm_interp.models.zoo.parts import IMAGE, text_config, vision_config


def paligemma() -> dict[str, Any]:
    """Options of `paligemma`."""
    return dict(
        vision_config=vision_config(
            "siglip_vision_model", vision_use_head=False, projection_dim=32
        ),
        text_config=text_config("gemma", head_dim=8),
        image_token_index=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )


def gemma3() -> dict[str, Any]:
    """Options of `gemma3`."""
    return dict(
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


CONFIGS = {
    "paligemma": paligemma,
    "gemma3": gemma3,
    "shieldgemma2": gemma3,
}
"""Options of a configuration, by `model_type`."""
