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


CONFIGS = {
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "internvl": internvl,
}
"""Options of a configuration, by `model_type`."""
