"""Direct logit attribution: what each component adds to the answer's logit difference itself.

Elhage et al. 2021. The residual stream at the answer is a sum; with the scale of the final norm
frozen at the run's own value the logits are linear in it, so the terms sum to the logit difference.
The stream starts with the *merged* embedding (image features at image positions). Biases are terms
of their own. Branches that pass a norm of their own before they are added (Gemma) keep its scale.
What heads write and what the head says is asked of the modules, so that adapters and quantised
weights are in it; terms are summed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import UsageError
from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.lvlm import LVLM, Keep
from lvlm_interp.models.maps import BlockMaps
from lvlm_interp.patching.batches import PairBatch, batches
from lvlm_interp.patching.metrics import Scorer
from lvlm_interp.results import Result, ResultTable, provenance
from lvlm_interp.sites import Site

Term = tuple[int | None, str, int | None]


class DirectResult(Result):
    """One row per pair and term; the values of a pair sum to its logit difference `m`.

    `site` is `embed` (the merged embedding), `z` per head or `attn_out`, `attn_bias`, `mlp_out`,
    `deepstack` (image features added between blocks), `norm_bias`, `unembed_bias`, or `other`.
    """


def direct_logit_attribution(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    *,
    run: Literal["clean", "corrupt"] = "clean",
    per_head: bool = True,
    batch_size: int = 16,
    progress: bool = True,
) -> DirectResult:
    """Split the logit difference of one side of each pair into its direct contributions.

    A final softcap, where the model has one, is not linear: the difference is taken in front of it.

    Args:
        model: The model.
        pairs: Pairs; answer and foil give the direction.
        run: Side of the pairs.
        per_head: Split attention into heads, and the bias of the output projection.
        batch_size: Pairs at once.
        progress: Show a progress bar.

    Raises:
        UsageError: An unknown side.
        ModelError: The final norm is of a kind whose scale cannot be frozen.
    """
    if run not in ("clean", "corrupt"):
        raise UsageError(f"run={run!r}: expected 'clean' or 'corrupt'.")
    names = {"resid_pre", "attn_out", "cross_attn_out", "mlp_out", "resid_post"}
    names |= {"z"} if per_head else set()
    sites = [site for site in model.sites("text.*") if site.name in names]
    frames = []
    with tqdm(total=len(pairs), desc="direct logits", unit="pair", disable=not progress) as bar:
        for batch in list(batches(model, pairs, batch_size)):
            inputs = batch.clean if run == "clean" else batch.corrupt
            _, cache = model.run_with_cache(inputs, sites, keep=_at(inputs.last), logits_to_keep=1)
            frames.append(_frame(model, batch, cache, per_head, run))
            bar.update(len(batch))
    facts = provenance(model=model.name, method="direct logit attribution", run=run)
    return DirectResult(ResultTable(pd.concat(frames, ignore_index=True), facts))


def _at(last: Tensor) -> Keep:
    """Keeps the position of the answer."""
    rows = torch.arange(len(last))
    return lambda _site, value: value[rows, last]


@torch.no_grad()
def _frame(
    model: LVLM, batch: PairBatch, cache: ActivationCache, per_head: bool, run: str
) -> pd.DataFrame:
    stream = cache[Site("text", model.n_layers - 1, "resid_post")]
    final = model.unembed.frozen(stream)
    direction, offset = model.unembed.direction(batch.answer, batch.foil)
    direction, offset = direction.to(final.device), offset.to(final.device)
    terms = {
        term: part.to(final.device).float() for term, part in _terms(model, cache, per_head).items()
    }
    # Zero where every branch is known, up to the rounding of half precision.
    terms[(None, "other", None)] = stream.to(final.device).float() - sum(terms.values())
    values = {term: (final(part) * direction).sum(-1) for term, part in terms.items()}
    values[(None, "norm_bias", None)] = (final.bias * direction).sum(-1)
    if bool(offset.any()):
        values[(None, "unembed_bias", None)] = offset
    logits = model.unembed.uncapped(stream)
    m = Scorer("logit_diff", batch.pairs, batch.answer, batch.foil)(logits)
    rows = [
        {
            "example": (pair.clean if run == "clean" else pair.corrupt).id,
            "pair": pair.id,
            "tower": "text",
            "layer": layer,
            "site": name,
            "head": head,
            "position": "last",
            "metric": "direct logit difference",
            "value": float(value[i]),
            "unit": "logit",
            "m": float(m[i]),
            "kind": pair.kind,
            "level": pair.level,
            "group": pair.group if pair.group is not None else pair.id,
        }
        for (layer, name, head), value in values.items()
        for i, pair in enumerate(batch.pairs)
    ]
    frame = pd.DataFrame(rows)
    return frame.astype({"layer": "Int64", "head": "Int64"})


def _terms(model: LVLM, cache: ActivationCache, per_head: bool) -> dict[Term, Tensor]:
    """What was added to the residual stream at the answer; each `pair d_model`."""
    terms: dict[Term, Tensor] = {(None, "embed", None): cache[Site("text", 0, "resid_pre")]}
    for layer in range(model.n_layers):
        split = per_head and Site("text", layer, "z") in cache
        if split:
            terms |= _head_terms(model, cache, layer)
        for name in ("attn_out", "cross_attn_out", "mlp_out"):
            site = Site("text", layer, name)
            if site in cache and not (split and name == "attn_out"):
                terms[(layer, name, None)] = cache[site]
        if layer + 1 < model.n_layers:
            after = cache[Site("text", layer + 1, "resid_pre")]
            before = cache[Site("text", layer, "resid_post")].to(after.device)
            if bool((added := after - before).any()):
                terms[(layer, "deepstack", None)] = added
    return terms


def _head_terms(model: LVLM, cache: ActivationCache, layer: int) -> dict[Term, Tensor]:
    written = BlockMaps(model, "text", layer).writes(cache[Site("text", layer, "z")])
    terms: dict[Term, Tensor] = {
        (layer, "z", head): each for head, each in enumerate(written.heads)
    }
    if bool(written.rest.any()):
        terms[(layer, "attn_bias", None)] = written.rest
    return terms
