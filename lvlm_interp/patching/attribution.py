"""Attribution patching: all components at once by a first-order estimate (AtP, AtP*, gradients).

AtP (Nanda 2023; Syed et al. 2023): putting a_source into the run whose activation is a changes the
metric by about (a_source - a) . dm/da, with the gradient at the run that is patched. One direction
of effect, clean minus corrupt, as everywhere here: denoising patches the corrupt run.

AtP* (Kramar et al. 2024, arXiv 2403.00745) adds two corrections, each an option:
- *QK fix*: a patched query or key changes the attention pattern, which saturates. The pattern is
  recomputed with it, and the estimate is (pattern' - pattern) . dm/dpattern.
- *GradDrop*: effects that cancel along paths hide a node. For each layer the gradient through its
  branches (not through the residual stream) is dropped; the |estimates| are summed over the layers
  and divided by L - 1. The result has no sign: it ranks, and is never called a recovery.

Deviation: the pattern's gradient is taken with all positions of a role patched together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from tqdm.auto import tqdm

from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.patching.batches import batches
from lvlm_interp.patching.components import Choice, masks, unit_axis
from lvlm_interp.patching.estimates import Estimator, qk_sites
from lvlm_interp.patching.gradients import Integration
from lvlm_interp.patching.metrics import Metric, check_metric, name_of, warn_flat_kl
from lvlm_interp.patching.result import PatchResult
from lvlm_interp.patching.rows import RowWriter
from lvlm_interp.patching.runs import BaseRuns
from lvlm_interp.patching.sweep import base_runs
from lvlm_interp.results import ResultTable, provenance
from lvlm_interp.sites import Site

Direction = Literal["denoise", "noise"]


def attribution_patch(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    sites: str | Site | Iterable[str | Site] = "text.*.z",
    positions: str | int | Sequence[str | int] = "all",
    *,
    metric: str | Metric = "logit_diff",
    direction: Direction = "denoise",
    heads: str | Sequence[tuple[int, int]] = "each",
    neurons: str | Sequence[tuple[int, int]] = "all",
    qk_fix: bool = False,
    graddrop: bool = False,
    integration: Integration | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> PatchResult:
    """Estimate the effect of patching every component, with a few forwards in all.

    `value` is the estimated m(patched) - m(run) in the metric's unit; `recovery()` relates it to
    the gap as for patching. With `graddrop` it is a score without sign, and `recovery()` refuses.

    Args:
        model: The model.
        pairs: Aligned pairs.
        sites: As in `activation_patch`.
        positions: As in `activation_patch`; `each` costs nothing more.
        metric: As in `activation_patch`; it must be differentiable.
        direction: `denoise` or `noise`.
        heads: As in `activation_patch`.
        neurons: As in `activation_patch`.
        qk_fix: Recompute attention for q and k sites.
        graddrop: Sum |estimate| over gradients that skip one layer each (text layers, and those of
            the vision tower where sites lie in it): one backward for each layer.
        integration: Average the gradient along a path; None takes it at the run that is patched.
        batch_size: Pairs at once.
        progress: Show a progress bar.

    Raises:
        UsageError: As in `activation_patch`; `qk_fix` without q or k among the sites; options that
            exclude each other.
        InputError: As in `activation_patch`.
    """
    check_metric(metric)
    chosen = model.sites(sites)
    _check_options(chosen, direction, qk_fix, graddrop, integration)
    choice = Choice.make(positions, heads, neurons).over(chosen)
    kind = "unsigned attribution" if graddrop else "attribution"
    writer, cost = RowWriter(name_of(metric), direction, kind), 0.0
    wanted = [*chosen, *(site for site in qk_sites(chosen) if qk_fix and site not in chosen)]
    # The clean run's logits are part of this metric, and here it is the run that is patched.
    both = metric == "kl" and direction == "noise"
    if both and integration is None:
        warn_flat_kl("attribution_patch")
    with tqdm(total=len(pairs), desc="attribution", unit="pair", disable=not progress) as bar:
        for batch in list(batches(model, pairs, batch_size)):
            runs = base_runs(model, batch, wanted, metric, direction, "full", target=both)
            estimator = Estimator(model, runs, chosen, wanted, qk_fix, graddrop, integration)
            runs = estimator.runs
            for site in chosen:
                _add_site(writer, runs, site, choice, estimator)
            cost += (1 + both) * len(batch) + estimator.cost
            bar.update(len(batch))
    facts = provenance(
        model=model.name,
        dtype=str(model.dtype).removeprefix("torch."),
        method=_describe(qk_fix, graddrop, integration),
        of=name_of(metric),
        direction=direction,
        n_pairs=len(pairs),
    )
    result = ResultTable(writer.frame(), facts)
    return PatchResult(result, tuple(writer.no_gap), cost, signed=not graddrop)


def _add_site(
    writer: RowWriter, runs: BaseRuns, site: Site, choice: Choice, estimator: Estimator
) -> None:
    axis = unit_axis(site)
    value = runs.source[site]
    units = choice.units(site, None if axis is None else value.shape[axis])
    if not units:
        return
    n_positions = value.shape[site.position_axis]
    named = masks(runs.batch, site.positions_of, n_positions, choice.positions)
    mask = torch.stack([mask for _, mask in named]).to(value.device)
    scores = estimator.scores(site, mask)  # label unit pair
    picked = scores.sum(1, keepdim=True) if units == [None] else scores[:, units]
    if not writer.kind.startswith("unsigned"):
        picked = picked + estimator.m_target
    writer.add_site(
        runs,
        site,
        [label for label, _ in named],
        units,
        mask.any(-1).cpu().numpy(),
        picked.detach().cpu().numpy().astype(np.float64),
        "gradient",
    )


def _check_options(
    sites: Sequence[Site],
    direction: str,
    qk_fix: bool,
    graddrop: bool,
    integration: Integration | None,
) -> None:
    if direction not in get_args(Direction):
        raise UsageError(f"direction={direction!r}: expected 'denoise' or 'noise'.")
    if qk_fix and not qk_sites(sites):
        raise UsageError("qk_fix corrects q and k, and none is among the sites: add 'text.*.q'.")
    if integration is not None and (qk_fix or graddrop):
        raise UsageError(
            "integration cannot be combined with qk_fix or graddrop: they correct the gradient of "
            "one run."
        )


def _describe(qk_fix: bool, graddrop: bool, integration: Integration | None) -> str:
    if integration is not None:
        return (
            f"integrated gradients along {integration.path}, {integration.steps} steps, "
            f"{integration.quadrature}"
        )
    extra = [name for name, on in (("QK fix", qk_fix), ("GradDrop", graddrop)) if on]
    return "AtP" + (f" with {' and '.join(extra)}" if extra else "")
