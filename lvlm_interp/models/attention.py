"""The registered attention function: reads and edits rotary q and k, scores and pattern.

transformers looks its attention function up by name. While something is connected inside
attention, the model's implementation is ours (`runs`), and it is what it was afterwards. Modules
that nobody asked about still run SDPA.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask

from lvlm_interp.errors import ModelError
from lvlm_interp.models.hooks import Line, Switchboard
from lvlm_interp.models.runs import Names

NAME = "lvlm_interp"
PACKED = "lvlm_interp_flash"
"""For towers that flatten all images into one axis: transformers gives an implementation whose
name holds "flash" the whole axis and the lengths of its parts (images, windows) in one call, where
others are called once per part. One call per layer is what a site is."""

KNOWN = (
    "cu_seq_lens_q cu_seq_lens_k max_length_q max_length_k is_causal sliding_window position_ids "
    "output_attentions output_hidden_states output_router_logits num_items_in_batch use_cache "
    "past_key_values cache_position"
).split()
"""Arguments that change nothing here: the mask says the same, or they are for others."""

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
    refuse_unknown(module, kwargs, {name for board in _boards for name in board.inputs})
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
    if attention_mask is None and ends is None:
        attention_mask = _implied_mask(module, query, key, kwargs.get("is_causal"))
    query, key = _carry(lines, "rot_q", query, swap=True), _carry(lines, "rot_k", key, swap=True)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    factor: float = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * factor
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = _masked(scores, attention_mask[..., : key.shape[-2]])
    scores = _carry(lines, "scores", scores)
    # At least in single precision, as the models have it; a model in double precision stays there.
    precision = torch.promote_types(scores.dtype, torch.float32)
    pattern = torch.softmax(scores, dim=-1, dtype=precision).to(query.dtype)
    pattern = _carry(lines, "pattern", pattern)
    pattern = nn.functional.dropout(pattern, p=dropout, training=module.training)
    return (pattern @ value).transpose(1, 2).contiguous(), pattern


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype == torch.bool:  # made for SDPA, by who calls the Hugging Face model directly
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask


def _implied_mask(
    module: nn.Module, query: Tensor, key: Tensor, is_causal: bool | None
) -> Tensor | None:
    """What SDPA takes no mask to mean: causal where the module says so, from the first key on."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    n, m = query.shape[2], key.shape[2]
    if not causal or n == 1:
        return None
    return torch.ones(1, 1, n, m, dtype=torch.bool, device=query.device).tril()


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


def implementation(packed: Sequence[nn.Module] = ()) -> Names:
    """Which registered function each configuration of a model has while visitors are inside.

    Args:
        packed: Modules whose attention takes the images of a batch on one axis.
    """
    flat = {id(module.config) for module in packed if hasattr(module, "config")}
    return lambda config: PACKED if id(config) in flat else NAME


@contextmanager
def served(board: Switchboard) -> Iterator[None]:
    """`attend` knows of a board while the context is open."""
    _boards.append(board)
    try:
        yield
    finally:
        _boards.remove(board)


def unknown_to_us(kwargs: Mapping[str, Any], inputs: Container[str]) -> list[str]:
    """Arguments of an attention function that may change it and are not understood.

    Args:
        kwargs: What it was called with.
        inputs: Names of the model's own inputs, which models hand on to every block.
    """
    given = [name for name, value in kwargs.items() if value is not None]
    return sorted(name for name in given if name not in KNOWN and name not in inputs)


def refuse_unknown(module: nn.Module, kwargs: Mapping[str, Any], inputs: Container[str]) -> None:
    """Refuse what would change attention and is not understood.

    Raises:
        ModelError: An argument that is not known has a value.
    """
    if unknown := unknown_to_us(kwargs, inputs):
        raise ModelError(
            f"{type(module).__name__} gives its attention {', '.join(unknown)}, which is "
            "not understood here: what is inside of its attention can be neither read nor edited."
        )


def _lines_of(module: nn.Module) -> dict[str, Line]:
    for board in _boards:
        lines = board.attention.get(id(module))
        if lines is not None:
            return {part: line for part, line in lines.items() if line.is_heard}
    return {}


def _carry(lines: dict[str, Line], part: str, raw: Tensor, *, swap: bool = False) -> Tensor:
    if part not in lines:
        return raw
    if not swap:
        return lines[part].carry(raw)
    # Sites put positions before heads; the attention function has heads first.
    return lines[part].carry(raw.transpose(1, 2)).transpose(1, 2)
