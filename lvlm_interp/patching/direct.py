"""Direct logit attribution: what each component adds to the answer's logit difference itself.

Elhage et al. 2021. The residual stream at the answer is a sum; with the scale of the final norm
frozen at the run's own value the logits are linear in it, so the terms sum to the logit difference.
The stream starts with the *merged* embedding (image features at image positions). Biases are terms
of their own. Branches that pass a norm of their own before they are added (Gemma) keep its scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import ModelError, UsageError
from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.lvlm import LVLM, Keep
from lvlm_interp.patching.batches import PairBatch, batches
from lvlm_interp.patching.metrics import Scorer
from lvlm_interp.results import Result, ResultTable, provenance
from lvlm_interp.sites import Site

_LARGE = 1e4  # large enough that a norm's epsilon does not show
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
    weight = model.unembedding
    direction = weight[batch.answer] - weight[batch.foil]
    final = FrozenNorm(model.final_norm, stream)
    terms = _terms(model, cache, per_head)
    terms[(None, "other", None)] = stream - sum(terms.values())  # zero where every branch is known
    values = {term: (final(part) * direction).sum(-1) for term, part in terms.items()}
    values[(None, "norm_bias", None)] = (final.bias * direction).sum(-1)
    bias = getattr(model.tap("logits").module, "bias", None)
    if bias is not None:
        values[(None, "unembed_bias", None)] = bias[batch.answer] - bias[batch.foil]
    logits = model.tap("logits").module(model.final_norm(stream))
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
        if Site("text", layer, "cross_attn_out") in cache:
            crossed = Site("text", layer, "cross_attn_out")
            terms[(layer, "cross_attn_out", None)] = cache[crossed]
        elif per_head:
            terms |= _head_terms(model, cache, layer)
        else:
            terms[(layer, "attn_out", None)] = cache[Site("text", layer, "attn_out")]
        terms[(layer, "mlp_out", None)] = cache[Site("text", layer, "mlp_out")]
        if layer + 1 < model.n_layers:
            after = cache[Site("text", layer + 1, "resid_pre")]
            added = after - cache[Site("text", layer, "resid_post")]
            if bool(added.any()):
                terms[(layer, "deepstack", None)] = added
    return terms


def _head_terms(model: LVLM, cache: ActivationCache, layer: int) -> dict[Term, Tensor]:
    z = cache[Site("text", layer, "z")]
    projection = model.tap(Site("text", layer, "z")).module
    added = model.tap(Site("text", layer, "attn_out"))
    weight, bias = projection.weight, getattr(projection, "bias", None)
    assert isinstance(weight, Tensor)
    split = weight.unflatten(1, (z.shape[1], z.shape[2]))  # d_model head d_head
    each = torch.einsum("bhd,mhd->bhm", z, split)
    total = each.sum(1) + (0 if bias is None else bias)
    norm = None if added.module is projection else FrozenNorm(added.module, total)
    terms: dict[Term, Tensor] = {
        (layer, "z", head): each[:, head] if norm is None else norm(each[:, head])
        for head in range(z.shape[1])
    }
    if isinstance(bias, Tensor):
        spread = bias.expand_as(total)
        terms[(layer, "attn_bias", None)] = spread if norm is None else norm(spread)
    return terms


class FrozenNorm:
    """A norm with its scale frozen at one input, so that it is linear.

    Layer norm: w * (x - mean(x)) / std + b. RMS norm: w * x / rms, in whichever way the weight is
    stored (Gemma adds 1 to it), read off from the norm's answer to a constant input.
    """

    def __init__(self, norm: nn.Module, stream: Float[Tensor, "pair d_model"]) -> None:
        self.centred = isinstance(norm, nn.LayerNorm)
        out = norm(stream)
        if isinstance(norm, nn.LayerNorm):
            ones = torch.ones_like(stream[0])
            self.weight = ones if norm.weight is None else norm.weight
            self.bias = torch.zeros_like(ones) if norm.bias is None else norm.bias
        else:
            self.weight = norm(torch.full_like(stream[:1], _LARGE))[0]
            self.bias = torch.zeros_like(self.weight)
        shaped = self._shape(stream)
        self.scale = ((out - self.bias) * shaped).sum(-1, keepdim=True)
        self.scale = self.scale / shaped.square().sum(-1, keepdim=True)
        error = (self(stream) + self.bias - out).abs().max()
        if float(error) > 1e-3 * max(1.0, float(out.abs().max())):
            raise ModelError(
                f"The norm {type(norm).__name__} is neither a layer norm nor an RMS norm (off by "
                f"{float(error):.1e}), so its scale cannot be frozen."
            )

    def __call__(self, part: Float[Tensor, "pair d_model"]) -> Float[Tensor, "pair d_model"]:
        """The part's share of the norm's output, without the bias."""
        return self._shape(part) * self.scale

    def _shape(self, part: Tensor) -> Tensor:
        return (part - part.mean(-1, keepdim=True) if self.centred else part) * self.weight
