"""Path patching: the effect of a sender on a receiver alone.

Wang et al. 2023 (arXiv 2211.00593, appendix), Goldowsky-Dill et al. 2023. (1) Run the target with
the sender taken from the source and every other head held at its target value, and note what the
receiver gets. (2) Run the target with only the receiver changed to that. MLPs between them are
recomputed, as in the paper, unless `freeze_mlps` holds them too, so that the direct path remains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import UsageError
from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.lvlm import LVLM, Edit
from lvlm_interp.patching.batches import batches
from lvlm_interp.patching.components import Choice, Component, unit_axis
from lvlm_interp.patching.metrics import Metric, check_metric, name_of
from lvlm_interp.patching.result import PatchResult
from lvlm_interp.patching.rows import RowWriter
from lvlm_interp.patching.runs import BaseRuns
from lvlm_interp.patching.sweep import base_runs
from lvlm_interp.results import ResultTable, provenance
from lvlm_interp.sites import Site

Direction = Literal["denoise", "noise"]
RECEIVERS = ("q", "k", "v", "mlp_out", "logits")


def path_patch(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    senders: str | Site | Iterable[str | Site] = "text.*.z",
    receivers: str | Site | Iterable[str | Site] = "logits",
    positions: str | int | Sequence[str | int] = "all",
    *,
    receiver_heads: Sequence[int] | None = None,
    freeze_mlps: bool = False,
    metric: str | Metric = "logit_diff",
    direction: Direction = "denoise",
    heads: str | Sequence[tuple[int, int]] = "each",
    batch_size: int = 16,
    progress: bool = True,
) -> PatchResult:
    """Patch the paths from each sender to the receivers, all of them together.

    Args:
        model: The model.
        pairs: Aligned pairs.
        senders: Sites of the language model, one by one (heads of z, `attn_out`, `mlp_out`, a
            residual stream).
        receivers: `q`, `k`, `v`, `mlp_out` (what the MLP makes of its changed input), `logits`.
        positions: Of the sender.
        receiver_heads: Heads of the receivers; all by default.
        freeze_mlps: Hold MLPs on the way, so that only the direct path is left.
        metric: As in `activation_patch`.
        direction: `denoise` or `noise`.
        heads: As in `activation_patch`, for the senders.
        batch_size: Pairs at once.
        progress: Show a progress bar.

    Returns:
        Rows of the senders; `path` names the receivers.

    Raises:
        UsageError: A receiver of another kind, or a sender outside of the language model.
        InputError: As in `activation_patch`.
    """
    check_metric(metric)
    if direction not in get_args(Direction):
        raise UsageError(f"direction={direction!r}: expected 'denoise' or 'noise'.")
    sending, receiving = model.sites(senders), model.sites(receivers)
    _check(model, sending, receiving, receiver_heads)
    choice = Choice.make(positions, heads).over(sending)
    kinds = ("z", "cross_z", *(("mlp_out",) if freeze_mlps else ()))
    held = [site for site in model.sites("text.*") if site.name in kinds]
    writer, cost = RowWriter(name_of(metric), direction), 0.0
    label = "->" + "+".join(map(str, receiving))
    with tqdm(total=len(pairs), desc="path patching", unit="pair", disable=not progress) as bar:
        for batch in list(batches(model, pairs, batch_size)):
            runs = base_runs(model, batch, sending, metric, direction, "full")
            _, target = model.run_with_cache(runs.target, held, logits_to_keep=1)
            for component in runs.components(model, choice):
                patched = _one_path(model, runs, component, receiving, target, receiver_heads)
                writer.add(runs, component, runs.score(patched), label)
                cost += 2 * len(batch)
            cost += 3 * len(batch)
            bar.update(len(batch))
    facts = provenance(
        model=model.name,
        method="path patching",
        freeze_mlps=freeze_mlps,
        of=name_of(metric),
        direction=direction,
    )
    return PatchResult(ResultTable(writer.frame(), facts), tuple(writer.no_gap), cost)


def _one_path(
    model: LVLM,
    runs: BaseRuns,
    sender: Component,
    receivers: Sequence[Site],
    target: ActivationCache,
    receiver_heads: Sequence[int] | None,
) -> Tensor:
    """Logits at the answer with the paths from a sender to the receivers patched."""
    edits: dict[str | Site, Edit] = {
        site: (lambda _value, held=target[site]: held) for site in target.sites
    }
    base = edits.get(sender.site, lambda value: value)
    source = runs.source[sender.site]
    edits[sender.site] = lambda value: sender.write(base(value), source)
    # A receiving MLP must react to its input, even where MLPs are held.
    for site in receivers:
        edits.pop(site, None)
    inner = [site for site in receivers if site.name != "logits"]
    with torch.no_grad(), model.edit(edits):
        if not inner:
            return model.last_logits(runs.target)
        with model.record(inner) as received:
            logits = model.last_logits(runs.target)
    if len(inner) < len(receivers):
        return logits
    second = {site: _take(site, received[site], receiver_heads) for site in inner}
    with torch.no_grad(), model.edit({str(site): edit for site, edit in second.items()}):
        return model.last_logits(runs.target)


def _take(site: Site, value: Tensor, heads: Sequence[int] | None) -> Edit:
    axis = unit_axis(site) if site.has_heads else None

    def edit(current: Tensor) -> Tensor:
        if heads is None or axis is None:
            return value
        new = current.clone()
        new[:, :, list(heads)] = value[:, :, list(heads)]
        return new

    return edit


def _check(
    model: LVLM, senders: Sequence[Site], receivers: Sequence[Site], heads: Sequence[int] | None
) -> None:
    outside = [site for site in senders if site.tower != "text" or site.name == "logits"]
    if outside:
        raise UsageError(f"{outside[0]} cannot send: senders are sites of the language model.")
    wrong = [site for site in receivers if site.name not in RECEIVERS or site.tower != "text"]
    if wrong:
        raise UsageError(f"{wrong[0]} cannot receive: expected sites {', '.join(RECEIVERS)}.")
    named = [site for site in receivers if site.name == "logits"]
    if named and len(receivers) > 1:
        raise UsageError("The logits receive every path: name them alone, or other receivers.")
    size = model.towers["text"]
    for site in receivers:
        count = size.n_heads if site.name == "q" else size.n_kv_heads
        for head in heads or ():
            if site.has_heads and not 0 <= head < count:
                raise UsageError(f"There is no head {head} at {site}: it has {count}, from 0.")
