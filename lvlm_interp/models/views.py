"""How sites see the tensors that pass in a model: which axes, which heads, which rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lvlm_interp.models.inputs.run import CurrentRun


@dataclass(frozen=True)
class View:
    """How a site sees a raw tensor, and how a new value goes back into it."""

    read: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, Tensor], Tensor]

    def then(self, inner: View) -> View:
        """This view first, `inner` on what it sees."""
        return View(
            lambda raw: inner.read(self.read(raw)),
            lambda raw, new: self.write(raw, inner.write(self.read(raw), new)),
        )


AS_IS = View(lambda raw: raw, lambda raw, new: new)


def heads(n: int, d_head: int) -> View:
    """`... head*d_head` seen as `... head d_head`."""
    return View(
        lambda raw: raw.unflatten(-1, (n, d_head)), lambda raw, new: new.flatten(start_dim=-2)
    )


def fused_heads(index: int, n: int, d_head: int) -> View:
    """One of q, k, v (index 0, 1, 2), of `n` heads, out of one axis that holds them in this order.

    Keys and values have as many heads as each other, queries may have more.
    """

    def place(raw: Tensor) -> slice:
        start = 0 if index == 0 else raw.shape[-1] - (3 - index) * n * d_head
        return slice(start, start + n * d_head)

    def write(raw: Tensor, new: Tensor) -> Tensor:
        at = place(raw)
        parts = [raw[..., : at.start], new.flatten(start_dim=-2), raw[..., at.stop :]]
        return torch.cat(parts, dim=-1)

    return View(lambda raw: raw[..., place(raw)].unflatten(-1, (n, d_head)), write)


def leading(n: int) -> View:
    """The first `n` numbers of a head that carries more (a gate behind its query)."""
    return View(lambda raw: raw[..., :n], lambda raw, new: torch.cat([new, raw[..., n:]], dim=-1))


FLAT_POSITIONS = View(lambda raw: raw.flatten(1, -2), lambda raw, new: new.reshape(raw.shape))
"""For tensors with several axes between batch and width (images, tiles, patches)."""


def scaled(factor: Callable[[], Tensor]) -> View:
    """A branch that the block multiplies by a factor (LayerScale, a tanh gate) before adding it.

    Where the factor is zero the raw value stays: nothing written there could be seen.
    """

    def write(raw: Tensor, new: Tensor) -> Tensor:
        by = factor()
        return torch.where(by == 0, raw, new / torch.where(by == 0, torch.ones_like(by), by))

    return View(lambda raw: raw * factor(), write)


@dataclass(eq=False)
class Frame:
    """What a module was last called with, for views that need it; filled while it is in use."""

    module: nn.Module
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    users: int = 0
    handle: Any = None

    def open(self) -> None:
        """Start to follow the module's calls."""
        self.users += 1
        if self.users == 1:
            self.handle = self.module.register_forward_pre_hook(self._note, with_kwargs=True)

    def close(self) -> None:
        """Stop, once nobody needs it, and keep no tensor alive."""
        self.users -= 1
        if self.users == 0:
            self.handle.remove()
            self.args, self.kwargs = (), {}

    def _note(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs

    @property
    def stream(self) -> Tensor:
        """The residual stream that the module was called with."""
        return self.kwargs["hidden_states"] if "hidden_states" in self.kwargs else self.args[0]


@runtime_checkable
class Follower(Protocol):
    """What follows calls of a model while a view needs to know of them."""

    def open(self) -> None:
        """Start to follow."""

    def close(self) -> None:
        """Stop, once nobody needs it."""


def unflattened(frame: Frame) -> View:
    """`batch*pos d` seen as `batch pos d`, with the axes that the block was called with."""
    return View(
        lambda raw: raw if raw.ndim > 2 else raw.unflatten(0, frame.stream.shape[:-1]),
        lambda raw, new: new.reshape(raw.shape),
    )


def regrouped(frame: Frame) -> View:
    """`batch*tile pos d` seen as `batch pos d`, with the batch that the block was called with."""
    return View(
        lambda raw: raw.reshape(frame.stream.shape[0], -1, raw.shape[-1]),
        lambda raw, new: new.reshape(raw.shape),
    )


_FIRST = View(lambda raw: raw[0], lambda raw, new: new[None])
"""Of a batch of one, as the attention function gets of flat towers."""


@dataclass(frozen=True)
class TowerViews:
    """The views of one tower.

    Attributes:
        positions: Of what modules get and give.
        rotary: Of queries and keys inside the attention function.
        scores, pattern: Of queries by keys.
        run: What the views need to know of; None for the language model, whose tensors have the
            row first as they are.
    """

    positions: View = AS_IS
    rotary: View = AS_IS
    scores: View = AS_IS
    pattern: View = AS_IS
    run: CurrentRun | None = None

    def of_part(self, part: str) -> View:
        """Of a part of the attention function, by its name in `hooks.ATTENTION_PARTS`."""
        return {"scores": self.scores, "pattern": self.pattern}.get(part, self.rotary)


def by_row(run: CurrentRun, tower: str) -> View:
    """`row pos ...` of a tower's tensors."""
    return View(
        lambda raw: run.rows(tower).read(raw), lambda raw, new: run.rows(tower).write(raw, new)
    )


def tower_views(run: CurrentRun, tower: Tower) -> TowerViews:
    """Of a tower in front of the language model.

    Args:
        run: Knows the rows of the run that is going on.
        tower: The tower.
    """
    name, plain = tower.name, by_row(run, tower.name)
    first = _FIRST.then(plain)

    def write(raw: Tensor, new: Tensor) -> Tensor:
        return run.rows(name).write_pairs(raw, new)

    return TowerViews(
        first if tower.packed else plain,
        first if tower.flat or tower.packed else plain,
        View(lambda raw: run.rows(name).read_pairs(raw, torch.finfo(raw.dtype).min), write),
        View(lambda raw: run.rows(name).read_pairs(raw, 0.0), write),
        run,
    )
