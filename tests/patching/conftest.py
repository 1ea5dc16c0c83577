"""A tiny random LLaVA with grouped-query heads, image-edited pairs, and a model in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import nn

from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.models.loading import wrap
from tests.models import processors, zoo

BOX = (0, 0, 12, 12)


def make_pairs(n: int = 3, prompt: str = "is there a dog in the image ?") -> list[ContrastPair]:
    """Pairs whose corrupt image differs inside one box."""
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(n):
        clean = rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)
        corrupt = clean.copy()
        corrupt[:12, :12] = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
        sides = [
            Example(f"{i}/{side}", Image.fromarray(pixels), prompt, boxes={"object": BOX})
            for side, pixels in (("clean", clean), ("corrupt", corrupt))
        ]
        pairs.append(
            ContrastPair(
                f"p{i}", *sides, "yes", "no", "object", "evidence", "box redrawn", BOX, f"g{i}"
            )
        )
    return pairs


@pytest.fixture(scope="session")
def model():
    return wrap(zoo.build("llava"), processors.build("llava"))


@pytest.fixture(scope="session")
def pairs():
    return make_pairs()


CLOSED_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


def closed_form(blocks):
    """A model of one position whose blocks are x + h0(x) + h1(x), elementwise, and m = y0 - y1.

    The words a and b stand for x = (1, 1) and x = (0, 2), c and d for the answer and the foil.
    """
    text = zoo.text_config(hidden_size=2, head_dim=2, intermediate_size=2, vocab_size=10)
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": len(blocks)}
    config = hf.LlavaConfig(
        vision_config=zoo.vision_config("clip_vision_model"), text_config=text, image_token_index=9
    )
    net = hf.LlavaForConditionalGeneration(config).eval()
    lm = net.model.language_model
    lm.norm = nn.Identity()
    with torch.no_grad():
        lm.embed_tokens.weight.zero_()
        lm.embed_tokens.weight[1], lm.embed_tokens.weight[2] = torch.tensor([[1.0, 1], [0, 2]])
        net.lm_head.weight.zero_()
        net.lm_head.weight[3:5] = torch.eye(2)
        for layer, heads in zip(lm.layers, blocks, strict=True):
            layer.input_layernorm = layer.post_attention_layernorm = nn.Identity()
            layer.post_attention_layernorm = nn.Identity()
            layer.self_attn.v_proj.weight.copy_(torch.eye(2).repeat(2, 1))
            diagonals = [torch.diag(torch.tensor(head, dtype=torch.float)) for head in heads]
            layer.self_attn.o_proj.weight.copy_(torch.cat(diagonals, dim=1))
            layer.mlp.down_proj.weight.zero_()
    words = ["<pad>", "a", "b", "c", "d", "is", "it", "<unk>", "<eos>", "<image>"]
    tokens = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessorPil(),
        tokenizer=tokenizer,
        patch_size=6,
        chat_template=CLOSED_TEMPLATE,
    )
    sides = [Example(word, None, word) for word in "ab"]
    pair = ContrastPair("one", *sides, "c", "d", "object", "evidence", "word", None, "g")
    return wrap(net, processor, selfcheck=False), [pair]


@pytest.fixture(scope="session")
def alike():
    return closed_form([[(1, 2), (3, 4)]] * 2)


@pytest.fixture(scope="session")
def unlike():
    return closed_form([[(1, 2), (3, 4)], [(2, 0), (-1, 5)]])


def told_apart(model, pairs):
    """The pairs, for a model in which answer and foil have tokens of their own."""
    if model.answer_id("yes") == model.answer_id("no"):
        # The tiny tokenizer begins every answer with one blank token; any two ids will do here.
        model.answer_id = {"yes": 300, "no": 301}.__getitem__
    return pairs
