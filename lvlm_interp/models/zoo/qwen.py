"""Tiny models with a tower like that of Qwen2-VL."""

from __future__ import annotations

from typing import Any

from lvlm_interp.models.zoo.parts import IMAGE, MROPE, QWEN_IDS, text_config


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


INTERLEAVED = {**MROPE, "mrope_interleaved": True, "mrope_section": [2, 1, 1]}


def _experts(**names: Any) -> dict[str, Any]:
    return {"num_experts_per_tok": 2, "moe_intermediate_size": 16, **names}


def qwen3_vl_moe() -> dict[str, Any]:
    """Options of `qwen3_vl_moe`."""
    return dict(
        qwen3_vl(),
        text_config=text_config(
            "qwen3_vl_moe_text",
            num_hidden_layers=3,
            head_dim=8,
            rope_parameters=INTERLEAVED,
            mlp_only_layers=[1],
            **_experts(num_experts=4),
        ),
    )


def cosmos3_omni() -> dict[str, Any]:
    """Options of `cosmos3_omni`."""
    parts = qwen3_vl()
    return dict(parts, vision_config={"model_type": "qwen3_vl_vision", **parts["vision_config"]})


LINEAR = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["full_attention", "linear_attention"],
}


def _qwen3_5(kind: str, **more: Any) -> dict[str, Any]:
    vision = {k: v for k, v in qwen3_vl()["vision_config"].items() if not k.startswith("deep")}
    text = text_config(kind, head_dim=8, rope_parameters=INTERLEAVED, **LINEAR, **more)
    return dict(vision_config=vision, text_config=text, **QWEN_IDS)


def qwen3_5() -> dict[str, Any]:
    """Options of `qwen3_5`."""
    return _qwen3_5("qwen3_5_text")


def qwen3_5_moe() -> dict[str, Any]:
    """Options of `qwen3_5_moe`."""
    return _qwen3_5(
        "qwen3_5_moe_text", shared_expert_intermediate_size=16, **_experts(num_experts=4)
    )


GLM_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": 5,
    "image_start_token_id": 6,
    "image_end_token_id": 7,
    "video_start_token_id": 8,
    "video_end_token_id": 9,
}


def _glm(vision: str, text: str, **more: Any) -> dict[str, Any]:
    return dict(
        vision_config={
            "model_type": vision,
            "depth": 3,
            "hidden_size": 24,
            "out_hidden_size": 32,
            "intermediate_size": 40,
            "num_heads": 3,
            "patch_size": 6,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "image_size": 48,
        },
        text_config=text_config(text, **{"head_dim": 8, "rope_parameters": MROPE, **more}),
        **GLM_IDS,
    )


def glm4v() -> dict[str, Any]:
    """Options of `glm4v`, and of the architectures that share its parts."""
    return _glm("glm4v_vision", "glm4v_text")


def glm_ocr() -> dict[str, Any]:
    """Options of `glm_ocr`."""
    return _glm("glm_ocr_vision", "glm_ocr_text")


def glm4v_moe() -> dict[str, Any]:
    """Options of `glm4v_moe`."""
    experts = _experts(n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1)
    rope = {**MROPE, "partial_rotary_factor": 1.0}
    experts |= {"n_group": 1, "topk_group": 1, "rope_parameters": rope}
    return _glm("glm4v_moe_vision", "glm4v_moe_text", **experts)


CONFIGS = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "cosmos3_omni": cosmos3_omni,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
    "glm4v": glm4v,
    "glm46v": glm4v,
    "glmga": glm4v,
    "glm_ocr": glm_ocr,
    "glm4v_moe": glm4v_moe,
}
"""Options of a configuration, by `model_type`."""
