"""Finding who belongs to whom without a common space (Maniparambil et al. 2024, arXiv 2401.05224).

Base pairs are known; queries are matched either by how well each (source, target) fits beside the
base pairs (local CKA, eq. 6), or all at once as a quadratic assignment seeded with the base pairs
(eq. 4). The paper takes 320 base pairs and 500 queries.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment, quadratic_assignment

from lvlm_interp.alignment.arrays import Rows, paired, rows
from lvlm_interp.alignment.kernels import KernelName, kernel_matrix
from lvlm_interp.errors import UsageError

__all__ = ["local_cka", "matched", "qap"]


def local_cka(
    source_base: Rows,
    target_base: Rows,
    source_query: Rows,
    target_query: Rows,
    *,
    kernel: KernelName = "rbf",
) -> Float[np.ndarray, "source target"]:
    """CKA (biased) of the base pairs with the pair (s, t) before them, for every s and t.

    Args:
        source_base: Known pairs, one side, `base d`.
        target_base: The other side.
        source_query: Rows to match.
        target_query: Rows to match them with, any number.
        kernel: `"rbf"` with the median of the distances that are not 0, as in the paper, or
            `"linear"`.

    Raises:
        UsageError: Base rows that do not pair.
    """
    left_base, right_base = paired(source_base, target_base, 3)
    left = _centred_grams(rows(source_query, "source_query"), left_base, kernel)
    right = _centred_grams(rows(target_query, "target_query"), right_base, kernel)
    return left @ right.T


def _centred_grams(queries: np.ndarray, base: np.ndarray, kernel: KernelName) -> np.ndarray:
    """Each query's centred Gram matrix beside the base, flat and at length 1."""
    found = []
    for query in queries:
        gram = kernel_matrix(np.concatenate([query[None], base]), kernel)
        gram = gram - gram.mean(axis=0) - gram.mean(axis=1, keepdims=True) + gram.mean()
        found.append(gram.ravel() / np.linalg.norm(gram))
    return np.stack(found)


def matched(
    similarity: Float[np.ndarray, "n n"], *, how: Literal["retrieval", "assignment"] = "retrieval"
) -> float:
    """Share of queries matched to their own row, query i belonging to target i.

    Args:
        similarity: Of each source with each target, such as `local_cka`.
        how: `"retrieval"`, the best target of each source; `"assignment"`, the best one-to-one
            assignment.

    Raises:
        UsageError: An unknown way.
    """
    table = np.asarray(similarity, dtype=float)
    if how == "retrieval":
        best = table.argmax(axis=1)
    elif how == "assignment":
        best = linear_sum_assignment(table, maximize=True)[1]
    else:
        raise UsageError(f"how must be 'retrieval' or 'assignment', got {how!r}")
    return float((best == np.arange(len(table))).mean())


def qap(
    source_base: Rows,
    target_base: Rows,
    source_query: Rows,
    target_query: Rows,
    *,
    n_starts: int = 500,
    seed: int = 0,
) -> Int[np.ndarray, " query"]:
    """Target of each source by max tr(A' P B P'), the base pairs held fixed (eq. 4).

    A and B are centred RBF Gram matrices at unit norm; the fast approximate QAP from random starts,
    the best kept. Targets are shuffled beforehand, so that order gives nothing away.

    Args:
        source_base: Known pairs, one side.
        target_base: The other side.
        source_query: Rows to match.
        target_query: As many rows.
        n_starts: Random starts.
        seed: Of starts and shuffle.

    Returns:
        For each source the index of its target; accuracy is `(found == arange(n)).mean()` where
        they come in order.

    Raises:
        UsageError: Rows that do not pair, or no start.
    """
    left_base, right_base = paired(source_base, target_base)
    left, right = paired(source_query, target_query, 1)
    if n_starts < 1:
        raise UsageError(f"expected at least one start, got {n_starts}")
    rng = np.random.default_rng(seed)
    order, n = rng.permutation(len(left)), len(left_base)
    a = _unit_centred(np.concatenate([left_base, left]))
    b = _unit_centred(np.concatenate([right_base, right[order]]))
    fixed = np.stack([np.arange(n)] * 2, axis=1)
    options = {"P0": "randomized", "maximize": True, "partial_match": fixed, "tol": 1e-5}
    runs = [quadratic_assignment(a, b, options=options | {"rng": rng}) for _ in range(n_starts)]
    best = max(runs, key=lambda run: run.fun)
    return order[best.col_ind[n:] - n]


def _unit_centred(values: np.ndarray) -> np.ndarray:
    gram = kernel_matrix(values, "rbf")
    gram = gram - gram.mean(axis=0) - gram.mean(axis=1, keepdims=True) + gram.mean()
    return gram / np.linalg.norm(gram)
