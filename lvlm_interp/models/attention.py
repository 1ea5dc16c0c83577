"""The registered attention function: reads and edits rotary q and k, scores and pattern.

transformers looks its attention function up by name. While something is connected inside
attention, the model's implementation is ours, and it is what it was afterwards. Modules that
nobody asked about still run SDPA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask

from lvlm_interp.models.hooks import Line, Switchboard

NAME = "lvlm_interp"
PACKED = "lvlm_interp_flash"
"""For towers that flatten all images into one axis: transformers gives an implementation whose
name holds "flash" the whole axis and the lengths of its parts (images, windows) in one call, where
others are called once per part. One call per layer is what a site is."""

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
        key: `batch kv_head key_pos d_head`.
        value: Like key.
        attention_mask: Added to the scores; None for full attention.
        scaling: Factor on the scores; 1/sqrt(d_head) by default.
        dropout: Unused outside of training.
        softcap: Bound of the scores (tanh), as Gemma-2 has it.
        kwargs: What other implementations need; `cu_seq_lens_q` are the ends of the parts of a
            packed axis, which do not attend to each other.

    Returns:
        z as `batch query_pos head d_head`, and the pattern.
    """
    lines = _lines_of(module)
    ends = kwargs.pop("cu_seq_lens_q", None)
    if ends is not None and not lines:
        return _attend_parts(module, query, key, value, ends, scaling=scaling, **kwargs), None
    if ends is not None:
        attention_mask = _block_mask(ends, query)
    if not lines and softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    query, key = _carry(lines, "rot_q", query, swap=True), _carry(lines, "rot_k", key, swap=True)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    factor: float = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * factor
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    scores = _carry(lines, "scores", scores)
    pattern = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    pattern = _carry(lines, "pattern", pattern)
    pattern = nn.functional.dropout(pattern, p=dropout, training=module.training)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def _attend_parts(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, ends: Tensor, **kwargs: Any
) -> Tensor:
    """SDPA of each part of a packed axis, as transformers does it."""
    lengths = (ends[1:] - ends[:-1]).tolist()
    parts = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    outs = [sdpa_attention_forward(module, q, k, v, None, **kwargs)[0] for q, k, v in parts]
    return torch.cat(outs, dim=1)


def _block_mask(ends: Tensor, like: Tensor) -> Tensor | None:
    """Mask of a packed axis: zero within a part, the smallest number between parts."""
    if len(ends) <= 2:
        return None
    n = like.shape[2]
    part = torch.bucketize(
        torch.arange(n, device=like.device), ends[1:].to(like.device), right=True
    )
    mask = like.new_zeros(1, 1, n, n)
    return mask.masked_fill_(part[:, None] != part[None, :], torch.finfo(like.dtype).min)


for _name in (NAME, PACKED):
    AttentionInterface.register(_name, attend)
    AttentionMaskInterface.register(_name, eager_mask)


def configurations(hf: PreTrainedModel) -> list[Any]:
    """Every configuration object that a submodule may look its implementation up in."""
    found: dict[int, Any] = {}
    for module in hf.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


@contextmanager
def implemented(configs: Sequence[Any], names: Callable[[Any], str]) -> Iterator[None]:
    """Run a model under other attention functions while the context is open, then as it was.

    Args:
        configs: What `configurations` found.
        names: Registered function of each configuration.
    """
    # The public attribute sets the configurations below it too, so the plain one is used.
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config in configs:
            config._attn_implementation_internal = names(config)
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation


@contextmanager
def opened(
    configs: Sequence[Any], board: Switchboard, packed: Sequence[nn.Module] = ()
) -> Iterator[None]:
    """Run a model under `attend` while the context is open, then exactly as it was.

    Args:
        configs: What `configurations` found.
        board: Whose visitors to serve.
        packed: Modules whose attention takes the images of a batch on one axis.
    """
    flat = {id(module.config) for module in packed if hasattr(module, "config")}
    _boards.append(board)
    try:
        with implemented(configs, lambda config: PACKED if id(config) in flat else NAME):
            yield
    finally:
        _boards.remove(board)


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
