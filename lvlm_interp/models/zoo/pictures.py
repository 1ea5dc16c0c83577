"""The image processors of transformers for the tiny models, and batches without a tokenizer.

Images are resized by nearest neighbour, which keeps a change of pixels inside its box, so that
token maps can be proved exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from lvlm_interp.models.family import ImageContext
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.maps import token_maps
from lvlm_interp.models.zoo.parts import IMAGE, PINPOINTS, VOCAB

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM

SIDE = {"height": 24, "width": 24}
NEAREST = 0
AREA = {"shortest_edge": 24 * 24, "longest_edge": 96 * 96}
"""Fewest and most pixels of an image of any size."""


def _made(name: str, **options: Any) -> Any:
    return getattr(transformers, f"{name}ImageProcessorPil")(resample=NEAREST, **options)


def square(name: str = "CLIP", **more: Any) -> Any:
    """One image of 24 x 24 pixels, stretched."""
    return _made(name, do_resize=True, size=SIDE, do_center_crop=False, **more)


def tiled(name: str) -> Any:
    """A whole view and tiles of 24 x 24 pixels by the list of resolutions."""
    return _made(name, size=SIDE, crop_size=SIDE, image_grid_pinpoints=PINPOINTS)


def cut() -> Any:
    """Up to four tiles of 24 x 24 pixels, then a thumbnail."""
    return _made("GotOcr2", size=SIDE, crop_to_patches=True, min_patches=1, max_patches=4)


def flat(name: str = "Qwen2VL") -> Any:
    """The patches of all images on one axis, merged two by two."""
    return _made(name, size=AREA, patch_size=6, merge_size=2, temporal_patch_size=2)


def single() -> Any:
    """The patches of all images on one axis, none merged."""
    return _made("VideoLlama3", size=AREA, patch_size=6)


def paddle() -> Any:
    """The patches of all images on one axis, merged two by two behind the tower."""
    return _made("PaddleOCRVL", size=AREA, patch_size=6, merge_size=2, temporal_patch_size=1)


def volume(name: str) -> Any:
    """As `flat`, where the sizes count the two frames of an image."""
    size = {"shortest_edge": 2 * 24 * 24, "longest_edge": 2 * 96 * 96}
    return _made(name, size=size, patch_size=6, merge_size=2, temporal_patch_size=2)


def any_size() -> Any:
    """Images of any size up to 48 pixels, in cells of 12."""
    return _made("Pixtral", size={"longest_edge": 48}, patch_size={"height": 12, "width": 12})


def padded(name: str) -> Any:
    """An image padded to a square of 24 x 24 pixels."""
    return _made(name, size=SIDE, min_size=1)


def parts(name: str) -> Any:
    """A whole view and tiles of at most 24 pixels a side."""
    return _made(name, size={"longest_edge": 48}, max_image_size={"longest_edge": 24})


def four_tiles() -> Any:
    """Mllama's canvas of four tiles."""
    return _made("Mllama", size=SIDE, max_image_tiles=4)


PICTURES: dict[str, Callable[[], Any]] = {
    "llava_next": lambda: tiled("LlavaNext"),
    "llava_next_video": lambda: tiled("LlavaNext"),
    "llava_onevision": lambda: tiled("LlavaOnevision"),
    "paligemma": lambda: square("Siglip"),
    "gemma3": lambda: square("Gemma3"),
    "shieldgemma2": lambda: square("Gemma3"),
    "blip-2": lambda: square("Blip"),
    "instructblip": lambda: square("Blip"),
    "idefics3": lambda: parts("Idefics3"),
    "smolvlm": lambda: parts("SmolVLM"),
    "internvl": cut,
    "qianfan_ocr": cut,
    "video_llama_3": single,
    "paddleocr_vl": paddle,
    "aya_vision": cut,
    "mllama": four_tiles,
    "mistral3": any_size,
    "lighton_ocr": any_size,
    "deepseek_vl": lambda: padded("DeepseekVL"),
    "janus": lambda: padded("Janus"),
    **dict.fromkeys(
        (
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen3_vl",
            "qwen3_vl_moe",
            "qwen3_5",
            "qwen3_5_moe",
            "cosmos3_omni",
            "exaone4_5",
            "hyperclovax_vision_v2",
            "qwen2_5_omni_thinker",
            "qwen3_omni_moe_thinker",
        ),
        flat,
    ),
    "glm4v": lambda: volume("Glm4v"),
    "glm4v_moe": lambda: volume("Glm4v"),
    **dict.fromkeys(("glm46v", "glmga", "glm_ocr"), lambda: volume("Glm46V")),
}
"""The image processor of a tiny model, by `model_type`; `square` for the others."""

