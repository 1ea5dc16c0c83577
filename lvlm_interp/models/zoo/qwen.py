"""Tiny models with a tower like that of Qwen2-VL."""

from __future__ import annotations

from typing import Any

from lvlm_interp.models.zoo.parts import MROPE, QWEN_IDS, text_config


def qwen2_vl() -> dict[str, Any]:
    """Options of `qwen2_vl`."""
    return dict(
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


def qwen2_5_vl() -> dict[str, Any]:
    """Options of `qwen2_5_vl`."""
    return dict(
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


def qwen3_vl() -> dict[str, Any]:
    """Options of `qwen3_vl`."""
    return dict(
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


CONFIGS = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
}
"""Options of a configuration, by `model_type`."""
