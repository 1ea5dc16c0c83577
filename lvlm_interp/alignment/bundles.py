"""Many layers of one side at once, and the table of a metric over all pairs of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.alignment.measures import Measure, measure_of
from lvlm_interp.alignment.shifts import FAST

__all__ = ["BUDGET", "Bundler", "bundler_of", "over_blocks"]

BUDGET = 512 * 2**20
"""Bytes of `n n` matrices that are held at once."""

Table = Float[np.ndarray, "x y"]
Reader = Callable[[int], Float[Tensor, "n d"]]


class Bundler(ABC):
    """A metric over layers: bundles of states, moved together, tabled in one product.

    Attributes:
        best: The metric's largest value.
        sign: -1 for distances.
    """

    best: float = 1.0
    sign: int = 1

    @abstractmethod
    def bundle(self, layers: Sequence[Float[Tensor, "n d"]]) -> Any:
        """States of some layers of one side."""

    @abstractmethod
    def moved(self, bundle: Any, order: Int[np.ndarray, " n"]) -> Any:
        """The same under a permutation of the rows."""

    @abstractmethod
    def table(self, left: Any, right: Any) -> Table:
        """The metric of every pair."""


@dataclass(frozen=True)
class _Relations(Bundler):
    """Mutual kNN and debiased linear CKA, as inner products of float32 matrices."""

    name: str
    k: int

    def bundle(self, layers: Sequence[Float[Tensor, "n d"]]) -> Float[Tensor, "layer n n"]:
        make = _adjacency if self.name == "mutual_knn" else _u_centred
        return torch.stack([make(layer.float(), self.k) for layer in layers])

    def moved(
        self, bundle: Float[Tensor, "layer n n"], order: Int[np.ndarray, " n"]
    ) -> Float[Tensor, "layer n n"]:
        index = torch.from_numpy(order)
        return bundle[:, index][:, :, index]

    def table(self, left: Float[Tensor, "x n n"], right: Float[Tensor, "y n n"]) -> Table:
        values = (left.flatten(1) @ right.flatten(1).T).double().numpy()
        if self.name == "mutual_knn":  # whole counts
            return np.rint(values) / (left.shape[1] * self.k)
        return values


def _adjacency(values: Float[Tensor, "n d"], k: int) -> Float[Tensor, "n n"]:
    unit = torch.nn.functional.normalize(values, dim=1)
    similar = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return torch.zeros_like(similar).scatter_(1, similar.topk(k, dim=1).indices, 1.0)


def _u_centred(values: Float[Tensor, "n d"], k: int) -> Float[Tensor, "n n"]:
    n = len(values)
    values = values - values.mean(dim=0)
    gram = (values @ values.T).fill_diagonal_(0.0)
    sums = gram.sum(dim=0)
    gram -= (sums + sums[:, None]) / (n - 2) - sums.sum() / ((n - 1) * (n - 2))
    gram.fill_diagonal_(0.0)
    return gram / gram.norm()


@dataclass(frozen=True)
class _Measures(Bundler):
    """Any other metric, pair by pair."""

    measure: Measure
    best: float
    sign: int

    def bundle(self, layers: Sequence[Float[Tensor, "n d"]]) -> list[Any]:
        return [self.measure.prepare(layer.double().numpy()) for layer in layers]

    def moved(self, bundle: list[Any], order: Int[np.ndarray, " n"]) -> list[Any]:
        return [self.measure.move(state, order) for state in bundle]

    def table(self, left: list[Any], right: list[Any]) -> Table:
        return np.array([[self.measure.value(a, b) for b in right] for a in left])


def bundler_of(metric: str, k: int) -> Bundler:
    """The bundler of a metric by name.

    Raises:
        UsageError: No such metric.
    """
    if metric in FAST:
        return _Relations(metric, k)
    near = "knn" in metric or metric == "cknna"
    measure = measure_of(metric, **({"k": k} if near else {}))
    return _Measures(measure, measure.best, measure.sign)


def over_blocks(
    bundler: Bundler,
    left: Reader,
    right: Reader,
    sizes: tuple[int, int],
    function: Callable[[Any, Any], Float[np.ndarray, "... x y"]],
    *,
    n: int,
    budget: int = BUDGET,
) -> Float[np.ndarray, "... x y"]:
    """A function of two bundles over all layers, block by block, so that memory stays flat.

    Args:
        bundler: Makes the bundles.
        left: Gives the features of layer i of x.
        right: The same of y.
        sizes: Layers of x and of y.
        function: Takes a bundle of each side, gives arrays whose last axes are its layers.
        n: Rows.
        budget: Bytes of `n n` matrices held at once.
    """
    block = max(1, budget // (3 * 4 * n * n))
    starts = [range(0, size, block) for size in sizes]
    rows = []
    for x in starts[0]:
        ahead = bundler.bundle([left(i) for i in range(x, min(x + block, sizes[0]))])
        parts = [
            function(ahead, bundler.bundle([right(j) for j in range(y, min(y + block, sizes[1]))]))
            for y in starts[1]
        ]
        rows.append(np.concatenate(parts, axis=-1))
    return np.concatenate(rows, axis=-2)
