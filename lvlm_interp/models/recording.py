"""Recording: one run of the language model, kept so that patched runs can branch off it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from lvlm_interp.models.hooks import rerouted
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.models.replay_attention import Notes, Seen, noting, replaying
from lvlm_interp.models.views import Frame
from lvlm_interp.sites import Site

KNOWN = {"attention_mask": 0, "position_ids": -2, "position_embeddings": -3, "cache_position": -2}
"""Tensors given to a block that replay knows how to cut to the positions of a branch, and the axis
of the batch, where they have as many."""

ONE_CALL = {"cpu": 7 * 2**18, "other": 2**26}
"""Bytes of the widest activations of one call, by device. Beyond it products gain nothing, and on a
processor the element-wise steps between them fall out of its caches."""


@dataclass(eq=False)
class Layer:
    """What one block was called with, and what passed in it.

    Attributes:
        block: The block.
        attention: Its module that calls the attention function.
        hidden: The residual stream in front of it; shape `batch pos d_model`.
        args, kwargs: The rest of the call.
        seen: What its attention saw.
        attended: What the attention module gave; shape `batch pos d_model`.
        extras: What it returned behind that; None where it returned the tensor alone.
        output: The linear map from z to `attended`; None where there is none, so that a patch of z
            has to run the attention again.
        per_query: Linear maps in the attention that only positions with a query need.
        shift: Added behind the block before the next one (deepstack), None for nothing.
    """

    block: nn.Module
    attention: nn.Module
    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seen: Seen
    attended: Tensor
    extras: tuple[Any, ...] | None
    output: nn.Linear | None = None
    per_query: Sequence[nn.Linear] = ()
    shift: Tensor | None = None


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
    layers: list[Layer]
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

    def of_rows(self, start: int, inputs: Inputs) -> Recording:
        """The recording of some rows of the batch, from `start` on, whose inputs are given."""
        n, known = self.inputs.batch_size, {}

        def mine(value: Any, axis: int = 0) -> Any:
            if isinstance(value, tuple | list):
                return type(value)(mine(each, axis) for each in value)
            if not isinstance(value, Tensor) or value.ndim < -axis or value.shape[axis] != n:
                return value
            if id(value) not in known:  # blocks share their arguments
                known[id(value)] = value.narrow(axis, start, inputs.batch_size)
            return known[id(value)]

        layers = [
            replace(
                layer,
                hidden=mine(layer.hidden),
                kwargs={k: mine(v, KNOWN[k]) if k in KNOWN else v for k, v in layer.kwargs.items()},
                seen=Seen(*(mine(getattr(layer.seen, each.name)) for each in fields(Seen))),
                attended=mine(layer.attended),
                shift=mine(layer.shift),
            )
            for layer in self.layers
        ]
        return Recording(self.model, inputs, mine(self.logits), layers, self.unfit)

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
            if layer.seen.causal:
                continue
            mask = layer.seen.mask
            if mask is None:
                return True
            ahead = mask[..., :start, start:]
            if bool((ahead > torch.finfo(ahead.dtype).min / 2).any()):
                return True
        return False

    def branch_bytes(self, start: int) -> int:
        """Bytes that one branch needs at most: a few residual streams, the MLP, its scores."""
        size = self.model.towers["text"]
        n = self.n_positions - start
        width = 8 * size.d_model + 3 * _d_mlp(self.model)
        scores = 3 * size.n_heads * self.n_positions
        return self.inputs.batch_size * n * (width + scores) * self.layers[0].hidden.element_size()


def rows_at_once(model: LVLM) -> int:
    """Positions of all rows of a call beyond which it gains nothing from more of them."""
    room = ONE_CALL.get(model.device.type, ONE_CALL["other"])
    return room // (_d_mlp(model) * model.dtype.itemsize)


def _d_mlp(model: LVLM) -> int:
    config = model.config.get_text_config()
    return getattr(config, "intermediate_size", 4 * model.d_model)


def record_run(model: LVLM, inputs: Inputs) -> Recording:
    """Run the model once and keep what branches need.

    The vision tower runs here and never again. The self-check compares a recorded run
    with a bare one.
    """
    blocks = _blocks(model)
    modules = [attention_of(block) for block in blocks]
    outputs = _deepstack_sites(model)
    calls: dict[int, Any] = {}
    with ExitStack() as stack:
        frames = [stack.enter_context(_followed(block)) for block in blocks]
        attending = [each for each in modules if each is not None]
        notes = stack.enter_context(noting(attending, model._board.inputs))
        for module in modules:
            if module is not None:
                stack.enter_context(rerouted(module, _keeping(calls, id(module))))
        stack.enter_context(replaying(model._runs))
        cache = stack.enter_context(model.record(outputs))
        logits = model.last_logits(inputs)
        found = [(frame.args, dict(frame.kwargs)) for frame in frames]
    if notes.unknown:
        names = ", ".join(sorted(notes.unknown))
        return _unrecorded(model, inputs, f"attention is given {names}, which is not understood")
    if model._runs.records_exactly is False:
        return _unrecorded(model, inputs, "recording moves the logits of this model")
    layers: list[Layer] = []
    for index, (block, module, call) in enumerate(zip(blocks, modules, found, strict=True)):
        reason = _unfit(block, module, *call, notes, inputs)
        if reason:
            return Recording(model, inputs, logits, [], reason)
        assert module is not None
        layer = _layer(block, module, *call, notes.seen[id(module)][0], calls[id(module)])
        layer.output = _output(model, index, layer)
        layer.per_query = _per_query(model, index, layer)
        layers.append(layer)
    for index, site in enumerate(outputs[:-1]):
        shift = layers[index + 1].hidden - cache[site]
        layers[index].shift = shift if bool(shift.any()) else None
    return Recording(model, inputs, logits, layers)


def _unrecorded(model: LVLM, inputs: Inputs, reason: str) -> Recording:
    return Recording(model, inputs, model.last_logits(inputs), [], reason)


def attention_of(block: nn.Module) -> nn.Module | None:
    """The module of a block that calls the attention function."""
    for name in ("self_attn", "attention", "attn"):
        module = getattr(block, name, None)
        if isinstance(module, nn.Module):
            return module
    return None


def first(out: Any) -> Tensor:
    """The tensor of a module's output, which may have others behind it."""
    return out[0] if isinstance(out, tuple) else out


