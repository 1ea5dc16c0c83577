"""A processor for every tiny model: a byte-level tokenizer trained here, images resized by nearest.

Nearest-neighbour resizing keeps a change of pixels inside its box, so token maps can be proved
exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import transformers as hf
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from lvlm_interp.models.inputs.processors import image_only

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE_SLOT {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ ' . ' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
CORPUS = [
    "user: is there a dog in the image? assistant: yes there is a red circle",
    "the cat is left of the blue square . what is above the dog ? no",
] * 4
MARKS = ["<pad>", "<bos>", "<eos>", "<unk>"]
ROWS = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]


def tokenizer(*marks: str, **named: str) -> Any:
    """Byte-level pieces; ids 0 to 3 are the usual marks, 4 is the image's."""
    words = Tokenizer(BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    specials = MARKS + list(marks)
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(CORPUS, trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=list(marks),
        extra_special_tokens=named,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _square(kind: Any, **more: Any) -> Any:
    size = {"height": 24, "width": 24}
    return kind(do_resize=True, size=size, resample=0, do_center_crop=False, **more)


def llava() -> Any:
    return hf.LlavaProcessor(
        image_processor=_square(hf.CLIPImageProcessorPil, crop_size={"height": 24, "width": 24}),
        tokenizer=tokenizer("<image>"),
        patch_size=6,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE_SLOT", "<image>"),
    )


def _anyres(kind: Any) -> Any:
    side = {"height": 24, "width": 24}
    pins = [[24, 48], [48, 24], [48, 48]]
    return kind(size=side, crop_size=side, image_grid_pinpoints=pins, resample=0)


def llava_next() -> Any:
    return hf.LlavaNextProcessor(
        image_processor=_anyres(hf.LlavaNextImageProcessorPil),
        tokenizer=tokenizer("<image>"),
        patch_size=6,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE_SLOT", "<image>"),
    )


def llava_onevision() -> Any:
    return image_only(hf.LlavaOnevisionProcessor)(
        image_processor=_anyres(hf.LlavaOnevisionImageProcessorPil),
        tokenizer=tokenizer("<image>", "<video>"),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=TEMPLATE.replace("IMAGE_SLOT", "<image>"),
    )


def _qwen(kind: Any) -> Any:
    images = hf.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 24 * 24, "longest_edge": 96 * 96},
        patch_size=6,
        merge_size=2,
        temporal_patch_size=2,
        resample=0,
    )
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    slot = "<|vision_start|><|image_pad|><|vision_end|>"
    return image_only(kind)(
        image_processor=images,
        tokenizer=tokenizer(*marks),
        chat_template=TEMPLATE.replace("IMAGE_SLOT", slot),
    )


def qwen2_vl() -> Any:
    return _qwen(hf.Qwen2VLProcessor)


def qwen2_5_vl() -> Any:
    return _qwen(hf.Qwen2_5_VLProcessor)


def qwen3_vl() -> Any:
    return _qwen(hf.Qwen3VLProcessor)


def _idefics(images: Any, kind: Any, **more: Any) -> Any:
    marks = ("<image>", "<video>", "<fake_token_around_image>", "<global-img>")
    return kind(
        image_processor=images(
            size={"longest_edge": 48}, max_image_size={"longest_edge": 24}, resample=0
        ),
        tokenizer=tokenizer(*marks, "<end_of_utterance>", *ROWS),
        image_seq_len=4,
        chat_template=TEMPLATE.replace("IMAGE_SLOT", "<image>"),
        **more,
    )


def idefics3() -> Any:
    return _idefics(hf.Idefics3ImageProcessorPil, hf.Idefics3Processor)


def smolvlm() -> Any:
    return _idefics(
        hf.SmolVLMImageProcessorPil, image_only(hf.SmolVLMProcessor), video_processor=None
    )


def paligemma() -> Any:
    images = _square(hf.SiglipImageProcessorPil)
    images.image_seq_length = 16
    return hf.PaliGemmaProcessor(
        image_processor=images,
        tokenizer=tokenizer("<image>", image_token="<image>"),
        chat_template=None,
    )


def gemma3() -> Any:
    named = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    return hf.Gemma3Processor(
        image_processor=_square(hf.Gemma3ImageProcessorPil),
        tokenizer=tokenizer("<image>", "<unused>", "<boi>", "<eoi>", **named),
        image_seq_length=4,
        chat_template=TEMPLATE.replace("IMAGE_SLOT", "<boi>"),
    )


def internvl() -> Any:
    named = {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    }
    images = hf.GotOcr2ImageProcessorPil(
        size={"height": 24, "width": 24},
        crop_to_patches=True,
        min_patches=1,
        max_patches=4,
        resample=0,
    )
    return image_only(hf.InternVLProcessor)(
        image_processor=images,
        tokenizer=tokenizer("<IMG_CONTEXT>", "<video>", "<img>", "</img>", **named),
        image_seq_length=4,
        chat_template=TEMPLATE.replace("IMAGE_SLOT", "<IMG_CONTEXT>"),
    )


def mllama() -> Any:
    images = hf.MllamaImageProcessorPil(
        size={"height": 24, "width": 24}, max_image_tiles=4, resample=0
    )
    return hf.MllamaProcessor(
        image_processor=images,
        tokenizer=tokenizer("<|image|>", "<|python_tag|>", image_token="<|image|>"),
        chat_template=TEMPLATE.replace("IMAGE_SLOT", "<|image|>"),
    )


def blip_2() -> Any:
    return hf.Blip2Processor(
        image_processor=_square(hf.BlipImageProcessorPil),
        tokenizer=tokenizer("<image>"),
        num_query_tokens=5,
    )


def instructblip() -> Any:
    return hf.InstructBlipProcessor(
        image_processor=_square(hf.BlipImageProcessorPil),
        tokenizer=tokenizer("<image>"),
        qformer_tokenizer=tokenizer("<image>"),
        num_query_tokens=5,
    )


BUILDERS: dict[str, Callable[[], Any]] = {
    builder.__name__: builder
    for builder in (
        llava,
        llava_next,
        llava_onevision,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        idefics3,
        smolvlm,
        paligemma,
        gemma3,
        internvl,
        mllama,
        blip_2,
        instructblip,
    )
}


@cache
def build(name: str) -> Any:
    """The processor of a family."""
    return BUILDERS[name]()
