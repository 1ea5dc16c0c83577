"""From the last residual stream to logits: final norm, head, and what the model does behind it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lvlm_interp.errors import ModelError
from lvlm_interp.models.hooks import rerouted
from lvlm_interp.models.inputs.sample import synthetic_inputs
from lvlm_interp.models.maps.linear import FrozenNorm, affine_of, called

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM

_SPREAD = 1e4
"""Largest logit that the tail is asked about: beyond any cap, within float16."""


@dataclass(frozen=True)
class Tail:
    """What a model does to the output of its head: cap * tanh(scale * x / cap).

    Attributes:
        scale: Of the logits (1 for most models).
        cap: Of a soft cap; None without one.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """Logits, from what the head gives."""
        scaled = raw if self.scale == 1.0 else raw * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


class Unembedding:
    """Logits of any residual stream, as the model's own forward makes them.

    Its parts are called past the hooks that are open, on their own devices.

    Attributes:
        norm, head: The modules.
    """

    def __init__(self, model: LVLM) -> None:
        self._model = model
        self.norm: nn.Module = model.tap("text.final_norm").module
        self.head: nn.Module = model.tap("logits").module

    def __call__(
        self, stream: Float[Tensor, "... d_model"], *, norm: bool = True
    ) -> Float[Tensor, "... d_vocab"]:
        """Logits; the gradient flows if the stream has one.

        Args:
            stream: As behind the last block.
            norm: Whether the final norm is still to be applied.
        """
        return self.tail(self._said(stream, norm))

    def uncapped(self, stream: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """Logits in front of a soft cap, which are linear in the normed stream."""
        return Tail(self.tail.scale)(self._said(stream, norm=True))

    def _said(self, stream: Tensor, norm: bool) -> Tensor:
        stream = stream.to(self._model.dtype)
        return called(self.head, called(self.norm, stream) if norm else stream)

    def frozen(self, stream: Float[Tensor, "... d_model"]) -> FrozenNorm:
        """The final norm with its scale frozen at a stream.

        Raises:
            ModelError: The norm is of a kind whose scale cannot be frozen.
        """
        return FrozenNorm(self.norm, stream.to(self._model.dtype))

    def direction(
        self, answer: Int[Tensor, " pair"], foil: Int[Tensor, " pair"]
    ) -> tuple[Float[Tensor, "pair d_model"], Float[Tensor, " pair"]]:
        """logit(answer) - logit(foil) as a linear function of the normed stream, with its offset.

        By what the head says of basis vectors, so an adapter or a bias of it is in it. A soft cap
        is not linear: the logits are those in front of it.
        """
        words, at = torch.cat([answer, foil]).unique(return_inverse=True)
        like = torch.empty(0, self._model.d_model, dtype=self._model.dtype, device=words.device)
        linear = affine_of(self.head, like, words)
        first, second = at.to(linear.weight.device).chunk(2)
        scale = self.tail.scale
        slope = (linear.weight[first] - linear.weight[second]) * scale
        return slope, (linear.bias[first] - linear.bias[second]) * scale

    @cached_property
    def tail(self) -> Tail:
        """What follows the head, measured: the model runs once, its head saying known numbers.

        Configurations do not tell: a model may hold a soft cap of its language model and not use
        it.

        Raises:
            ModelError: It is neither a scale nor a soft cap.
        """
        model, said = self._model, []

        def say(own: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor:
            out = own(*args, **kwargs)
            n = out.shape[-1]
            ramp = torch.logspace(-2, 4, n // 2, device=out.device)
            said.append(torch.cat([-ramp, ramp, ramp.new_zeros(n % 2)]))
            return said[-1].expand_as(out)

        with model._board.silenced(), rerouted(self.head, say), torch.no_grad():
            got = model(synthetic_inputs(model), logits_to_keep=1)[0, -1].float()
        return _fitted(said[-1].to(got.device), got)


def _fitted(said: Tensor, got: Tensor) -> Tail:
    """The scale and the cap between what a head said and the logits that came."""
    if torch.equal(said, got):
        return Tail()
    top, size = float(got.abs().max()), got.abs()
    slope = float((got / said)[(said.abs() < 1) & (said != 0)].mean())
    cap = top if top < 0.5 * abs(slope) * _SPREAD else None
    clear = (said != 0) & (size < 0.5 * top)
    before = got if cap is None else torch.atanh(got.clamp(-top, top) / cap) * cap
    scale = float((before / said)[clear].mean())
    scale = 1.0 if abs(scale - 1.0) < 1e-3 else scale  # half precision
    tail = Tail(scale, cap)
    error = float((tail(said) - got).abs().max() / got.abs().max().clamp_min(1e-6))
    if error > 1e-2:
        raise ModelError(
            "The model changes the logits behind its head by neither a scale nor a soft cap (off "
            f"by {error:.1e}), so that a residual stream cannot be read as words."
        )
    return tail
