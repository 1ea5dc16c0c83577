"""Words: do image tokens lie by the words for what they show, and does a text fit its image?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from lvlm_interp.alignment.arrays import Rows, paired, rows, unit
from lvlm_interp.errors import UsageError

__all__ = ["Vocabulary", "clip_embeddings", "clip_score", "pursued", "vocabulary"]

Nearest = Literal["centred", "cosine", "lens", "pursuit"]

CLIP_PREFIX = "A photo depicts "


class Vocabulary(NamedTuple):
    """How often image tokens are named by their words.

    Attributes:
        share: Tokens whose word names what lies there, 0 to 1.
        control: The same with the words right at the other tokens' places, all of them in turn.
        n: Tokens.
        chosen: The word of each token, `token word`; one column unless several were pursued.
    """

    share: float
    control: float
    n: int
    chosen: Int[np.ndarray, "token word"]


def vocabulary(
    tokens: Rows,
    words: Rows,
    named: Bool[np.ndarray, "token word"],
    *,
    how: Nearest = "centred",
    n_words: int = 1,
) -> Vocabulary:
    """Share of image tokens whose nearest word names what lies there.

    Args:
        tokens: Image tokens, behind the projector or inside the language model, `token d`.
        words: Embeddings (or rows of the unembedding) of the words in question, `word d`.
        named: Whether a word names what lies at a token.
        how: `"centred"`, largest cosine with both sides less their means; `"cosine"`; `"lens"`,
            largest inner product, for tokens behind the final norm and rows of the unembedding;
            `"pursuit"`, orthogonal matching pursuit (2505.17316), right if any of its words is.
        n_words: Words of the pursuit.

    Raises:
        UsageError: Widths or shapes that do not fit, or an unknown way.
    """
    left, right = rows(tokens, "tokens"), rows(words, "words")
    true = np.asarray(named, dtype=bool)
    if left.shape[1] != right.shape[1] or true.shape != (len(left), len(right)):
        raise UsageError(
            f"expected tokens and words in one space and named as (token, word), got "
            f"{left.shape}, {right.shape} and {true.shape}"
        )
    if how == "centred":
        left, right = left - left.mean(axis=0), right - right.mean(axis=0)
    if how == "pursuit":
        chosen = pursued(left, right, n_words)
    elif how in ("centred", "cosine", "lens"):
        right = right if how == "lens" else unit(right)
        chosen = (left @ right.T).argmax(axis=1)[:, None]
    else:
        raise UsageError(f"how must be 'centred', 'cosine', 'lens' or 'pursuit', got {how!r}")
    own = np.asarray(np.take_along_axis(true, chosen, axis=1).any(axis=1))
    return Vocabulary(float(own.mean()), _elsewhere(true, chosen, own), len(left), chosen)


def _elsewhere(true: np.ndarray, chosen: np.ndarray, own: np.ndarray) -> float:
    """Mean over all other tokens of whether a token's words would be right there."""
    if len(true) < 2:
        return float("nan")
    hits = sum(float(true[:, words].any(axis=1).sum()) for words in chosen)
    return (hits - float(own.sum())) / (len(true) * (len(true) - 1))


def pursued(
    tokens: Float[np.ndarray, "token d"], words: Float[np.ndarray, "word d"], n_words: int
) -> Int[np.ndarray, "token n_words"]:
    """Words of each token by orthogonal matching pursuit (Pati et al. 1993), the first one first.

    Each step takes the word (at length 1) with the largest inner product in absolute value with
    what is left, then fits all taken words anew.

    Raises:
        UsageError: `n_words` is not within 1 and the number of words.
    """
    if not 1 <= n_words <= len(words):
        raise UsageError(f"expected 1 to {len(words)} words of the pursuit, got {n_words}")
    atoms = unit(words)
    found = np.empty((len(tokens), n_words), dtype=np.int64)
    for at, token in enumerate(tokens):
        left = token
        for step in range(n_words):
            fit = np.abs(atoms @ left)
            fit[found[at, :step]] = -1.0
            found[at, step] = fit.argmax()
            taken = atoms[found[at, : step + 1]]
            weights = np.linalg.lstsq(taken.T, token, rcond=None)[0]
            left = token - weights @ taken
    return found


def clip_score(
    images: Rows, texts: Rows, *, variant: Literal["paper", "torchmetrics"] = "paper"
) -> float:
    """CLIPScore of image and text embeddings that belong together (Hessel et al. 2021, 2104.08718).

    Args:
        images: Image embeddings of a model with a text tower, `n d`; see `clip_embeddings`.
        texts: Text embeddings of the same rows.
        variant: `"paper"`, the mean of 2.5 max(cos, 0), 0 to 2.5; `"torchmetrics"`, max(100 mean
            cos, 0).

    Raises:
        UsageError: Rows that do not pair, or an unknown variant.
    """
    left, right = paired(images, texts, 1)
    cosines = (unit(left) * unit(right)).sum(axis=1)
    if variant == "paper":
        return float(2.5 * cosines.clip(min=0).mean())
    if variant == "torchmetrics":
        return float(max(100 * cosines.mean(), 0.0))
    raise UsageError(f"variant must be 'paper' or 'torchmetrics', got {variant!r}")


@torch.no_grad()
def clip_embeddings(
    clip: Any,
    processor: Callable[..., Any],
    images: Sequence[Any],
    texts: Sequence[str],
    *,
    prefix: str = CLIP_PREFIX,
    batch_size: int = 32,
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    """Embeddings of images and texts by a model with a text tower (CLIP, SigLIP).

    Args:
        clip: A Hugging Face model that gives `image_embeds` and `text_embeds`.
        processor: Its processor.
        images: PIL images.
        texts: Their descriptions.
        prefix: Stands before each text; CLIPScore's by default, empty for torchmetrics.
        batch_size: Pairs at a time.

    Raises:
        UsageError: Unequal numbers, or none.
    """
    if len(images) != len(texts) or not len(images):
        raise UsageError(f"expected a text per image, got {len(images)} and {len(texts)}")
    left, right = [], []
    for start in range(0, len(images), batch_size):
        inputs = processor(
            images=list(images[start : start + batch_size]),
            text=[prefix + text for text in texts[start : start + batch_size]],
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(clip.device)
        found = clip(**inputs)
        left.append(found.image_embeds.double().cpu().numpy())
        right.append(found.text_embeds.double().cpu().numpy())
    return np.concatenate(left), np.concatenate(right)
