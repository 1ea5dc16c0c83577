"""A tiny random-weight model of every architecture, built from configurations alone.

What `lvlm-interp models --check` proves, and what the tests run on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lvlm_interp.models.zoo import cross, flat, gemma, llava, qwen, tiled
from lvlm_interp.models.zoo.parts import SPECIALS

__all__ = ["CONFIGS", "build", "randomised", "tiny"]

CONFIGS: dict[str, Callable[[], dict[str, Any]]] = {
    **llava.CONFIGS,
    **qwen.CONFIGS,
    **flat.CONFIGS,
    **tiled.CONFIGS,
    **gemma.CONFIGS,
    **cross.CONFIGS,
}
"""Options of a tiny configuration, by `model_type`."""


def tiny(model_type: str) -> Any:
    """A tiny model of an architecture, as transformers initialises it."""
    config: Any = CONFIG_MAPPING[model_type](**CONFIGS[model_type]())
    return AutoModelForImageTextToText.from_config(config)


def build(model_type: str, seed: int = 0) -> Any:
    """A tiny model in evaluation mode, with weights large enough for every path to matter."""
    torch.manual_seed(seed)
    model = stirred(tiny(model_type))
    model.generation_config = GenerationConfig(**SPECIALS, do_sample=False)
    return model.eval()


def randomised(kind: Any, config: Any) -> Any:
    """A model of a class and a configuration, in the same way."""
    torch.manual_seed(0)
    return stirred(kind(config)).eval()


@torch.no_grad()
def stirred(model: Any) -> Any:
    """A model with new weights: unit gain for matrices, a tenth of noise for vectors."""
    for parameter in model.parameters():
        _randomise(parameter)
    return model


def _randomise(parameter: nn.Parameter) -> None:
    if parameter.ndim > 1:
        parameter.normal_(0, 0.8 / parameter[0].numel() ** 0.5)
    else:
        parameter.add_(torch.randn_like(parameter) * 0.1)
