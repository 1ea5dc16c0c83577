"""What a position attends to: attention maps, rollout, and visual sinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.lens.positions import Selection, choose, image_of, lay, token_columns
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.provenance import provenance
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.tokens import TokenMap


@dataclass(frozen=True, repr=False)
class TokenScores(Result):
    """A score for each image token, from a method that says what a position depends on.

    `table` has a row per token and entry of `labels`, with `row` and `col` of the image grid.

    Attributes:
        scores: Shape `entry token`.
        labels: What each entry is: (layer, head), None where it does not apply.
        tokens: One map per row of the batch.
        selection: Which rows and positions the tokens are.
        images: The image of each row where it is known.
    """

    scores: np.ndarray
    labels: tuple[tuple[int | None, int | None], ...]
    tokens: tuple[TokenMap, ...]
    selection: Selection
    images: tuple[Any, ...] = field(default=())

    def grid(
        self,
        layer: int | None = None,
        head: int | None = None,
        *,
        row: int = 0,
        image: int = 0,
        tile: int = 0,
    ) -> Float[np.ndarray, "row col"]:
        """Scores over the image: of one layer and head, or their mean over what is left open.

        Raises:
            UsageError: No such layer, head or row.
            InputError: The image's tokens have no grid.
        """
        chosen = [
            index
            for index, (mine, my_head) in enumerate(self.labels)
            if layer in (None, mine) and head in (None, my_head)
        ]
        if not chosen or not 0 <= row < len(self.tokens):
            raise UsageError(f"There are no scores of layer {layer}, head {head}, row {row}.")
        mine = self.selection.rows == row
        values = self.scores[chosen].mean(0)[mine]
        return lay(self.tokens[row], self.selection.at[mine], values, image=image, tile=tile)


class AttentionMaps(TokenScores):
    """Attention weights from one position to the image tokens, by layer and head."""


class Rollout(TokenScores):
    """Attention rollout from one position to the image tokens."""


class Sinks(TokenScores):
    """How far each image token is a visual sink, by layer; above the threshold it is one."""


def attention_maps(
    model: LVLM, inputs: Inputs | Mapping[str, Any], *, query: str = "last"
) -> AttentionMaps:
    """Attention weights of the language model from one position to the image tokens.

    Args:
        model: The model.
        inputs: From `model.prepare`.
        query: Role of the position that attends; where it has several, their mean.

    Raises:
        InputError: A row has no image, or no such query.
    """
    ready = model.as_inputs(inputs)
    selection, queries = choose(ready, "image"), _queries(ready, query)
    with model.record("text.*.pattern", keep=lambda _s, v: _from_queries(v, queries)) as cache:
        model(ready, logits_to_keep=1)
    weights = [_gather(cache[site], selection) for site in cache.sites]
    labels = [(site.layer, head) for site in cache.sites for head in range(model.n_heads)]
    scores = torch.cat(weights).float().cpu().numpy()
    return AttentionMaps(
        **token_scores(model, ready, selection, scores, labels, "attention", "weight", query=query)
    )


def rollout(
    model: LVLM,
    inputs: Inputs | Mapping[str, Any],
    *,
    query: str = "last",
    residual: float = 0.5,
) -> Rollout:
    """Attention rollout (Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers").

    A_l' = residual I + (1 - residual) mean_h A_lh, rows scaled to sum to 1; rollout is
    A_L' ... A_1', of which the row of the query is returned.

    Args:
        model: The model.
        inputs: From `model.prepare`.
        query: Role of the position that attends; where it has several, their mean.
        residual: Share of the skip connection; 0.5 in the paper.

    Raises:
        InputError: A row has no image, or no such query.
        UsageError: `residual` is not within 0 and 1.
    """
    if not 0 <= residual <= 1:
        raise UsageError(f"residual must be within 0 and 1, got {residual}.")
    ready = model.as_inputs(inputs)
    selection, queries = choose(ready, "image"), _queries(ready, query)
    with model.record("text.*.pattern", keep=lambda _s, v: v.float().mean(1)) as cache:
        model(ready, logits_to_keep=1)
    total: Tensor | None = None
    for site in cache.sites:
        eye = torch.eye(cache[site].shape[-1], device=cache[site].device)
        mixed = residual * eye + (1 - residual) * cache[site]
        mixed = mixed / mixed.sum(-1, keepdim=True)
        total = mixed if total is None else mixed @ total
    assert total is not None
    flow = _from_queries(total[:, None], queries)
    scores = _gather(flow, selection).cpu().numpy()
    notes = {"query": query, "residual": residual}
    return Rollout(
        **token_scores(
            model, ready, selection, scores, [(None, None)], "rollout", "weight", **notes
        )
    )


def visual_sinks(
    model: LVLM, inputs: Inputs | Mapping[str, Any], *, threshold: float = 20.0
) -> Sinks:
    """Image tokens that draw attention without content.

    Kang et al. 2025, "See What You Are Told: Visual Attention Sink in Large Multimodal Models":
    phi(x) = max over d in D of |x_d / rms(x)|, D the dimensions in which the first token of the
    sequence, the usual sink, exceeds the threshold at that layer; a token with phi above the
    threshold is a sink. A layer in which the first token exceeds it nowhere has no sink and gets
    phi = 0. Deviation: the paper fixes D per language model by hand; here it is read off each run.

    Args:
        model: The model.
        inputs: From `model.prepare`.
        threshold: tau of the paper.

    Raises:
        InputError: A row has no image.
    """
    ready = model.as_inputs(inputs)
    selection = choose(ready, "image")
    first = torch.tensor([int(tokens.real[0]) for tokens in ready.tokens])
    with model.record("text.*.resid_post") as cache:
        model(ready, logits_to_keep=1)
    scores = []
    for site in cache.sites:
        states = cache[site].float()
        size = (states / states.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-12)).abs()
        dims = size[torch.arange(len(first)), first.to(size.device)] > threshold
        phi = (size * dims[:, None]).amax(-1)
        scores.append(selection.gather(phi).cpu().numpy())
    labels = [(site.layer, None) for site in cache.sites]
    options = {"threshold": threshold}
    return Sinks(
        **token_scores(model, ready, selection, np.stack(scores), labels, "phi", "rms", **options)
    )


def _queries(inputs: Inputs, role: str) -> list[np.ndarray]:
    examples = inputs.examples or (None,) * inputs.batch_size
    found = [
        tokens.positions(role, getattr(example, "boxes", None))
        for tokens, example in zip(inputs.tokens, examples, strict=True)
    ]
    if any(len(positions) == 0 for positions in found):
        raise InputError(f"The query {role!r} is empty in a row.")
    return found


def _from_queries(pattern: Tensor, queries: list[np.ndarray]) -> Tensor:
    """`batch head query_pos key_pos` to `batch head key_pos`, the mean over each row's queries."""
    rows = [
        pattern[row][:, torch.from_numpy(at).to(pattern.device)].mean(1)
        for row, at in enumerate(queries)
    ]
    return torch.stack(rows)


def _gather(weights: Tensor, selection: Selection) -> Tensor:
    """`batch head key_pos` to `head token`."""
    return selection.gather(weights.transpose(1, 2)).T


def token_scores(
    model: LVLM,
    inputs: Inputs,
    selection: Selection,
    scores: np.ndarray,
    labels: Sequence[tuple[int | None, int | None]],
    metric: str,
    unit: str,
    **notes: Any,
) -> dict[str, Any]:
    """The fields of a `TokenScores`, its table among them."""
    columns = token_columns(inputs, selection)
    n_entries, n_tokens = scores.shape
    layers = np.array([layer for layer, _ in labels], dtype=object)
    heads = np.array([head for _, head in labels], dtype=object)
    frame = pd.DataFrame(
        {
            **{name: np.tile(column, n_entries) for name, column in columns.items()},
            "tower": "text",
            "layer": np.repeat(layers, n_tokens),
            "head": np.repeat(heads, n_tokens),
            "metric": metric,
            "value": scores.ravel().astype(float),
            "unit": unit,
        }
    )
    return {
        "table": ResultTable(frame, provenance(model=model.name, dtype=str(model.dtype), **notes)),
        "scores": scores,
        "labels": tuple(labels),
        "tokens": inputs.tokens,
        "selection": selection,
        "images": tuple(image_of(row) for row in inputs.examples),
    }
