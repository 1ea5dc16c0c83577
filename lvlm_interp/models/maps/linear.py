"""Modules as linear maps, by calling them: a projection on basis vectors, a norm at one scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lvlm_interp.errors import ModelError

_PROBE = 2.0**10
"""Length of a basis vector that a module is asked about. A power of two, so that nothing is lost in
dividing by it; long beside a bias, so that the bias does not round the weight away; short enough
for float16."""

_NUMBERS = 2**26
"""Numbers that the answers to the basis vectors of one call may have."""

_LARGE = 1e4
"""Long enough that a norm's epsilon does not show, in float16 too."""


def called(module: nn.Module, value: Tensor) -> Tensor:
    """What a module makes of a value, on the module's device, past the hooks that listen to it.

    The forward of a module that someone wrapped (an adapter, offloading) is the wrapped one.
    """
    weight = next(module.parameters(), None)
    if weight is not None and not weight.is_meta:  # weights on disk come where their values are
        value = value.to(weight.device)
    out = module.forward(value)
    return out[0] if isinstance(out, tuple) else out


@dataclass(frozen=True, eq=False)
class Affine:
    """A linear module: x -> weight x + bias, in float32.

    Attributes:
        weight: Shape `d_out d_in`.
        bias: What the module gives for 0.
    """

    weight: Float[Tensor, "d_out d_in"]
    bias: Float[Tensor, " d_out"]

    def per_head(self, n_heads: int) -> Float[Tensor, "head d_out d_head"]:
        """The part of the weight that each head's slice of the input passes."""
        return self.weight.unflatten(1, (n_heads, -1)).transpose(0, 1)


@torch.no_grad()
def affine_of(
    module: nn.Module, like: Float[Tensor, "... d_in"], outputs: Int[Tensor, " d_out"] | None = None
) -> Affine:
    """The map of a linear module, by its answers to 0 and to every basis vector.

    Exact up to the rounding of the module's own dtype, whatever it is made of: a plain layer, a
    layer with an adapter, weights of 4 or 8 bits.

    Args:
        module: Takes vectors of width `d_in`.
        like: A value that enters it: its width, dtype and device.
        outputs: Of which of its outputs; all by default.
    """

    def ask(part: Tensor) -> Tensor:
        out = called(module, part).float()
        return out if outputs is None else out[:, outputs.to(out.device)]

    basis = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device) * _PROBE
    nothing = torch.zeros_like(basis[:1])
    at_once = max(1, _NUMBERS // called(module, nothing).shape[-1])
    bias = ask(nothing)
    rows = [(ask(part) - bias) / _PROBE for part in basis.split(at_once)]
    return Affine(torch.cat(rows).T, bias[0])


class FrozenNorm:
    """A norm with its scale frozen at one input, so that it is linear; by calling it.

    A norm is w * c(x) / s(x) + b, with c the identity (RMS norm) or the distance from the mean
    (layer norm). b is its answer to 0, c shows in its answer to a constant, w in its answer to a
    vector of known scale, and 1 / s is what its answer to `stream` is made with.

    Attributes:
        bias: b; shape `d_model`.
    """

    @torch.no_grad()
    def __init__(self, norm: nn.Module, stream: Float[Tensor, "... d_model"]) -> None:
        one = stream[..., :1, :]
        self.bias = _first(called(norm, torch.zeros_like(one)))
        self.device = self.bias.device
        probe = _balanced(stream)
        answer = _first(called(norm, probe.expand_as(one)))
        rms = probe.float().square().mean().sqrt()
        self.weight = (answer - self.bias) / (probe.float() / rms).to(self.device)
        # A layer norm sees no difference between a constant and 0; the mean of ones is exact.
        constant = _first(called(norm, torch.ones_like(one))) - self.bias
        self.centred = bool(constant.abs().max() < 1e-5 * self.weight.abs().max())
        out = called(norm, stream).float()
        shaped = self._shape(stream)
        self.scale = ((out - self.bias) * shaped).sum(-1, keepdim=True)
        self.scale = self.scale / shaped.square().sum(-1, keepdim=True).clamp_min(1e-30)
        error = float((self(stream) + self.bias - out).abs().max())
        bound = max(1e-3, 4 * torch.finfo(stream.dtype).eps) * max(1.0, float(out.abs().max()))
        if error > bound:
            raise ModelError(
                f"The norm {type(norm).__name__} is neither a layer norm nor an RMS norm (off by "
                f"{error:.1e}), so its scale cannot be frozen."
            )

    def __call__(self, part: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The part's share of the norm's output, without the bias; in float32."""
        return self._shape(part) * self.scale

    def _shape(self, part: Tensor) -> Tensor:
        part = part.to(self.device).float()
        return (part - part.mean(-1, keepdim=True) if self.centred else part) * self.weight


def _first(out: Tensor) -> Tensor:
    """The first vector of a module's answer, in float32."""
    return out.float().flatten(0, -2)[0]


def _balanced(like: Tensor) -> Tensor:
    """A large vector with mean 0 and no entry of 0; shape `d_model`."""
    width = like.shape[-1]
    signs = torch.ones(width, dtype=like.dtype, device=like.device)
    signs[1::2] = -1
    if width % 2 and width > 1:
        signs[-3:] = torch.tensor([2.0, -1.0, -1.0], dtype=like.dtype)
    return signs * _LARGE
