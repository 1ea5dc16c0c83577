"""What training leaves: a projector and low-rank updates of the language model, in one file.

Keys are `projector.NAME` and `lora.LAYER.MODULE.A|B`; an update adds `scale B A` to a matrix. The
file says which stage it is, and it is merged into ordinary weights when a model is built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lvlm_interp.errors import ModelError
from lvlm_interp.files import atomic_path

LINEAR = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""The linear maps of a block that are adapted."""

SCALE = 2.0
"""Factor on B A (alpha over rank)."""


def inject(language_model: nn.Module, rank: int) -> list[nn.Parameter]:
    """Put fresh adapters (exactly zero) on every linear map; returns what is trained.

    Raises:
        ModelError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError("Training needs peft: pip install 'lvlm-interp[tune]'.") from error
    names = [name.split(".")[-1] for name in LINEAR]
    config = LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=names)  # pyright: ignore
    inject_adapter_in_model(config, language_model)
    return [p for name, p in language_model.named_parameters() if "lora_" in name]


def save(path: Path, model: Any, stage: str, *, projector: bool, lora: bool) -> Path:
    """Write what a stage trained, in 16 bits.

    Args:
        path: Of the file.
        model: The LLaVA with its adapters still injected.
        stage: Name, for whoever opens the file.
        projector: Whether the projector belongs to it.
        lora: Whether adapters do.
    """
    tensors: dict[str, Tensor] = {}
    if projector:
        own = model.model.multi_modal_projector.state_dict()
        tensors |= {f"projector.{name}": value for name, value in own.items()}
    if lora:
        for layer, block in enumerate(model.model.language_model.layers):
            for name in LINEAR:
                module = block.get_submodule(name)
                tensors[f"lora.{layer}.{name}.A"] = module.lora_A["default"].weight
                tensors[f"lora.{layer}.{name}.B"] = module.lora_B["default"].weight
    halves = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in tensors.items()}
    with atomic_path(path) as scratch:
        save_file(halves, scratch, metadata={"stage": stage})
    return path


@torch.no_grad()
def merge(model: Any, path: Path) -> None:
    """Add an adapter to the weights of a plain LLaVA.

    Raises:
        ModelError: The file does not fit the model.
    """
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}
    for name, value in tensors.items():
        if name.startswith("projector."):
            model.model.multi_modal_projector.get_parameter(name[10:]).copy_(value)
        elif name.endswith(".A"):
            _, layer, module = name.removesuffix(".A").split(".", 2)
            up = tensors[f"{name[:-1]}B"]
            target = model.model.language_model.layers[int(layer)].get_submodule(module).weight
            if target.shape != (len(up), value.shape[1]):
                raise ModelError(f"{path.name} does not fit: {name} of layer {layer}.")
            target.add_(SCALE * (up @ value).to(target))
