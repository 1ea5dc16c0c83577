"""Replay: patched runs that branch off one recorded run of the language model.

A patch at layer l and positions >= p leaves everything before it as it was. So one run is recorded
(inputs of every block, keys and values), and each patched run is a *branch*: blocks l and above,
positions p and above, attending to the recorded keys and values of the prefix. Branches of one
layer join those of earlier layers in one batch, laid out along the position axis, so that the
prefix is shared without a copy. With p the last position, a branch is a single token.

This is exact only while positions before p cannot see positions from p on. `Recording.refusal`
checks it on the masks that the model itself made (no list of families: it is what fails for
PaliGemma and inside Gemma-3 image spans), and an unpatched branch that runs along with the others
must come back to the recorded run (`Recording.drift`). What fails is refused, with the reason, and
callers fall back to full forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask

from lvlm_interp.models.hooks import ATTENTION_PARTS, Frame
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.sites import Site

NAME = "lvlm_interp_replay"
MIB = 2**20

_KNOWN = ("attention_mask", "position_ids", "cache_position", "position_embeddings")
"""Arguments of a block that replay knows how to cut to the positions of a branch."""

Write = Callable[[Tensor], Tensor]
"""Gets a site's value in branch layout, `batch branch pos ...`, and returns the new one."""

Writes = Callable[[int, list[int]], Mapping[Site, Write]]
"""From a layer and the places of the branches that leave there to the writes at its sites."""


@dataclass(eq=False)
class _Layer:
    """What one block was called with, and what its attention saw."""

    block: nn.Module
    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    key: Tensor
    value: Tensor
    mask: Tensor | None
    shift: Tensor | None = None
    """Added behind the block before the next one (deepstack), None for nothing."""


@dataclass(eq=False)
class _Context:
    """What the attention function needs to run branches of one block."""

    layer: _Layer
    start: int
    n_branches: int


_recording: dict[int, list[tuple[Tensor, Tensor, Tensor | None]]] = {}
_branching: dict[int, _Context] = {}


@dataclass(frozen=True, eq=False)
class Recording:
    """One run of the language model that branches can leave.

    Attributes:
        model: The model.
        inputs: Of the run.
        logits: At the answer; shape `batch d_vocab`.
        layers: What every block saw; empty where it could not be recorded.
        unfit: Why no branch can be run, empty if it can.
    """

    model: LVLM
    inputs: Inputs
    logits: Float[Tensor, "batch d_vocab"]
    layers: list[_Layer]
    unfit: str = ""
    _verdicts: dict[int, str] = field(default_factory=dict)

    @property
    def n_positions(self) -> int:
        """Length of the sequence."""
        return self.inputs["input_ids"].shape[1]

    def refusal(self, start: int) -> str:
        """Why branches from a position on cannot be exact, by the masks; empty if they can.

        Whether they are, `drift` says of an unpatched branch.
        """
        if self.unfit:
            return self.unfit
        if start not in self._verdicts:
            reason = f"positions before {start} attend to positions behind it"
            self._verdicts[start] = reason if self._sees_ahead(start) else ""
        return self._verdicts[start]

    def drift(self, null: Float[Tensor, "batch d_vocab"]) -> str:
        """Why an unpatched branch, left at block 0, is not the run itself; empty if it is."""
        scale = max(1.0, float(self.logits.float().abs().max()))
        error = float((null.float() - self.logits.float()).abs().max())
        bound = 256 * torch.finfo(self.logits.dtype).eps * scale
        return "" if error <= bound else f"the unpatched run comes back off by {error:.1e}"

    def _sees_ahead(self, start: int) -> bool:
        if start == 0:
            return False
        for layer in self.layers:
            if layer.mask is None:
                return True
            ahead = layer.mask[..., :start, start:]
            if bool((ahead > torch.finfo(ahead.dtype).min / 2).any()):
                return True
        return False

    @torch.no_grad()
    def run(
        self,
        branches: Sequence[int],
        start: int,
        writes: Writes,
    ) -> Float[Tensor, "branch batch d_vocab"]:
        """Logits at the answer of every branch; all are held at once.

        Args:
            branches: The layer at which each leaves the recorded run, in ascending order.
            start: First position that differs from the recorded run.
            writes: Given a layer and the branches' places in the batch, the writes at its sites
                (in branch layout).
        """
        order = list(branches)
        assert order == sorted(order), "branches join in the order of their layers"
        first, n = order[0], len(self.layers)
        hidden: Tensor | None = None
        joined = 0
        with _implementation(self.model.hf):
            for index in range(first, n):
                layer = self.layers[index]
                fresh = [i for i in range(joined, len(order)) if order[i] == index]
                if fresh:
                    base = layer.hidden[:, None, start:].expand(-1, len(fresh), -1, -1)
                    hidden = base if hidden is None else torch.cat([hidden, base], dim=1)
                    joined += len(fresh)
                assert hidden is not None
                edits = writes(index, fresh) if fresh else {}
                hidden = self._block(layer, hidden, start, edits)
                if layer.shift is not None:
                    hidden = hidden + layer.shift[:, None, start:]
        assert hidden is not None
        last = (self.inputs.last.to(hidden.device) - start)[:, None, None, None]
        rows = hidden.gather(2, last.expand(-1, hidden.shape[1], 1, hidden.shape[-1]))[:, :, 0]
        return self._unembed(rows).transpose(0, 1)

    def _block(
        self, layer: _Layer, hidden: Tensor, start: int, edits: Mapping[Site, Write]
    ) -> Tensor:
        n_batch, n_branches, n_pos, width = hidden.shape
        flat = hidden.reshape(n_batch, n_branches * n_pos, width)

        def lifted(write: Write) -> Callable[[Tensor], Tensor]:
            def edit(value: Tensor) -> Tensor:
                shape = (n_batch, n_branches, n_pos, *value.shape[2:])
                return write(value.reshape(shape)).reshape(value.shape)

            return edit

        visitors: dict[str | Site, Any] = {site: lifted(write) for site, write in edits.items()}
        kwargs = {
            name: _cut(name, value, self.n_positions, start, n_branches)
            for name, value in layer.kwargs.items()
        }
        args = tuple(_cut("", value, self.n_positions, start, n_branches) for value in layer.args)
        module = _attention_of(layer.block)
        _branching[id(module)] = _Context(layer, start, n_branches)
        try:
            with self.model.edit(visitors):
                out = layer.block(flat, *args, **kwargs)
        finally:
            del _branching[id(module)]
        return _first(out).reshape(n_batch, n_branches, n_pos, width)

    def _unembed(self, rows: Tensor) -> Tensor:
        logits = self.model.tap("logits").module(self.model.final_norm(rows))
        config = self.model.config.get_text_config()
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if not cap else torch.tanh(logits / cap) * cap

    def branch_bytes(self, start: int) -> int:
        """Bytes that one branch needs at most: a few residual streams, the MLP, its scores."""
        size = self.model.towers["text"]
        n = self.n_positions - start
        config = self.model.config.get_text_config()
        width = 8 * size.d_model + 3 * getattr(config, "intermediate_size", 4 * size.d_model)
        scores = 3 * size.n_heads * self.n_positions
        return self.inputs.batch_size * n * (width + scores) * self.layers[0].hidden.element_size()


