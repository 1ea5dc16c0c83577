"""Gradient-weighted attention: which tokens an answer depends on.

Chefer et al. 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and
Encoder-Decoder Transformers", eq. 5 and 6 for self-attention: A_l' = mean_h (dm/dA_l * A_l)^+ and
R <- R + A_l' R from R = I, in the order of the layers; the row of the query in R says how far each
token matters for the metric m.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_interp.errors import UsageError
from lvlm_interp.lens.attention import TokenScores, token_scores
from lvlm_interp.lens.positions import Positions, choose
from lvlm_interp.lens.readout import contrast_ids
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM


class Relevance(TokenScores):
    """Gradient-weighted relevance of each token for the answer, layers and heads combined."""


def relevance(
    model: LVLM,
    inputs: Inputs | Mapping[str, Any],
    answers: Sequence[str],
    *,
    foils: Sequence[str] | None = None,
    positions: Positions = "image",
) -> Relevance:
    """Relevance of tokens for an answer at the last position.

    Args:
        model: The model.
        inputs: From `model.prepare`.
        answers: One per row; m is the logit of its first token.
        foils: One per row; m is then logit(answer) - logit(foil).
        positions: Tokens to score.

    Raises:
        UsageError: Not one answer (and foil) per row, or both begin with the same token.
        InputError: The tokenizer does not know an answer.
    """
    ready = model.as_inputs(inputs)
    for name, words in (("answer", answers), ("foil", foils)):
        if words is not None and len(words) != ready.batch_size:
            raise UsageError(f"Expected one {name} per row ({ready.batch_size}), got {len(words)}.")
    selection = choose(ready, positions)
    if foils is None:
        ids = torch.tensor([[model.answer_id(word)] for word in answers], device=model.device)
    else:
        ids = contrast_ids(model, answers, foils)
    with model.record("text.*.pattern", grad=True) as cache:
        logits = model.last_logits(ready, grad=True)
    metric = logits.gather(1, ids[:, :1])
    if foils is not None:
        metric = metric - logits.gather(1, ids[:, 1:])
    patterns = [cache[site] for site in cache.sites]
    # Rows do not depend on each other, so one backward of the sum gives each row its own gradient.
    # An edit may cut a layer off the answer; its gradient is then zero.
    gradients = torch.autograd.grad(
        metric.sum(), patterns, allow_unused=True, materialize_grads=True
    )
    matrix: Tensor | None = None
    for pattern, gradient in zip(patterns, gradients, strict=True):
        step = (pattern * gradient).detach().float().clamp_min(0).mean(1)
        if matrix is None:
            matrix = torch.eye(step.shape[-1], device=step.device).expand_as(step)
        matrix = matrix + step @ matrix
    assert matrix is not None
    last = ready.last.to(matrix.device)
    rows = matrix[torch.arange(len(last)), last]
    scores = selection.gather(rows).cpu().numpy()[None]
    notes = {"foil": foils is not None}
    return Relevance(
        **token_scores(
            model, ready, selection, scores, [(None, None)], "relevance", "logits", **notes
        )
    )
