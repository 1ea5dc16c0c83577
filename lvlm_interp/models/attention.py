"""The registered attention function: reads and edits rotary q and k, scores and pattern.

transformers looks its attention function up by name. While something is connected inside
attention, the model's implementation is ours, and it is what it was afterwards. Modules that
nobody asked about still run SDPA.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask

from lvlm_interp.models.hooks import Line, Switchboard

NAME = "lvlm_interp"

_boards: list[Switchboard] = []


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention with every intermediate open to visitors.

    Args:
        module: The attention module that calls.
        query: `batch head query_pos d_head`, after the rotary embedding.
        key, value: `batch kv_head key_pos d_head`.
        attention_mask: Added to the scores; None for full attention.
        scaling: Factor on the scores; 1/sqrt(d_head) by default.
        dropout: Unused outside of training.
        softcap: Bound of the scores (tanh), as Gemma-2 has it.
        kwargs: What other implementations need.

    Returns:
        z as `batch query_pos head d_head`, and the pattern.
    """
    lines = _lines_of(module)
    if not lines and softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    query, key = _carry(lines, "rot_q", query, swap=True), _carry(lines, "rot_k", key, swap=True)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    scores = _carry(lines, "scores", scores)
    pattern = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    pattern = _carry(lines, "pattern", pattern)
    pattern = nn.functional.dropout(pattern, p=dropout, training=module.training)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def opened(hf: PreTrainedModel, board: Switchboard) -> Iterator[None]:
    """Run a model under `attend` while the context is open, then as it was."""
    configs = _configs(hf)
    before = [(config, config._attn_implementation) for config in configs]
    _boards.append(board)
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        _boards.remove(board)
        for config, implementation in before:
            config._attn_implementation = implementation


def _configs(hf: PreTrainedModel) -> list[Any]:
    """Every configuration object that a submodule may look its implementation up in."""
    found: dict[int, Any] = {}
    for module in hf.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            found[id(config)] = config
    return list(found.values())


def _lines_of(module: nn.Module) -> dict[str, Line]:
    for board in _boards:
        if id(module) in board.attention:
            return board.attention[id(module)]
    return {}


def _carry(lines: dict[str, Line], part: str, raw: Tensor, *, swap: bool = False) -> Tensor:
    if part not in lines:
        return raw
    if not swap:
        return lines[part].carry(raw)
    # Sites put positions before heads; the attention function has heads first.
    return lines[part].carry(raw.transpose(1, 2)).transpose(1, 2)