def record_run(model: LVLM, inputs: Inputs) -> Recording:
    """Run the model once and keep what branches need.

    The vision tower runs here and never again.
    """
    blocks = _blocks(model)
    frames = [Frame(block) for block in blocks]
    outputs = _deepstack_sites(model)
    modules = [_attention_of(block) for block in blocks]
    for frame in frames:
        frame.open()
    seen = {id(module): [] for module in modules if module is not None}
    _recording.update(seen)
    try:
        with _implementation(model.hf), model.record(outputs) as cache:
            logits = model.last_logits(inputs)
        found = [(frame.args, dict(frame.kwargs)) for frame in frames]
    finally:
        for frame in frames:
            frame.close()
        for key in seen:
            del _recording[key]
    layers: list[_Layer] = []
    for block, module, (args, kwargs) in zip(blocks, modules, found, strict=True):
        reason = _unfit(block, module, args, kwargs, seen, inputs)
        if reason:
            return Recording(model, inputs, logits, [], reason)
        hidden = kwargs.pop("hidden_states") if "hidden_states" in kwargs else args[0]
        rest = args[1:] if "hidden_states" not in kwargs and args else ()
        layers.append(_Layer(block, hidden, rest, kwargs, *seen[id(module)][0]))
    for index, site in enumerate(outputs[:-1]):
        shift = layers[index + 1].hidden - cache[site]
        layers[index].shift = shift if bool(shift.any()) else None
    return Recording(model, inputs, logits, layers)


def _deepstack_sites(model: LVLM) -> list[Site]:
    """Outputs of the blocks where the model adds image features between blocks, else nothing."""
    vision = getattr(model.config, "vision_config", None)
    if not getattr(vision, "deepstack_visual_indexes", None):
        return []
    return model.sites("text.*.resid_post")


def _unfit(
    block: nn.Module,
    module: nn.Module | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seen: dict[int, list[Any]],
    inputs: Inputs,
) -> str:
    """Why a block cannot be replayed; empty if it can."""
    name = type(block).__name__
    if module is None or len(seen[id(module)]) != 1:
        return f"{name} has no single call of its attention"
    if not args and "hidden_states" not in kwargs:
        return f"{name} was called without hidden states"
    hidden = kwargs.get("hidden_states", args[0] if args else None)
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        return f"{name} has no hidden states of shape batch pos d_model"
    unknown = [
        key
        for key, value in kwargs.items()
        if key not in (*_KNOWN, "hidden_states") and _holds_tensor(value)
    ]
    if unknown or any(_holds_tensor(value) for value in args[1:]):
        return f"{name} takes {', '.join(unknown) or 'further tensors'}"
    if seen[id(module)][0][0].shape[-2] != inputs["input_ids"].shape[1]:
        return f"{name} attends to something else than its own positions"
    return ""


def _blocks(model: LVLM) -> list[nn.Module]:
    tower = next(tower for tower in model.family.towers if tower.name == "text")
    return list(attrgetter(tower.layers)(model.hf))


