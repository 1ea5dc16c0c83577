"""Each metric as its permutation null needs it: what is made once per side, what an index moves.

Most metrics are an inner product of two `n n` matrices that say how rows relate on each side (their
`Relation`); a permutation of the rows of y moves rows and columns of its matrix and changes nothing
else, neither neighbour lists nor denominators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from lvlm_interp.alignment import geometry, kernels, neighbours, one_space
from lvlm_interp.alignment.arrays import rows
from lvlm_interp.errors import UsageError

__all__ = ["METRICS", "Measure", "measure_of"]

Metric = str | Callable[..., float]
Matrix = Float[np.ndarray, "n n"]


@dataclass(frozen=True)
class Measure:
    """A metric that can be taken again under a permutation of y without being computed anew.

    Attributes:
        prepare: Features of one side to its state.
        value: Two states to the metric.
        move: A state under a permutation of its rows.
        best: The largest value, for the score.
        sign: -1 for distances, which are small where the sides agree.
        relation: Whether states are matrices and the value their inner product.
        per_row: If not 0, the inner product is a count of at most this many per row, and the value
            its share: counts stay whole, so that ties are ties.
    """

    prepare: Callable[[np.ndarray], Any]
    value: Callable[[Any, Any], float]
    move: Callable[[Any, Int[np.ndarray, " n"]], Any]
    best: float = 1.0
    sign: int = 1
    relation: bool = False
    per_row: int = 0


def _move_matrix(matrix: Matrix, order: Int[np.ndarray, " n"]) -> Matrix:
    return matrix[np.ix_(order, order)]


def _move_lists(lists: Int[np.ndarray, "n k"], order: Int[np.ndarray, " n"]) -> np.ndarray:
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return place[lists[order]]


def _move_rows(values: np.ndarray, order: Int[np.ndarray, " n"]) -> np.ndarray:
    return values[order]


def _inner(a: Matrix, b: Matrix) -> float:
    return float(np.vdot(a, b))


def _relation(prepare: Callable[[np.ndarray], Matrix]) -> Measure:
    return Measure(prepare, _inner, _move_matrix, relation=True)


def adjacency(x: np.ndarray, k: int = 10, variant: neighbours.NeighbourVariant = "paper") -> Matrix:
    """1 where j is among the k nearest of i: inner products count common neighbours."""
    lists = neighbours.nearest(x, k, variant=variant)
    matrix = np.zeros((len(lists), len(lists)))
    np.put_along_axis(matrix, lists, 1.0, axis=1)
    return matrix


def centred_kernel(
    x: np.ndarray,
    kernel: kernels.KernelName = "linear",
    debiased: bool = True,
    sigma: kernels.Sigma = "median",
) -> Matrix:
    """The Gram matrix so centred, at norm 1, that inner products are CKA.

    Biased: H K H. Debiased: U-centred (Szekely and Rizzo 2014, eq. 2.1), whose inner product over n
    (n - 3) is the U-statistic of Song et al. 2012.
    """
    return unit_norm(centre(kernels.kernel_matrix(x, kernel, sigma=sigma), debiased))


def centre(gram: Matrix, debiased: bool) -> Matrix:
    """H K H, or K U-centred with zeros on the diagonal."""
    n = len(gram)
    if not debiased:
        means = gram.mean(axis=0)
        return gram - means - means[:, None] + means.mean()
    if n < 4:
        raise UsageError(f"the debiased CKA needs at least 4 rows, got {n}")
    gram = gram.copy()
    np.fill_diagonal(gram, 0.0)
    sums = gram.sum(axis=0)
    gram = gram - (sums + sums[:, None]) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(gram, 0.0)
    return gram


def unit_norm(matrix: Matrix) -> Matrix:
    """At Frobenius norm 1; NaN without any spread."""
    norm = np.linalg.norm(matrix)
    return matrix / norm if norm > 0 else np.full_like(matrix, np.nan)


def distance_ranks(
    x: np.ndarray, distance: str = "euclidean", compare: geometry.Compare = "spearman"
) -> Matrix:
    """Distances (or their ranks) less their mean, at norm 1, so that inner products are `rsa`."""
    values = pdist(x, distance)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if compare == "spearman":
        values = rankdata(values)
    if compare != "cosine":
        values = values - values.mean()
    return unit_norm(squareform(values))


def _lists(
    value: Callable[..., float], k: int, variant: neighbours.NeighbourVariant, best: float
) -> Measure:
    return Measure(partial(neighbours.nearest, k=k, variant=variant), value, _move_lists, best)


def _mutual(k: int = 10, variant: neighbours.NeighbourVariant = "paper") -> Measure:
    def value(a: Matrix, b: Matrix) -> float:
        return float(np.vdot(a, b)) / (len(a) * k)

    prepare = partial(adjacency, k=k, variant=variant)
    return Measure(prepare, value, _move_matrix, relation=True, per_row=k)


def _cycle(k: int = 10, variant: neighbours.NeighbourVariant = "paper") -> Measure:
    return _lists(neighbours.cycle_of, k, variant, 1.0)


def _lcs(k: int = 10, variant: neighbours.NeighbourVariant = "paper") -> Measure:
    return _lists(neighbours.lcs_of, k, variant, float(k))


def _edit(k: int = 10, variant: neighbours.NeighbourVariant = "paper") -> Measure:
    return _lists(neighbours.edit_of, k, variant, 1.0)


def _cka(
    kernel: kernels.KernelName = "linear",
    debiased: bool = True,
    sigma: kernels.Sigma = "median",
    variant: kernels.KernelVariant = "paper",
) -> Measure:
    if variant == "platonic":
        return _recomputed(kernels.cka, kernel=kernel, debiased=debiased, variant=variant)
    return _relation(partial(centred_kernel, kernel=kernel, debiased=debiased, sigma=sigma))


def _rsa(distance: str = "euclidean", compare: geometry.Compare = "spearman") -> Measure:
    if compare == "kendall":
        return _recomputed(geometry.rsa, distance=distance, compare=compare)
    return _relation(partial(distance_ranks, distance=distance, compare=compare))


def _cosine(kind: Literal["raw", "centred", "retrieval"] = "raw") -> Measure:
    return _recomputed(one_space.cosine, kind=kind)


def _recomputed(
    function: Callable[..., float], best: float = 1.0, sign: int = 1, **options: Any
) -> Measure:
    """Any metric: the rows of y are moved and the metric is taken anew."""
    return Measure(rows, partial(function, **options), _move_rows, best, sign)


METRICS: dict[str, Callable[..., Measure]] = {
    "mutual_knn": _mutual,
    "cycle_knn": _cycle,
    "lcs_knn": _lcs,
    "edit_knn": _edit,
    "cka": _cka,
    "cknna": partial(_recomputed, kernels.cknna),
    "svcca": partial(_recomputed, geometry.svcca),
    "rsa": _rsa,
    "procrustes": partial(_recomputed, geometry.procrustes, 0.0, -1),
    "cosine": _cosine,
    "modality_gap": partial(_recomputed, one_space.modality_gap, 0.0, -1),
}
"""Metrics by name, for `calibrated` and `profile`; each takes the options of its function."""


def measure_of(metric: Metric, **options: Any) -> Measure:
    """The measure of a metric's name, of its function, or of any function of two matrices.

    Raises:
        UsageError: No such metric, or options that it does not have.
    """
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "")
    if name in METRICS and (isinstance(metric, str) or metric is _public(name)):
        try:
            return METRICS[name](**options)
        except TypeError as error:
            raise UsageError(f"{name} has no such option: {error}") from error
    if isinstance(metric, str):
        raise UsageError(f"no metric {metric!r}; known: {', '.join(METRICS)}, or a function")
    return _recomputed(metric, **options)


def _public(name: str) -> Callable[..., float] | None:
    homes = (neighbours, kernels, geometry, one_space)
    return next((getattr(home, name) for home in homes if hasattr(home, name)), None)