NESTED = ("idefics3", "smolvlm", "mllama")
"""Whose image processor wants the images of each row in a list of their own."""


COUNTS = ("num_patches", "num_crops", "num_tiles", "rows", "cols")
"""What image processors say to processors of text, not to models."""


@dataclass(frozen=True)
class _Holder:
    """Stands where a processor would: only its image processor is known."""

    image_processor: Any


def rows(model: LVLM, images: Sequence[Image.Image], n_words: Sequence[int]) -> Inputs:
    """A batch with one image and some random words per row, padded on the left.

    Args:
        model: A tiny model.
        images: One per row.
        n_words: Words of each row; half of them stand before the image.
    """
    kind = model.config.model_type
    processor = _Holder(PICTURES.get(kind, square)())
    given = [[image] for image in images] if kind in NESTED else list(images)
    made = processor.image_processor(images=given, return_tensors="pt")
    tensors = {name: value for name, value in made.items() if name not in COUNTS}
    sizes = [(image.size,) for image in images]
    ids = _ids(model, processor, tensors, sizes, n_words)
    width = max(len(row) for row in ids)
    tensors["input_ids"] = torch.stack([_left(row, width) for row in ids])
    tensors["attention_mask"] = torch.stack([_left(torch.ones_like(row), width) for row in ids])
    _companions(model, tensors)
    if "num_tiles" in made:
        tensors["cross_attention_mask"] = _tiles_seen(tensors["input_ids"], made["num_tiles"])
    maps = token_maps(model.family, model.config, processor, tensors, sizes, [None] * len(images))
    return Inputs(tensors, maps)


def _ids(
    model: LVLM,
    processor: _Holder,
    tensors: dict[str, Any],
    sizes: Sequence[tuple[tuple[int, int], ...]],
    n_words: Sequence[int],
) -> list[Tensor]:
    crops = getattr(processor.image_processor, "crop_to_patches", False)
    full = {**tensors, "input_ids": torch.full((len(sizes), 10_000 if crops else 0), IMAGE)}
    ids = []
    for row, (size, n) in enumerate(zip(sizes, n_words, strict=True)):
        context = ImageContext(model.config, processor, full, row, size, row)
        slots = sum(int((part.kind != "").sum()) for part in model.family.layout(context))
        words = torch.randint(20, VOCAB, (n,), generator=torch.Generator().manual_seed(n))
        ids.append(torch.cat([words[: n // 2], torch.full((slots,), IMAGE), words[n // 2 :]]))
    return ids


def _tiles_seen(ids: Tensor, n_tiles: list[list[int]]) -> Tensor:
    """Which tiles each position of Mllama sees: those of the image before it, no padding."""
    from transformers.models.mllama import processing_mllama as mllama

    spans = [mllama.get_cross_attention_token_mask(row.tolist(), IMAGE) for row in ids]
    dense = mllama.convert_sparse_cross_attention_mask_to_dense(
        spans, num_tiles=n_tiles, max_num_tiles=4, length=ids.shape[1]
    )
    return torch.as_tensor(dense)


def _left(row: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(row, (width - len(row), 0))


def _companions(model: LVLM, tensors: dict[str, Any]) -> None:
    """Inputs beside ids and pixels that an image needs."""
    ids, needs = tensors["input_ids"], model.family.needs
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in needs:
            tensors[name] = (ids == IMAGE).long()
    if "qformer_input_ids" in needs:
        tensors["qformer_input_ids"] = torch.arange(20, 24).repeat(len(ids), 1)
        tensors["qformer_attention_mask"] = torch.ones_like(tensors["qformer_input_ids"])


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of noise, away from black and white."""
    shape = (size[1], size[0], 3)
    pixels = np.random.default_rng(seed).integers(60, 200, shape, dtype=np.uint8)
    return Image.fromarray(pixels)


def inverted(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """The picture with the pixels of a box inverted."""
    pixels = np.array(image)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = 255 - pixels[top:bottom, left:right]
    return Image.fromarray(pixels)