@dataclass(eq=False)
class Cuts:
    """Arguments of the attention, cut to the positions of branches and repeated for each.

    Blocks share their arguments, so what was cut for one serves the others.

    Attributes:
        n_positions: Of the recorded run.
        start: First position of the branches.
        most: Branches that there can be.
    """

    n_positions: int
    start: int
    most: int
    _kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of(self, name: str, value: Any, n_branches: int) -> Any:
        """An argument of the recorded run as some branches have it."""
        if name == "attention_mask":
            return None  # the attention function has the recorded one
        if isinstance(value, tuple | list):
            return type(value)(self.of(name, each, n_branches) for each in value)
        if not isinstance(value, Tensor) or (name and name not in KNOWN):
            return value
        axis = value.ndim - 2 if name == "position_embeddings" else value.ndim - 1
        if value.shape[axis] != self.n_positions:
            return value
        n_own, key = self.n_positions - self.start, (id(value), axis)
        if key not in self._kept:
            part = value.narrow(axis, self.start, n_own)
            times = [self.most if i == axis else 1 for i in range(part.ndim)]
            self._kept[key] = value, part.repeat(times)
        return self._kept[key][1].narrow(axis, 0, n_branches * n_own)


@contextmanager
def _followed(block: nn.Module) -> Iterator[Frame]:
    frame = Frame(block)
    frame.open()
    try:
        yield frame
    finally:
        frame.close()


def _keeping(calls: dict[int, Any], key: int) -> Any:
    def route(own: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        calls[key] = own(*args, **kwargs)
        return calls[key]

    return route


def _layer(
    block: nn.Module,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    seen: Seen,
    given: Any,
) -> Layer:
    named = "hidden_states" in kwargs
    hidden = kwargs.pop("hidden_states") if named else args[0]
    extras = given[1:] if isinstance(given, tuple) else None
    rest = args if named else args[1:]
    return Layer(block, module, hidden, rest, kwargs, seen, first(given), extras)


def _output(model: LVLM, index: int, layer: Layer) -> nn.Linear | None:
    """The linear map from z to what the attention module gives, proved on its last position."""
    output = model.tap(Site("text", index, "z")).module
    # A plain layer and nothing else: no adapter, no quantised weights, no forward that was wrapped.
    if not isinstance(output, nn.Linear) or type(output) is not nn.Linear:
        return None
    if "forward" in vars(output) or layer.seen.z.shape[-2:].numel() != output.in_features:
        return None
    with torch.no_grad():
        # Not the module itself: who listens to it would take this for another call.
        given = linear(layer.seen.z[:, -1:].flatten(2), output.weight, output.bias)
    scale = max(1.0, float(given.abs().max()))
    bound = 64 * torch.finfo(given.dtype).eps * scale
    close = float((given - layer.attended[:, -1:]).abs().max()) <= bound
    return output if close else None


def _per_query(model: LVLM, index: int, layer: Layer) -> list[nn.Linear]:
    query, key, value = (model.tap(Site("text", index, name)).module for name in "qkv")
    found = [] if layer.output is None else [layer.output]
    if type(query) is nn.Linear and query is not key and query is not value:
        found.append(query)
    return found


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
    notes: Notes,
    inputs: Inputs,
) -> str:
    """Why a block cannot be replayed; empty if it can."""
    name = type(block).__name__
    if module is None or len(notes.seen[id(module)]) != 1:
        return f"{name} has no single call of its attention"
    if not args and "hidden_states" not in kwargs:
        return f"{name} was called without hidden states"
    hidden = kwargs.get("hidden_states", args[0] if args else None)
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        return f"{name} has no hidden states of shape batch pos d_model"
    unknown = [
        key
        for key, value in kwargs.items()
        if key not in (*KNOWN, "hidden_states") and _holds_tensor(value)
    ]
    if unknown or any(_holds_tensor(value) for value in args[1:]):
        return f"{name} takes {', '.join(unknown) or 'further tensors'}"
    if notes.seen[id(module)][0].key.shape[-2] != inputs["input_ids"].shape[1]:
        return f"{name} attends to something else than its own positions"
    return ""


def _blocks(model: LVLM) -> list[nn.Module]:
    tower = next(tower for tower in model.family.towers if tower.name == "text")
    return list(attrgetter(tower.layers)(model.hf))


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_tensor(each) for each in value)
    return isinstance(value, Tensor)
