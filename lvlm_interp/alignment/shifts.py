"""Many layers against many, with their null, for little more than the Gram matrices.

Three things make it fast, and exact up to float32:

1. Rows are put in one random order, and the null's permutations are the shifts of that order. The
   shifts of a random cycle form a group, and a permutation test over random members of a group is
   exact (Hemerik and Goeman 2018, theorem 2), as it is over all permutations.
2. A shift moves both indices of an `n n` matrix along its diagonals. So the inner products of two
   matrices under all n shifts are correlations of their diagonals: one Fourier transform per layer,
   one product per pair of layers, and no pair is gone through again for each permutation.
3. Centring rows makes every off-diagonal row sum of K the negative of its diagonal, so that
   U-centring (`measures.centre`) needs no sums; and the same product, moved back by the mean, gives
   the cosines that rank neighbours.

Layers come in blocks, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from lvlm_interp.errors import UsageError

__all__ = ["FAST", "Shifted", "shifted_pairs"]

FAST = ("mutual_knn", "cka")
"""The metrics that come this way: mutual kNN, and debiased linear CKA."""

BUDGET = 512 * 2**20
"""Bytes of spectra that are held at once."""

Reader = Callable[[int], Float[Tensor, "n d"]]
Spectrum = Complex[Tensor, "frequency diagonal"]


@dataclass(frozen=True)
class Shifted:
    """One metric over all pairs of layers.

    Attributes:
        raw: Observed.
        null: Under each shift.
    """

    raw: Float[np.ndarray, "x y"]
    null: Float[np.ndarray, "shift x y"]


def shifted_pairs(
    left: Reader,
    right: Reader,
    n: int,
    *,
    sizes: tuple[int, int],
    k: int = 10,
    n_permutations: int = 200,
    seed: int = 0,
    metrics: Sequence[str] = FAST,
    budget: int = BUDGET,
) -> dict[str, Shifted]:
    """Metrics of all pairs of layers, observed and under random shifts of one random order.

    Args:
        left: Gives the features of layer i of x, `n d`.
        right: The same of y.
        n: Rows.
        sizes: Number of layers of x and of y.
        k: Neighbours.
        n_permutations: Shifts, drawn without repetition; all n - 1 where there are fewer.
        seed: Of the order and the shifts.
        metrics: Which of `FAST`.
        budget: Bytes of spectra held at once.

    Raises:
        UsageError: A metric that does not come this way, or too few rows.
    """
    unknown = [name for name in metrics if name not in FAST]
    if unknown:
        raise UsageError(f"no fast null for {unknown[0]!r}; known: {', '.join(FAST)}")
    if n < max(4, k + 1):
        raise UsageError(f"expected at least {max(4, k + 1)} rows for k={k}, got {n}")
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(n))
    shifts = 1 + rng.permutation(n - 1)[:n_permutations]
    take = torch.from_numpy(np.concatenate([[0], shifts]))
    found = {name: np.empty((len(take), *sizes), dtype=np.float64) for name in metrics}
    block = max(1, budget // sum(2 * 8 * (n // 2 + 1) * _width(name, n) for name in metrics))
    spectra = _Spectra(order, k, metrics)
    for x in _blocks(sizes[0], block):
        ahead = spectra.of(left, x, weighted=True)
        for y in _blocks(sizes[1], block):
            behind = spectra.of(right, y, weighted=False)
            for name in metrics:
                values = _correlate(ahead[name], behind[name], n, take)
                found[name][:, x.start : x.stop, y.start : y.stop] = values
    if "mutual_knn" in found:  # the counts are whole numbers
        found["mutual_knn"] = np.rint(found["mutual_knn"]) / (n * k)
    return {name: Shifted(values[0], values[1:]) for name, values in found.items()}


def _width(name: str, n: int) -> int:
    """Diagonals that a spectrum keeps: a symmetric matrix has each of them twice."""
    return n // 2 + 1 if name == "cka" else n


def _blocks(size: int, block: int) -> list[range]:
    return [range(start, min(start + block, size)) for start in range(0, size, block)]


class _Spectra:
    """Spectra of layers, made in buffers that are kept: fresh memory costs more than the sums.

    Attributes:
        order: The random order of the rows.
        k: Neighbours.
        metrics: Which spectra.
    """

    def __init__(self, order: Int[Tensor, " n"], k: int, metrics: Sequence[str]) -> None:
        n = len(order)
        self.order, self.k, self.metrics, self.width = order, k, tuple(metrics), n // 2 + 1
        # The Gram matrix, and its first columns again behind it, so that diagonals wrap around.
        self._wrapped = torch.empty(n, n + self.width)
        self._similar, self._marks = torch.empty(n, n), torch.empty(n, n)
        self._half = torch.empty(n, self.width)
        self._rows = torch.arange(n)[:, None]

    def of(
        self, read: Reader, layers: range, *, weighted: bool
    ) -> dict[str, Complex[Tensor, "frequency layer diagonal"]]:
        """The spectra of a block of layers, by metric."""
        n = len(self.order)
        out = {
            name: torch.empty(n // 2 + 1, len(layers), _width(name, n), dtype=torch.complex64)
            for name in self.metrics
        }
        for at, layer in enumerate(layers):
            values = read(layer)[self.order].float()
            mean = values.mean(dim=0)
            values -= mean
            gram = self._wrapped[:, :n]
            torch.mm(values, values.T, out=gram)
            if "mutual_knn" in self.metrics:
                marks = self._neighbours(gram, values @ mean, mean @ mean)
                out["mutual_knn"][:, at] = torch.fft.rfft(marks, dim=0)
            if "cka" in self.metrics:
                out["cka"][:, at] = torch.fft.rfft(self._u_centred(gram, weighted), dim=0)
        return out

    def _neighbours(
        self, gram: Float[Tensor, "n n"], along: Float[Tensor, " n"], square: Float[Tensor, ""]
    ) -> Float[Tensor, "n diagonal"]:
        """1 at (i, d) where row i + d is among the k nearest of row i by cosine, rows as given."""
        lengths = (gram.diagonal() + 2 * along + square).clamp(min=0).sqrt()
        inverse = torch.where(lengths > 0, 1 / lengths, torch.zeros_like(lengths))
        similar = torch.add(gram, along[:, None], out=self._similar)
        similar.add_((along + square)[None]).mul_(inverse[None]).fill_diagonal_(-torch.inf)
        near = similar.topk(self.k, dim=1, sorted=True).indices
        return self._marks.zero_().scatter_(1, (near - self._rows) % len(gram), 1.0)

    def _u_centred(self, gram: Float[Tensor, "n n"], weighted: bool) -> Float[Tensor, "n diagonal"]:
        """The U-centred Gram matrix of centred rows at norm 1, half of its diagonals as columns."""
        n, width = len(gram), self.width
        sums = -gram.diagonal().clone()  # of a row without its diagonal: whole rows sum to 0
        self._wrapped[:, n:] = gram[:, :width]
        half = self._wrapped.as_strided((n, width), (n + width + 1, 1))
        ahead = torch.cat([sums, sums[:width]]).as_strided((n, width), (1, 1))
        half = torch.add(half, ahead, alpha=-1 / (n - 2), out=self._half)
        half.add_((sums / (2 - n) + sums.sum() / ((n - 1) * (n - 2)))[:, None])
        half[:, 0] = 0.0
        weights = torch.full((width,), 2.0)
        if n % 2 == 0:
            weights[-1] = 1.0
        norm = (torch.linalg.vector_norm(half, dim=0).double() ** 2 @ weights.double()).sqrt()
        # Each product of two halves needs the weight once.
        return half.mul_(weights / norm if weighted else 1 / norm)


def _correlate(
    ahead: Complex[Tensor, "frequency x diagonal"],
    behind: Complex[Tensor, "frequency y diagonal"],
    n: int,
    take: Int[Tensor, " shift"],
) -> Float[np.ndarray, "shift x y"]:
    product = torch.bmm(ahead.conj(), behind.transpose(1, 2))
    return torch.fft.irfft(product, n=n, dim=0)[take].double().numpy()
