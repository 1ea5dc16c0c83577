"""What identifies a model: hashes of its weights and of its processor."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM

__all__ = ["processor_hash", "weight_hash"]


def weight_hash(model: LVLM) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of all weights, as they are in memory.

    One tensor at a time goes to the CPU; it costs about a second per two gigabytes.
    """
    digest = sha256()
    for name, tensor in sorted(model.hf.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        raw = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(raw.numpy()))
    return digest.hexdigest()


def processor_hash(model: LVLM) -> str | None:
    """SHA-256 over what a processor does to an input: its settings, template and vocabulary."""
    if model.processor is None:
        return None
    settings: dict[str, Any] = {"template": getattr(model.processor, "chat_template", None)}
    images = getattr(model.processor, "image_processor", None)
    if images is not None:
        settings["image_processor"] = images.to_dict()
    settings["vocabulary"] = model.tokenizer.get_vocab()
    return sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
