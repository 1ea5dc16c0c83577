"""One small input for any model, for the self-check: a random image with a few words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.models.family import ImageContext
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.maps import video_tokens

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM


def sample_inputs(model: LVLM) -> Inputs:
    """A random image with a short prompt, by the model's processor or made from its configuration.

    Raises:
        ModelError: Neither is possible.
    """
    if model.processor is not None:
        noise = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
        try:
            made = model.prepare([(Image.fromarray(noise), "What is in the image ?")])
        except (InputError, ValueError, TypeError, AttributeError):
            # A processor that needs its own prompt format is no reason to leave a model unchecked.
            return synthetic_inputs(model)
        return made if _is_small(model, made) else synthetic_inputs(model)
    return synthetic_inputs(model)


def _is_small(model: LVLM, made: Inputs) -> bool:
    """Whether a processor makes about as few pixels of an image as the model can take.

    Some enlarge every image and cut it into many tiles.
    """
    try:
        least = model.family.pixels(model.config)["pixel_values"].numel()
    except ModelError:
        return True
    return made["pixel_values"].numel() <= 4 * least


def synthetic_inputs(model: LVLM, n_text: int = 6) -> Inputs:
    """The same without a processor: random pixels and random words around the placeholders."""
    config, family = model.config, model.family
    generator = torch.Generator().manual_seed(0)
    tensors = family.pixels(config)
    layouts = family.layout(ImageContext(config, None, tensors, 0, (None,), 0))
    image = getattr(config, family.image_token)
    d_vocab = model.d_vocab
    words = torch.randint(5, d_vocab, (n_text,), generator=generator)
    words[torch.isin(words, torch.tensor([image, *video_tokens(config)]))] = 4
    half = n_text // 2
    slots = torch.full((sum(len(layout) for layout in layouts),), image)
    ids = torch.cat([words[:half], slots, words[half:]])[None]
    tensors |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in family.needs:
            tensors[name] = (ids == image).long()
    if "qformer_input_ids" in family.needs:
        tensors["qformer_input_ids"] = words[None, :half]
        tensors["qformer_attention_mask"] = torch.ones_like(words[None, :half])
    if "cross_attention_mask" in family.needs:
        sees = (ids == image).cumsum(-1).clamp(max=1)[..., None, None]
        tensors["cross_attention_mask"] = sees * tensors["aspect_ratio_mask"][:, None]
    try:
        return model.as_inputs(tensors)
    except InputError as error:
        raise ModelError(
            f"No input could be made for {model.name}: {error} Pass inputs to the self-check."
        ) from error
