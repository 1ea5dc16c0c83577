"""What each position of a batch is, and a check that its images and placeholders fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

import numpy as np
from torch import Tensor

from lvlm_interp.errors import InputError
from lvlm_interp.models.family import Family, ImageContext
from lvlm_interp.spans import Written
from lvlm_interp.tokens import ImageLayout, TokenMap


def check(
    family: Family, config: Any, tensors: Mapping[str, Any], required: Collection[str] = ()
) -> None:
    """Refuse inputs that would run without their image, or an image that has no place.

    Args:
        family: Of the model.
        config: Of the model.
        tensors: The model's inputs.
        required: Names without which its forward cannot be called.

    Raises:
        InputError: No ids; placeholders without pixels (or a missing companion input); pixels
            without placeholders; a prompt without an image where the model takes none; a video.
    """
    if tensors.get("input_ids") is None:
        raise InputError("The inputs have no 'input_ids': pass the model's own inputs by name.")
    _refuse_videos(config, tensors)
    if needed := sorted(name for name in required if tensors.get(name) is None):
        raise InputError(
            f"The architecture {family.name} takes no prompt without {', '.join(needed)}: give "
            "every row an image."
        )
    slots = count_slots(family, config, tensors["input_ids"])
    missing = [name for name in family.needs if tensors.get(name) is None]
    if slots and missing:
        raise InputError(
            f"The prompt holds {slots} image placeholders but {', '.join(missing)} is missing: "
            "a run without its image is refused. Build the inputs with model.prepare()."
        )
    if not slots and tensors.get("pixel_values") is not None:
        raise InputError(
            "There is an image but the prompt holds no image placeholder, so nothing would read "
            "it: put the image into the chat template, or let model.prepare() do so."
        )


def _refuse_videos(config: Any, tensors: Mapping[str, Any]) -> None:
    marks = sum(int((tensors["input_ids"] == token).sum()) for token in video_tokens(config))
    if marks or tensors.get("pixel_values_videos") is not None:
        raise InputError(
            f"There is a video in the inputs ({marks} placeholders): videos are not read here, and "
            "a placeholder without one would run blind. Give its frames as images."
        )


def video_tokens(config: Any) -> list[int]:
    """Ids that stand for a video in a prompt."""
    found = (getattr(config, name, None) for name in ("video_token_id", "video_token_index"))
    return [token for token in found if isinstance(token, int)]


def required_inputs(hf: Any) -> frozenset[str]:
    """Inputs without which the forward of a model cannot be called."""
    parameters = signature(type(hf).forward).parameters.items()
    kinds = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return frozenset(
        name
        for name, each in parameters
        if name != "self" and each.default is Parameter.empty and each.kind not in kinds
    )


def count_slots(family: Family, config: Any, input_ids: Tensor) -> int:
    """Number of image placeholders in a batch."""
    token = getattr(config, family.image_token, None)
    return 0 if token is None else int((input_ids == token).sum())


def token_maps(
    family: Family,
    config: Any,
    processor: Any,
    tensors: Mapping[str, Any],
    sizes: Sequence[Sequence[tuple[int, int]]] | None,
    prompts: Sequence[Written | None],
) -> tuple[TokenMap, ...]:
    """One map per row of a batch.

    Args:
        family: Of the model.
        config: Of the model.
        processor: Of the model, or None.
        tensors: The model's inputs.
        sizes: (width, height) of each image of each row; None when unknown.
        prompts: The text of each row and where the user's words stand in it; None when unknown.
    """
    ids = tensors["input_ids"].cpu().numpy()
    mask = tensors.get("attention_mask")
    tokenizer = getattr(processor, "tokenizer", None)
    counts = (
        [len(row) for row in sizes] if sizes is not None else _images_per_row(family, tensors, ids)
    )
    maps, first = [], 0
    for row, count in enumerate(counts):
        layouts: list[ImageLayout] = []
        if count:
            known = tuple(sizes[row]) if sizes is not None else (None,) * count
            context = ImageContext(config, processor, tensors, row, known, first)
            layouts = family.layout(context)
        first += count
        maps.append(
            TokenMap.build(
                ids[row],
                image_token=getattr(config, family.image_token, None),
                layouts=layouts,
                attention_mask=None if mask is None else mask[row].cpu().numpy(),
                special_ids=_special_ids(tokenizer),
                tokenizer=tokenizer,
                prompt=None if (written := prompts[row]) is None else written.words,
                written=written,
            )
        )
    return tuple(maps)


def _special_ids(tokenizer: Any) -> Sequence[int]:
    if tokenizer is None:
        return []
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marks = {i for i, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    # An unknown word is still a word of the prompt.
    return sorted(marks - {tokenizer.unk_token_id})


def _images_per_row(family: Family, tensors: Mapping[str, Any], ids: np.ndarray) -> list[int]:
    """Without the original images: the pixels are spread evenly over the rows."""
    pixels = tensors.get("pixel_values")
    if pixels is None:
        return [0] * len(ids)
    n_images = family.n_images(tensors)
    if n_images % len(ids):
        raise InputError(
            f"{n_images} images cannot be told apart over {len(ids)} rows: wrap the model with its "
            "processor and use prepare()."
        )
    return [n_images // len(ids)] * len(ids)
