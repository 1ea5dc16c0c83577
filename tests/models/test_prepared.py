"""The processors that checkpoints come with, on architectures beside the fourteen.

Chat template, tokenizer and image processor of transformers, by `prepare`: all proofs hold on what
they make, places in the picture included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import transformers as hf
from PIL import Image

from lvlm_interp.models import zoo
from lvlm_interp.models.inputs.processors import image_only
from lvlm_interp.models.listing import SIZES
from lvlm_interp.models.loading import wrap
from lvlm_interp.models.proofs import prove
from lvlm_interp.models.zoo import pictures
from tests.models import processors
from tests.models.processors import TEMPLATE, tokenizer
from tests.models.zoo import tiered

# GLM builds its labels from tensors in a way that numpy is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def _template(slot: str) -> str:
    return TEMPLATE.replace("IMAGE_SLOT", slot)


def vipllava() -> Any:
    return hf.LlavaProcessor(
        image_processor=pictures.square(),
        tokenizer=tokenizer("<image>"),
        patch_size=6,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_template("<image>"),
    )


def aya_vision() -> Any:
    marks = ("<|IMG_PATCH|>", "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE")
    return hf.AyaVisionProcessor(
        image_processor=pictures.cut(),
        tokenizer=tokenizer(*marks, "TILE_GLOBAL"),
        patch_size=6,
        img_size=24,
        downsample_factor=2,
        chat_template=_template("<image>"),
    )


def deepseek_vl() -> Any:
    slot = "<image_placeholder>"
    return hf.DeepseekVLProcessor(
        image_processor=pictures.padded("DeepseekVL"),
        tokenizer=tokenizer(slot, image_token=slot),
        num_image_tokens=16,
        chat_template=_template(slot),
    )


def janus() -> Any:
    slot = "<image_placeholder>"
    processor = hf.JanusProcessor(
        image_processor=pictures.padded("Janus"),
        tokenizer=tokenizer(slot, image_token=slot, boi_token="<bi>", eoi_token="<ei>"),
        use_default_system_prompt=False,
        chat_template=_template(slot),
    )
    processor.num_image_tokens = 16  # of the class, and not an option
    return processor


def ovis2() -> Any:
    images = hf.Ovis2ImageProcessorPil(resample=0, size=pictures.SIDE, crop_to_patches=False)
    return hf.Ovis2Processor(
        image_processor=images,
        tokenizer=tokenizer("<IMG_ATOM>", image_token="<IMG_ATOM>"),
        image_token="<image>",
        image_seq_length=4,
        chat_template=_template("<image>"),
    )


def glm4v() -> Any:
    ends = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")
    return image_only(hf.Glm4vProcessor)(
        image_processor=pictures.volume("Glm4v"),
        tokenizer=tokenizer("<|image|>", "<|video|>", *ends),
        chat_template=_template("<|begin_of_image|><|image|><|end_of_image|>"),
    )


def paddleocr_vl() -> Any:
    slot = "<|IMAGE_PLACEHOLDER|>"
    return hf.PaddleOCRVLProcessor(
        image_processor=pictures.paddle(),
        tokenizer=tokenizer(slot, image_token=slot),
        chat_template=_template(slot),
    )


def video_llama_3() -> Any:
    named = {"image_token": "<image>", "video_token": "<video>"}
    return image_only(hf.VideoLlama3Processor)(
        image_processor=pictures.single(),
        tokenizer=tokenizer("<image>", "<video>", **named),
        chat_template=_template("<image>"),
    )


def lighton_ocr() -> Any:
    marks = ("<|image_pad|>", "<|vision_pad|>", "<|vision_end|>")
    names = ("image_token", "image_break_token", "image_end_token")
    return hf.LightOnOcrProcessor(
        image_processor=pictures.any_size(),
        tokenizer=tokenizer(*marks, **dict(zip(names, marks, strict=True))),
        patch_size=6,
        spatial_merge_size=2,
        chat_template=_template("<|image_pad|>"),
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    "vipllava": vipllava,
    "aya_vision": aya_vision,
    "deepseek_vl": deepseek_vl,
    "janus": janus,
    "ovis2": ovis2,
    "glm4v": glm4v,
    "paddleocr_vl": paddleocr_vl,
    "video_llama_3": video_llama_3,
    "lighton_ocr": lighton_ocr,
    "qwen3_vl_moe": processors.qwen3_vl,
    "qwen3_5": processors.qwen3_vl,
}
"""By `model_type`; those that are missing need torchvision, or are of the same make."""


@pytest.mark.parametrize("kind", tiered(BUILDERS, ("aya_vision", "lighton_ocr")))
def test_what_the_processor_makes_passes_every_proof(kind: str) -> None:
    model = wrap(zoo.build(kind), BUILDERS[kind](), selfcheck=False)

    def make(images: Sequence[Image.Image], words: Sequence[int]) -> Any:
        rows = zip(images, words, strict=True)
        return model.prepare([(image, " ".join(["dog"] * n)) for image, n in rows])

    proof = prove(model, make, SIZES)
    assert proof.failures == []
    assert proof.placed == 12


def test_deepstack_behind_the_last_block_is_part_of_what_the_norm_reads() -> None:
    config = zoo.tiny("qwen3_vl").config
    config.text_config.num_hidden_layers = 2  # as many as there are features of inner blocks
    model = wrap(zoo.randomised(hf.Qwen3VLForConditionalGeneration, config))
    assert len(model.sites("text.*.deepstack")) == model.n_layers == 2
