"""Attention knockout: cut what one group of tokens reads from another, in a window of layers.

Geva et al. 2023 (arXiv 2304.14767); for image tokens Neo et al. 2024 (arXiv 2410.07149). The
weights that are cut are exactly 0: the cut is made in the attention function itself, whatever
implementation the model runs otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import pad
from tqdm.auto import tqdm

from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.positions import WHOLE_IMAGE, role_positions
from lvlm_interp.models.lvlm import LVLM, Edit
from lvlm_interp.patching.batches import PairBatch, batches
from lvlm_interp.patching.heads import check_heads
from lvlm_interp.patching.metrics import Scorer
from lvlm_interp.results import Result, ResultTable, provenance
from lvlm_interp.sites import Site

EDGES = (("image_all", "question"), ("question", "last"), ("image_all", "last"))
"""What is read, and by whom: the three routes of the literature."""


class KnockoutResult(Result):
    """One row per pair, edge and window: `value` is 100 (p' - p) / p of the first answer token.

    `position` is `FROM->TO`, `layer` the window's first layer and `layer_last` its last; `p` and
    `p_knocked_out` are the probabilities, `m` and `m_knocked_out` the logit differences.
    """


def attention_knockout(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    edges: Sequence[tuple[str, str]] = EDGES,
    *,
    window: int = 1,
    heads: Sequence[int] | None = None,
    run: Literal["clean", "corrupt"] = "clean",
    token: Literal["answer", "foil"] = "answer",
    renormalise: bool = True,
    batch_size: int = 16,
    progress: bool = True,
) -> KnockoutResult:
    """Cut attention from one token group to another in each window of layers.

    Args:
        model: The model.
        pairs: Pairs; one side of each is run.
        edges: (what is read, who reads it), both roles of `tokens.ROLES`. Where the image enters by
            cross-attention, `image_all` as what is read is cut there.
        window: Layers cut together; the window slides over all layers one by one.
        heads: Heads that are cut; all by default.
        run: Side of the pairs.
        token: Whose probability is reported.
        renormalise: Whether the remaining weights of a row sum to 1, as if the keys were not there
            (`True`), or stay as they were, so that the row sums to less.
        batch_size: Pairs at once.
        progress: Show a progress bar.

    Raises:
        UsageError: A window that does not fit, a head out of range, or an unknown option.
        InputError: A pair lacks a role, or a token would have nothing left to read.
    """
    _check(model, window, heads, run, token)
    n_windows = model.n_layers - window + 1
    rows: list[dict] = []
    with tqdm(total=len(pairs), desc="knockout", unit="pair", disable=not progress) as bar:
        for batch in list(batches(model, pairs, batch_size)):
            inputs = batch.clean if run == "clean" else batch.corrupt
            before = _measure(batch, model.last_logits(inputs), token)
            for read, reader in edges:
                cuts = _cuts(model, batch, inputs, read, reader)
                for first in range(n_windows):
                    layers = range(first, first + window)
                    edits: dict[str | Site, Edit] = {}
                    for prefix, (inside, cut) in cuts.items():
                        here = [layer for layer in layers if layer in inside]
                        edits |= knockout_edits(batch, here, cut, heads, renormalise, prefix)
                    with model.edit(edits):
                        after = _measure(batch, model.last_logits(inputs), token)
                    rows += _rows(batch, run, f"{read}->{reader}", first, window, before, after)
            bar.update(len(batch))
    facts = provenance(
        model=model.name,
        method="attention knockout",
        renormalise=renormalise,
        window=window,
        run=run,
        token=token,
    )
    return KnockoutResult(ResultTable(pd.DataFrame(rows), facts))


def knockout_edits(
    batch: PairBatch,
    layers: Sequence[int] | range,
    cut: torch.Tensor,
    heads: Sequence[int] | None = None,
    renormalise: bool = True,
    prefix: str = "",
) -> dict[str | Site, Edit]:
    """Edits that cut attention where `cut` (`pair query_pos key_pos`) is true.

    Args:
        batch: For messages.
        layers: Layers to cut in.
        cut: What to cut.
        heads: Heads that are cut; all by default.
        renormalise: As in `attention_knockout`.
        prefix: `cross_` for cross-attention.

    Raises:
        InputError: On running: a query would have no key left, which no renormalising can mend.
    """

    def chosen(value: torch.Tensor) -> torch.Tensor:
        which = torch.zeros(value.shape[1], dtype=torch.bool, device=value.device)
        which[list(range(value.shape[1])) if heads is None else list(heads)] = True
        return cut.to(value.device)[:, None] & which[:, None, None]

    def on_scores(scores: torch.Tensor) -> torch.Tensor:
        masked = torch.finfo(scores.dtype).min
        new = scores.masked_fill(chosen(scores), masked)
        empty = (new <= masked / 2).all(-1) & ~(scores <= masked / 2).all(-1)
        if bool(empty.any()):
            row = int(empty.nonzero()[0, 0])
            raise InputError(
                f"Pair {batch.pairs[row].id!r}: a token would have nothing left to read, so its "
                "weights cannot sum to 1: use renormalise=False, or other token groups."
            )
        return new

    def on_pattern(pattern: torch.Tensor) -> torch.Tensor:
        return pattern.masked_fill(chosen(pattern), 0.0)

    name, edit = ("scores", on_scores) if renormalise else ("pattern", on_pattern)
    return {Site("text", layer, prefix + name): edit for layer in layers}


_Cuts = dict[str, tuple[set[int], torch.Tensor]]
"""By prefix of the attention's sites: the layers that have it, and what is cut there."""


def _cuts(model: LVLM, batch: PairBatch, inputs: Inputs, read: str, reader: str) -> _Cuts:
    """Where one group reads another: in self-attention, or an image through cross-attention.

    Raises:
        InputError: A pair lacks a role.
    """
    n = inputs["input_ids"].shape[1]
    sites = model.sites("text.*")
    layers = {
        prefix: {site.layer or 0 for site in sites if site.name == f"{prefix}scores"}
        for prefix in ("", "cross_")
    }
    if read in WHOLE_IMAGE and not model.family.merged:
        keys = inputs.n_positions("projector")
        return {"cross_": (layers["cross_"], _cross_mask(batch, reader, n, keys))}
    return {"": (layers[""], _cut_mask(batch, read, reader, n))}


def _cross_mask(batch: PairBatch, reader: str, n: int, n_keys: int) -> torch.Tensor:
    cut = torch.zeros(len(batch), n, n_keys, dtype=torch.bool)
    for row in range(len(batch)):
        keys = torch.as_tensor(batch.positions(row, "all", "projector", n_keys))
        queries = torch.as_tensor(batch.positions(row, reader, "text", n))
        cut[row, queries[:, None], keys] = True
    return cut


@contextmanager
def knocked_out(
    model: LVLM,
    inputs: Inputs,
    read: str,
    reader: str = "generated",
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Iterator[LVLM]:
    """While the context is open, some tokens read nothing from others, also while generating.

    Args:
        model: The model.
        inputs: Whose rows are run (by `model(inputs)`, `model.generate(inputs)`) in the context.
        read: Role of what is not read, as in `TokenMap.positions`.
        reader: Role of who does not read it in the prompt; `generated` for the tokens that are
            generated, with the prompt's last one, which gives the first of them.
        layers: Layers in which it is cut; all by default.
        heads: Heads in which it is cut; all by default.

    Raises:
        UsageError: A layer or head that there is not.
        InputError: A row lacks a role.
    """
    layers = list(range(model.n_layers)) if layers is None else list(layers)
    check_heads(model, [(layer, head) for layer in layers for head in heads or [0]])
    generated = reader == "generated"
    n = inputs["input_ids"].shape[1]
    cut = torch.zeros(inputs.batch_size, n, n, dtype=torch.bool)
    for row, tokens in enumerate(inputs.tokens):
        keys = torch.as_tensor(role_positions(tokens, read))
        queries = role_positions(tokens, "last" if generated else reader)
        cut[row, torch.as_tensor(queries)[:, None], keys] = True
        cut[row].fill_diagonal_(False)
    later = torch.stack([row.any(0) for row in cut])

    def on_scores(scores: torch.Tensor) -> torch.Tensor:
        n_queries, n_keys = scores.shape[-2:]
        if n_queries == n:
            hidden = cut
        elif generated:
            hidden = later[:, None].expand(-1, n_queries, -1)
        else:
            return scores
        hidden = pad(hidden, (0, n_keys - n)).to(scores.device)[:, None]
        which = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
        which[slice(None) if heads is None else list(heads)] = True
        return scores.masked_fill(hidden & which[:, None, None], torch.finfo(scores.dtype).min)

    with model.edit({Site("text", layer, "scores"): on_scores for layer in layers}):
        yield model


def _cut_mask(batch: PairBatch, read: str, reader: str, n: int) -> torch.Tensor:
    cut = torch.zeros(len(batch), n, n, dtype=torch.bool)
    for row in range(len(batch)):
        keys = torch.as_tensor(batch.positions(row, read, "text", n))
        queries = torch.as_tensor(batch.positions(row, reader, "text", n))
        cut[row, queries[:, None], keys] = True
        # A token always reads itself: a group that reads from itself keeps its own position.
        cut[row].fill_diagonal_(False)
    return cut


def _measure(batch: PairBatch, logits: torch.Tensor, token: str) -> dict[str, np.ndarray]:
    wanted = batch.answer if token == "answer" else batch.foil
    p = logits.float().softmax(-1).gather(-1, wanted[:, None].to(logits.device))[:, 0]
    m = Scorer("logit_diff", batch.pairs, batch.answer, batch.foil)(logits)
    return {"p": p.cpu().numpy().astype(float), "m": m.cpu().numpy().astype(float)}


def _rows(
    batch: PairBatch,
    run: str,
    edge: str,
    first: int,
    window: int,
    before: dict[str, np.ndarray],
    after: dict[str, np.ndarray],
) -> list[dict]:
    return [
        {
            "example": (pair.clean if run == "clean" else pair.corrupt).id,
            "pair": pair.id,
            "tower": "text",
            "layer": first,
            "layer_last": first + window - 1,
            "site": "pattern",
            "position": edge,
            "metric": "relative change of probability",
            "value": 100 * (after["p"][i] - before["p"][i]) / before["p"][i],
            "unit": "%",
            "p": before["p"][i],
            "p_knocked_out": after["p"][i],
            "m": before["m"][i],
            "m_knocked_out": after["m"][i],
            "kind": pair.kind,
            "level": pair.level,
            "group": pair.group if pair.group is not None else pair.id,
        }
        for i, pair in enumerate(batch.pairs)
    ]


def _check(model: LVLM, window: int, heads: Sequence[int] | None, run: str, token: str) -> None:
    if not 1 <= window <= model.n_layers:
        raise UsageError(f"window={window}: expected 1 to {model.n_layers}, the model's layers.")
    for head in heads or ():
        if not 0 <= head < model.n_heads:
            raise UsageError(f"There is no head {head}: a layer has {model.n_heads}, from 0.")
    if run not in ("clean", "corrupt") or token not in ("answer", "foil"):
        raise UsageError(
            f"run={run!r}, token={token!r}: expected 'clean' or 'corrupt', and 'answer' or 'foil'."
        )
