"""Models as users hold them: in half precision, quantised, with adapters of any make."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from tests.models import zoo

PROJECTIONS = ("q", "k", "v", "o", "qkv", "out")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Doubled(nn.Module):
    """A linear layer with a second one added, whose `weight` is the first one's: as adapters are.

    Whoever reads `.weight` misses the second.
    """

    def __init__(self, base: nn.Linear, seed: int) -> None:
        super().__init__()
        self.base = base
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn(4, base.in_features, generator=generator) * 0.3
        up = torch.randn(base.out_features, 4, generator=generator) * 0.3
        self.down = nn.Parameter(down.to(base.weight.dtype), requires_grad=False)
        self.up = nn.Parameter(up.to(base.weight.dtype), requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.base.bias

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.base(input) + (input @ self.down.T) @ self.up.T

    def merged(self) -> nn.Linear:
        """The plain layer that computes the same."""
        plain = copy.deepcopy(self.base)
        with torch.no_grad():
            plain.weight += self.up @ self.down
        return plain


def _projections(net: nn.Module, kind: type) -> list[tuple[nn.Module, str, Any]]:
    names = (*(f"{name}_proj" for name in PROJECTIONS), "qkv", "proj", "projection")
    return [
        (module, name, child)
        for module in net.modules()
        for name, child in module.named_children()
        if type(child) is kind and (name in (*names, "projection_layer", "lm_head", "query"))
    ]


def doubled(net: Any) -> Any:
    """The model with adapters on every projection of every attention, and on its head."""
    for seed, (module, name, child) in enumerate(_projections(net, nn.Linear)):
        setattr(module, name, Doubled(child, seed))
    return net


def undoubled(net: Any) -> Any:
    """A copy with every adapter merged into plain layers."""
    net = copy.deepcopy(net)
    for module, name, child in _projections(net, Doubled):
        setattr(module, name, child.merged())
    return net


def lora(net: Any, targets: str = r".*language_model.*\.(q|k|v|o)_proj") -> Any:
    """The model inside a PeftModel whose LoRA weights are not zero; skips without peft."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        # It asks for an attribute that transformers is about to drop.
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
        made = peft.get_peft_model(
            net, peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets)
        ).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3)
    return made


def build(name: str, dtype: str = "fp32", kind: str = "plain") -> Any:
    """A tiny model of a family, `plain` or `doubled`."""
    net = zoo.build(name)
    net = doubled(net) if kind == "doubled" else net
    return net.to(DTYPES[dtype])


def quantised(folder: Any, bits: int) -> Any:
    """A tiny LLaVA in 4 or 8 bits, with its processor; skips where bitsandbytes cannot run."""
    pytest.importorskip("bitsandbytes")
    import transformers as hf

    from lvlm_interp.models.loading import load_model

    options = {4: {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}}
    quantised = hf.BitsAndBytesConfig(**options.get(bits, {"load_in_8bit": True}))
    return load_model(wide(folder), quantization_config=quantised, selfcheck=False)


def wide(folder: Any) -> Any:
    """The folder of a tiny LLaVA that is wide enough to be quantised, with its processor."""
    import transformers as hf

    from tests.models import processors

    # Kernels for processors want widths that are multiples of 64.
    vision = zoo.vision_config("clip_vision_model", hidden_size=64, num_attention_heads=4)
    config = hf.LlavaConfig(
        vision_config={**vision, "intermediate_size": 64},
        text_config=zoo.text_config(hidden_size=64, num_key_value_heads=4, intermediate_size=64),
        image_token_index=zoo.IMAGE,
        vision_feature_layer=-2,
    )
    zoo.randomised(hf.LlavaForConditionalGeneration, config).save_pretrained(folder)
    processors.build("llava").save_pretrained(folder)
    return folder
