"""The modality integration rate: how far the distributions of image and text tokens are apart.

Huang et al. 2024 (arXiv 2410.07167), eq. 1 to 4. The released `fast` mode never leaves the start of
its iteration: it takes S_v S_t itself for its square root, so that the Frechet distance of two
Gaussians that is 6 comes out as -10. Here the root is exact: tr sqrt(S_v S_t) is the sum of the
singular values of sqrt(S_v) sqrt(S_t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lvlm_interp.alignment.arrays import Rows, rows
from lvlm_interp.errors import UsageError

__all__ = ["frechet", "frechet_gaussians", "mir"]


def frechet_gaussians(
    mean_a: Float[np.ndarray, " d"],
    covariance_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, " d"],
    covariance_b: Float[np.ndarray, "d d"],
) -> float:
    """Squared Frechet distance of two Gaussians (Dowson and Landau 1982)."""
    roots = [_root(np.asarray(each, dtype=float)) for each in (covariance_a, covariance_b)]
    cross = float(np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum())
    apart = np.asarray(mean_a, dtype=float) - np.asarray(mean_b, dtype=float)
    return float(apart @ apart + np.trace(covariance_a) + np.trace(covariance_b) - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def frechet(x: Rows, y: Rows) -> float:
    """Squared Frechet distance of two sets of rows, as Gaussians with their sample covariances.

    Raises:
        UsageError: Fewer than two rows on a side, or not one space.
    """
    left, right = rows(x, "x"), rows(y, "y")
    if left.shape[1] != right.shape[1] or min(len(left), len(right)) < 2:
        raise UsageError(
            "expected two sets of at least two rows in one space, got shapes "
            f"{left.shape} and {right.shape}"
        )
    parts = [(v.mean(axis=0), np.atleast_2d(np.cov(v, rowvar=False))) for v in (left, right)]
    return frechet_gaussians(*parts[0], *parts[1])


def mir(vision: Sequence[Rows], text: Sequence[Rows]) -> float:
    """log10 of the summed Frechet distances of image and text tokens over the layers.

    Per layer both sides are scaled by 1 / (mean norm of the text tokens); then rows whose norm is
    more than three standard deviations from the median norm become the median row (the smaller
    middle value of each column, where there are two, as torch takes it).

    Args:
        vision: Image tokens `token d` of each layer, all images together.
        text: Text tokens of each layer; the paper takes texts that have nothing to do with the
            images, all that follows the image.

    Raises:
        UsageError: No layers, or unequal numbers of them.
    """
    if not len(vision) or len(vision) != len(text):
        raise UsageError(
            f"expected as many layers of image and of text tokens, got {len(vision)} and "
            f"{len(text)}"
        )
    total = 0.0
    for images, words in zip(vision, text, strict=True):
        left, right = rows(images, "vision"), rows(words, "text")
        scale = 1 / np.linalg.norm(right, axis=1).mean()
        total += frechet(_without_outliers(scale * left), _without_outliers(scale * right))
    return math.log10(total) if total > 0 else -math.inf


def _without_outliers(values: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(values, axis=1)
    far = np.abs(norms - _lower_median(norms[:, None])) > 3 * norms.std(ddof=1)
    values = values.copy()
    values[far] = _lower_median(values)
    return values


def _lower_median(values: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    return np.sort(values, axis=0)[(len(values) - 1) // 2]
