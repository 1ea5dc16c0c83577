"""Tiny models that read the image by cross-attention."""

from __future__ import annotations

from typing import Any

from lvlm_interp.models.zoo.parts import IMAGE, SPECIALS, VOCAB, text_config, vision_config

ASPECTS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]


def mllama() -> dict[str, Any]:
    """Options of `mllama`."""
    return dict(
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


def blip_2() -> dict[str, Any]:
    """Options of `blip_2`."""
    return _blip_parts("blip_2_vision_model", "blip_2_qformer")


def instructblip() -> dict[str, Any]:
    """Options of `instructblip`."""
    return _blip_parts("instructblip_vision_model", "instructblip_qformer")


CONFIGS = {
    "mllama": mllama,
    "blip-2": blip_2,
    "instructblip": instructblip,
}
"""Options of a configuration, by `model_type`."""
