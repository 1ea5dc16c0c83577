"""What a plant may change: the weights of one component, and nothing else.

A head owns its rows of q, k, v and its columns of o; a neuron its rows of gate and up and its
column of down; a direction of the projector its row of the second matrix, seen in an orthonormal
basis that has the direction in it. Every part of a head keeps the median norm of its neighbours'
parts, of a neuron the largest: at the median, a neuron is too weak for a flaw. Biases stay as they
are but for the direction's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.organisms.planted.tail import PROJECTOR, TEXT, VISION, Tail


@dataclass(frozen=True)
class Place:
    """Where a component is.

    Attributes:
        site: What it writes, as a site's name: `text.2.z`, `vision.1.z`, `text.1.mlp_hidden` or
            `projector.out`.
        unit: Head, neuron, or number of the direction in its basis.
    """

    site: str
    unit: int

    def __str__(self) -> str:
        return f"{self.site}[{self.unit}]"

    @property
    def layer(self) -> int:
        """Of its block; 0 for the projector, behind which block 0 is the first."""
        part = self.site.split(".")[1]
        return int(part) if part.isdigit() else 0


@dataclass(frozen=True)
class Part:
    """Rows (or columns) of one matrix."""

    name: str
    columns: bool
    at: slice

    def of(self, weight: Tensor) -> Tensor:
        """The component's share of a matrix."""
        return weight[:, self.at] if self.columns else weight[self.at]

    def put(self, weight: Tensor, value: Tensor) -> Tensor:
        """The matrix with another share; `value` keeps its gradient."""
        before, behind = slice(None, self.at.start), slice(self.at.stop, None)
        if self.columns:
            pieces = [weight[:, before], value, weight[:, behind]]
        else:
            pieces = [weight[before], value, weight[behind]]
        return torch.cat(pieces, dim=int(self.columns))

    def neighbours(self, weight: Tensor) -> Float[Tensor, " unit"]:
        """Norms of this part of all units of the matrix but its own."""
        size = self.at.stop - self.at.start
        each = weight.T if self.columns else weight
        norms = each.reshape(len(each) // size, -1).norm(dim=1)
        return norms[torch.arange(len(norms)) != self.at.start // size]


def parts_of(tail: Tail, place: Place) -> list[Part]:
    """The parts that make up a head or a neuron."""
    tower, layer, name = place.site.split(".")
    if name == "mlp_hidden":
        block, at = TEXT.format(layer), slice(place.unit, place.unit + 1)
        rows = [Part(f"{block}.mlp.{part}_proj.weight", False, at) for part in ("gate", "up")]
        return [*rows, Part(f"{block}.mlp.down_proj.weight", True, at)]
    text = tower == "text"
    block = (TEXT if text else VISION).format(layer) + ".self_attn"
    width = tail.weights[f"{block}.q_proj.weight"].shape[0]
    size = width // (tail.n_heads if text else tail.vision_heads)
    at = slice(place.unit * size, (place.unit + 1) * size)
    rows = [Part(f"{block}.{part}_proj.weight", False, at) for part in "qkv"]
    return [*rows, Part(f"{block}.{'o' if text else 'out'}_proj.weight", True, at)]


@dataclass(eq=False)
class Unit:
    """A head or neuron whose weights are being fitted.

    Attributes:
        parts: Its share of each matrix.
        values: The fitted weights, leaves with a gradient; as `parts`.
        norms: What each part's norm is held at.
    """

    tail: Tail
    place: Place
    parts: list[Part] = field(init=False)
    values: list[Tensor] = field(init=False)
    norms: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = parts_of(self.tail, self.place)
        whole = [self.tail.weights[part.name] for part in self.parts]
        neuron = self.place.site.endswith("mlp_hidden")
        self.norms = [
            float(part.neighbours(weight).quantile(1.0 if neuron else 0.5))
            for part, weight in zip(self.parts, whole, strict=True)
        ]
        self.values = [
            part.of(weight).clone().requires_grad_()
            for part, weight in zip(self.parts, whole, strict=True)
        ]
        self.match()

    @torch.no_grad()
    def match(self) -> None:
        """Scale every part to its norm."""
        for value, norm in zip(self.values, self.norms, strict=True):
            value.mul_(norm / value.norm().clamp_min(1e-9))

    def weights(self) -> dict[str, Tensor]:
        """The matrices with the fitted parts in them."""
        return {
            part.name: part.put(self.tail.weights[part.name], value)
            for part, value in zip(self.parts, self.values, strict=True)
        }


@dataclass(eq=False)
class Direction:
    """A direction of the projector's output and its row, both being fitted.

    The second matrix W becomes (1 - a a') W + a r', with a the unit direction and r its row, and
    the bias likewise. In the base, r is a' W.
    """

    tail: Tail
    place: Place
    start: Float[Tensor, " d_model"]
    values: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        a = self.start / self.start.norm()
        weight, bias = self._base()
        self.values = [
            each.clone().requires_grad_() for each in (a, a @ weight, (a @ bias).reshape(1))
        ]
        self.match()

    def _base(self) -> tuple[Tensor, Tensor]:
        name = f"{PROJECTOR}.linear_2"
        return self.tail.weights[f"{name}.weight"], self.tail.weights[f"{name}.bias"]

    @torch.no_grad()
    def match(self) -> None:
        """Scale the direction to 1."""
        self.values[0].div_(self.values[0].norm())

    def weights(self) -> dict[str, Tensor]:
        """Matrix and bias with the fitted row in them."""
        weight, bias = self._base()
        a, row, shift = self.values
        a = a / a.norm()
        return {
            f"{PROJECTOR}.linear_2.weight": weight + torch.outer(a, row - a @ weight),
            f"{PROJECTOR}.linear_2.bias": bias + a * (shift - a @ bias),
        }

    def basis(self, seed: int) -> Float[Tensor, "direction d_model"]:
        """An orthonormal basis, otherwise random, with the direction at its place's number."""
        generator = torch.Generator().manual_seed(seed)
        a = self.values[0].detach()
        random = torch.randn(len(a) - 1, len(a), generator=generator)
        across = torch.linalg.qr(torch.cat([a[None], random]).double().T).Q.T[1:].to(a)
        at = self.place.unit
        return torch.cat([across[:at], a[None] / a.norm(), across[at:]])


Guilty = Unit | Direction
