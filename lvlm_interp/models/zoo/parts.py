"""What the tiny configurations are made of."""

from __future__ import annotations

from typing import Any

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


PINPOINTS = [[24, 48], [48, 24], [48, 48]]
"""Resolutions of the tiled families."""

QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": 5,
    "vision_start_token_id": 6,
    "vision_end_token_id": 7,
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
