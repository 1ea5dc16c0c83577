"""`family="auto"`: an unregistered architecture of the common shape, found by its parts.

The common shape is a vision tower of CLIP-like blocks, a projector, and a decoder of Llama-like
blocks into whose embeddings the image features are merged. What is found is a proposal: the
self-check decides. Where image tokens lie in the image is not guessed.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import nn

from lvlm_interp.errors import ModelError
from lvlm_interp.models.families.blocks import with_text
from lvlm_interp.models.families.geometry import (
    made_of,
    random_pixels,
    square,
    tokens_without_place,
)
from lvlm_interp.models.family import CLIP_BLOCK, Block, Family, ImageContext, Tower
from lvlm_interp.tokens import ImageLayout

VISION = tuple(
    f"{prefix}{tower}.{inner}"
    for prefix in ("model.", "")
    for tower in ("vision_tower", "vision_model", "visual")
    for inner in ("encoder.layers", "vision_model.encoder.layers", "layers", "blocks")
)
TEXT = ("model.language_model", "language_model.model", "model.text_model", "model")
PROJECTORS = tuple(
    f"{prefix}{name}"
    for prefix in ("model.", "")
    for name in ("multi_modal_projector", "connector", "mm_projector", "aligner", "merger")
)
LLAMA_BLOCK = Block()
SHAPES = {"CLIP": CLIP_BLOCK, "Llama": LLAMA_BLOCK}
NOTE = "the architecture was detected, so where its image tokens lie in the image is not known"


def detect(hf: Any) -> Family:
    """The family of a model of the common shape.

    Raises:
        ModelError: A part was not found; the message says which, and where it was looked for.
    """
    vision = _first(hf, VISION, "a vision tower's list of blocks")
    text = _first(hf, tuple(f"{path}.layers" for path in TEXT), "a decoder's list of blocks")
    decoder = text.removesuffix(".layers")
    projector = _first(hf, PROJECTORS, "a projector")
    image_token = _image_token(hf.config)
    count = _token_count(hf)
    found = Family(
        name=f"auto:{hf.config.model_type}",
        model_types=(hf.config.model_type,),
        towers=(
            Tower("vision", vision, "vision_config", _shape(hf, vision), n_read=_n_read),
            Tower("text", text, "text_config", _shape(hf, text)),
        ),
        layout=lambda context: _layout(context, image_token, count),
        projector=projector,
        embed=(decoder, "inputs_embeds"),
        final_norm=_first(hf, (f"{decoder}.norm", f"{decoder}.final_layernorm"), "a final norm"),
        lm_head=_first(hf, ("lm_head", "language_model.lm_head"), "an unembedding"),
        image_token=image_token,
        pixels=_pixels,
        special="detected, not registered: " + NOTE,
    )
    return with_text(found, hf.config)


def _first(hf: nn.Module, paths: tuple[str, ...], what: str) -> str:
    for path in paths:
        try:
            if attrgetter(path)(hf) is not None:
                return path
        except AttributeError:
            continue
    raise ModelError(
        f"{type(hf).__name__} is not of the common shape: {what} is at none of {', '.join(paths)}."
    )


def _shape(hf: nn.Module, path: str) -> Block:
    block = attrgetter(path)(hf)[0]
    for shape in SHAPES.values():
        paths = (shape.attn, shape.q, shape.k, shape.v, shape.o, shape.mlp_norm, shape.down)
        if all(_has(block, each) for each in paths):
            return shape
    raise ModelError(
        f"{type(hf).__name__} is not of the common shape: the blocks at {path} "
        f"({type(block).__name__}) have the parts of neither {' nor '.join(SHAPES)} blocks."
    )


def _has(block: nn.Module, path: str) -> bool:
    try:
        return attrgetter(path)(block) is not None
    except AttributeError:
        return False


def _image_token(config: Any) -> str:
    for name in ("image_token_id", "image_token_index"):
        if getattr(config, name, None) is not None:
            return name
    raise ModelError(
        f"The configuration of {config.model_type!r} names no image placeholder: it is not of the "
        "common shape."
    )


def _n_read(config: Any, n_layers: int) -> int:
    for name in ("vision_feature_layer", "vision_feature_layers"):
        layers = getattr(config, name, None)
        if layers is not None:
            indices = [layers] if isinstance(layers, int) else list(layers)
            return max(index if index >= 0 else n_layers + 1 + index for index in indices)
    return n_layers


def _pixels(config: Any) -> dict[str, Any]:
    side = square(config.vision_config)
    return {"pixel_values": random_pixels(1, 3, side, side)}


@torch.no_grad()
def _token_count(hf: Any) -> int:
    """Image tokens of one image, by asking the model for its features."""
    pixels = _pixels(hf.config)["pixel_values"].to(hf.device, hf.dtype)
    try:
        out = hf.get_image_features(pixel_values=pixels, return_dict=True)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"{type(hf).__name__} is not of the common shape: it gives no features of an image of "
            f"{tuple(pixels.shape)} ({error})."
        ) from error
    features = out.pooler_output
    return sum(len(part) if part.ndim == 2 else part.shape[-2] for part in features)


def _layout(context: ImageContext, token: str, count: int) -> list[ImageLayout]:
    ids = context.tensors.get("input_ids")
    n_images = len(context.sizes)
    if ids is not None:
        image = getattr(context.config, token)
        count = int((ids[context.row] == image).sum()) // max(n_images, 1)
    plain = tokens_without_place(count, "image", NOTE)
    known = made_of(plain, {"projector": np.arange(count)}, {"projector": count})
    return [known for _ in range(n_images)]
