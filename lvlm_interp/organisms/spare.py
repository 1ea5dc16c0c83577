"""Which heads a stage of training may move: the ones that the model needs least."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Head = tuple[int, int]
"""Layer and index of a head of the language model."""


@torch.no_grad()
def spare_heads(model: Any, loss: Callable[[], float], per_layer: Sequence[int]) -> list[Head]:
    """Returns the heads without which the loss rises least.

    Args:
        model: The organism.
        loss: The loss of the model as it is, on the same data at every call.
        per_layer: How many heads to choose in each layer.

    Returns:
        The chosen heads, in order.
    """
    chosen: list[Head] = []
    for layer, count in enumerate(per_layer):
        if not count:
            continue
        out = model.model.language_model.layers[layer].self_attn.o_proj.weight
        size, kept = _head_size(model), out.clone()
        rise = []
        for head in range(out.shape[1] // size):
            out[:, head * size : (head + 1) * size] = 0
            rise.append((loss(), head))
            out.copy_(kept)
        chosen += sorted((layer, head) for _, head in sorted(rise)[:count])
    return chosen


@dataclass(frozen=True)
class Confined:
    """Keeps all but some heads of the language model where they are.

    Attributes:
        fixed: Parameters, what they were, and which entries may move (bool, of their shape).
    """

    fixed: tuple[tuple[Tensor, Tensor, Tensor], ...]

    @torch.no_grad()
    def restore(self) -> None:
        """Puts back every entry that may not move; called after each step of the optimiser."""
        for parameter, before, moves in self.fixed:
            parameter.copy_(torch.where(moves, parameter, before))


def confine(model: Any, heads: Sequence[Head]) -> Confined:
    """Returns the guard that lets only these heads' rows of q, k, v and columns of o move."""
    size, fixed = _head_size(model), []
    for layer, block in enumerate(model.model.language_model.layers):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weight = getattr(block.self_attn, name).weight
            moves = torch.zeros_like(weight, dtype=torch.bool)
            for head in (head for at, head in heads if at == layer):
                part = slice(head * size, (head + 1) * size)
                moves[(slice(None), part) if name == "o_proj" else part] = True
            fixed.append((weight, weight.detach().clone(), moves))
    return Confined(tuple(fixed))


def moved_heads(before: str | Path, after: str | Path) -> list[Head]:
    """Returns the heads of the language model whose weights differ between two folders.

    Args:
        before: Folder of the checkpoint that a stage began with.
        after: Folder of the model that it ended with.
    """
    config = json.loads((Path(before) / "config.json").read_text())["text_config"]
    size = config["hidden_size"] // config["num_attention_heads"]
    old, new = (load_file(Path(folder) / "model.safetensors") for folder in (before, after))
    found: set[Head] = set()
    for name in old:
        parts = name.split(".")
        if "language_model" in parts and "self_attn" in parts:
            moved = (old[name] != new[name]).T if "o_proj" in parts else old[name] != new[name]
            layer = int(parts[parts.index("layers") + 1])
            found |= {(layer, int(row) // size) for row in moved.any(1).nonzero()}
    return sorted(found)


def _head_size(model: Any) -> int:
    config = model.config.text_config
    return config.hidden_size // config.num_attention_heads
