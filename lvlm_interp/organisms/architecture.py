"""The organism as an ordinary Hugging Face LLaVA: config, tokenizer, processor, folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from lvlm_interp.organisms.scenes import IMAGE_SIZE
from lvlm_interp.organisms.vocabulary import BOS, EOS, IMAGE, PAD, TOKEN_ID, UNKNOWN

PATCH_SIZE = 8
N_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ ' ' + message['role'] + ' :' }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ ' <image>' }}"
    "{% elif part['type'] == 'text' %}{{ ' ' + part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' assistant :' }}{% endif %}"
)


INIT_STD = 0.07
"""About 1 / sqrt(width). With the usual 0.02 the attention of so narrow a model stays flat for
thousands of steps, and looking things up by what they are does not come."""


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of the organism; the defaults are those of the shipped models."""

    vision_layers: int = 4
    vision_width: int = 96
    vision_heads: int = 4
    text_layers: int = 4
    text_width: int = 128
    text_heads: int = 8
    text_mlp: int = 352


def build_model(sizes: Sizes, seed: int) -> LlavaForConditionalGeneration:
    """Returns an untrained organism with random weights drawn from `seed`."""
    vision = CLIPVisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=sizes.vision_width,
    )
    ids: dict[str, Any] = {
        "pad_token_id": TOKEN_ID[PAD],
        "bos_token_id": TOKEN_ID[BOS],
        "eos_token_id": TOKEN_ID[EOS],
    }
    text = LlamaConfig(
        vocab_size=len(TOKEN_ID),
        hidden_size=sizes.text_width,
        intermediate_size=sizes.text_mlp,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        num_key_value_heads=sizes.text_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **ids,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=TOKEN_ID[IMAGE],
        image_seq_length=N_IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for part in (model.model.language_model, model.model.multi_modal_projector):
            for parameter in part.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0.0, INIT_STD)
    model.generation_config = GenerationConfig(**ids, max_new_tokens=40, do_sample=False)
    return model


def build_processor() -> LlavaProcessor:
    """Returns the processor: PIL image processor without resizing, word-level tokenizer.

    The chat template writes `<s>` itself and the tokenizer adds nothing, so it is never doubled.
    """
    words = Tokenizer(WordLevel(dict(TOKEN_ID), unk_token=UNKNOWN))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(
        do_resize=True,
        size=side,
        do_center_crop=False,
        crop_size=side,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Maps uint8 images (batch, row, col, rgb) to what the processor gives the model."""
    return (pixels.permute(0, 3, 1, 2).float() / 255.0 - 0.5) / 0.5


def save_folder(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Writes a folder that `AutoModelForImageTextToText` and `AutoProcessor` load unaided."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)