def _attention_of(block: nn.Module) -> nn.Module | None:
    """The module that calls the attention function."""
    for name in ("self_attn", "attention", "attn"):
        module = getattr(block, name, None)
        if isinstance(module, nn.Module):
            return module
    return None


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_tensor(each) for each in value)
    return isinstance(value, Tensor)


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _cut(name: str, value: Any, n: int, start: int, n_branches: int) -> Any:
    """An argument of a block, cut to the positions of a branch and repeated for each."""
    if name == "attention_mask":
        return None  # the attention function has the recorded one
    if isinstance(value, tuple | list):
        return type(value)(_cut(name, each, n, start, n_branches) for each in value)
    if not isinstance(value, Tensor):
        return value
    axis = value.ndim - 2 if name == "position_embeddings" else value.ndim - 1
    if value.shape[axis] != n:
        return value
    part = value.narrow(axis, start, n - start)
    return part.repeat([n_branches if i == axis else 1 for i in range(part.ndim)])


@contextmanager
def _implementation(hf: Any) -> Iterator[None]:
    configs = {
        id(module.config): module.config
        for module in hf.modules()
        if hasattr(getattr(module, "config", None), "_attn_implementation_internal")
    }
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = NAME
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA that notes keys and values while recording, and attends to the prefix in a branch."""
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    context = _branching.get(id(module))
    if context is not None:
        return _attend_branches(context, query, key, value, factor, softcap), None
    notes = _recording.get(id(module))
    if notes is not None:
        notes.append((key, value, attention_mask))
    if softcap is not None:
        return _softcapped(query, key, value, attention_mask, factor, softcap), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=factor, **kwargs
    )[0], None


def _softcapped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, cap: float
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    scores = query @ repeat_kv(key, groups).transpose(-1, -2) * scaling
    scores = torch.tanh(scores / cap) * cap
    if mask is not None:
        scores = scores + mask
    pattern = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (pattern @ repeat_kv(value, groups)).transpose(1, 2).contiguous()


def _attend_branches(
    context: _Context,
    query: Float[Tensor, "batch head row d_head"],
    key: Float[Tensor, "batch kv_head row d_head"],
    value: Float[Tensor, "batch kv_head row d_head"],
    scaling: float,
    softcap: float | None,
) -> Float[Tensor, "batch row head d_head"]:
    """Attention of every branch to the shared prefix and to its own positions.

    `row` runs over branches and their positions. One matrix product serves all branches for the
    prefix, which is never copied.
    """
    start, n_branches = context.start, context.n_branches
    n_batch, n_heads, n_rows, d_head = query.shape
    n_kv, n_pos = key.shape[1], n_rows // n_branches
    mask = context.layer.mask
    if start == 0 and softcap is None:
        return _attend_whole(query, key, value, mask, scaling, n_branches)
    groups = n_heads // n_kv
    before_k, before_v = context.layer.key[:, :, :start], context.layer.value[:, :, :start]
    shape = (n_batch, n_kv, groups, n_branches, n_pos)
    by_kv = query.reshape(n_batch, n_kv, groups * n_rows, d_head)
    own_k, own_v = (x.reshape(n_batch, n_kv, 1, n_branches, n_pos, d_head) for x in (key, value))
    ahead = (by_kv @ before_k.transpose(-1, -2)).reshape(*shape, start)
    own = by_kv.reshape(*shape, d_head) @ own_k.transpose(-1, -2)
    scores = torch.cat([ahead, own], dim=-1) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask[:, :, None, None, start:]
    pattern = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    z = (pattern[..., :start].reshape(n_batch, n_kv, -1, start) @ before_v).reshape(*shape, d_head)
    z = z + pattern[..., start:] @ own_v
    return z.reshape(n_batch, n_heads, n_rows, d_head).transpose(1, 2)


def _attend_whole(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, n_branches: int
) -> Tensor:
    """Branches from the first position on share nothing: plain attention of each."""
    groups = query.shape[1] // key.shape[1]

    def apart(x: Tensor) -> Tensor:
        n_batch, n_heads, n_rows, width = x.shape
        split = x.reshape(n_batch, n_heads, n_branches, n_rows // n_branches, width)
        return split.transpose(1, 2).reshape(n_batch * n_branches, n_heads, -1, width)

    q, k, v = apart(query), repeat_kv(apart(key), groups), repeat_kv(apart(value), groups)
    each = None
    if mask is not None:
        n_batch = query.shape[0]
        each = mask.expand(n_batch, -1, -1, -1).repeat_interleave(n_branches, dim=0)
    z = scaled_dot_product_attention(q, k, v, attn_mask=each, scale=scaling)
    z = z.reshape(query.shape[0], n_branches, query.shape[1], -1, query.shape[-1])
    return z.permute(0, 1, 3, 2, 4).reshape(query.shape[0], -1, query.shape[1], query.shape[-1])


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, eager_mask)


def can_branch(site: Site) -> bool:
    """Whether a patch at this site can be a branch: it lies in a block, outside of attention."""
    return site.tower == "text" and site.layer is not None and site.name not in ATTENTION_PARTS
