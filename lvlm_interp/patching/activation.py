"""Activation patching: components of one run put into the other (denoising and noising).

Vig et al. 2020, Meng et al. 2022; terms after Heimersheim and Nanda 2024. Direction of effect,
used by every method of this package: *clean minus corrupt*. Denoising puts clean activations into
the corrupt run and asks what restores the answer; noising does the reverse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from tqdm.auto import tqdm

from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.patching.batches import batches
from lvlm_interp.patching.components import Choice
from lvlm_interp.patching.metrics import Metric, check_metric, name_of
from lvlm_interp.patching.result import PatchResult
from lvlm_interp.patching.rows import RowWriter
from lvlm_interp.patching.runs import Engine
from lvlm_interp.patching.sweep import base_runs, run_components
from lvlm_interp.results import ResultTable, provenance
from lvlm_interp.sites import Site

Direction = Literal["denoise", "noise"]


def activation_patch(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    sites: str | Site | Iterable[str | Site] = "text.*.z",
    positions: str | int | Sequence[str | int] = "last",
    *,
    metric: str | Metric = "logit_diff",
    direction: Direction = "denoise",
    heads: str | Sequence[tuple[int, int]] = "each",
    neurons: str | Sequence[tuple[int, int]] = "all",
    batch_size: int = 16,
    engine: Engine = "auto",
    memory_mib: float = 512.0,
    progress: bool = True,
) -> PatchResult:
    """Patch every chosen component by itself and measure the recovery of each pair.

    Recovery (denoising) is (m(patched) - m(corrupt)) / (m(clean) - m(corrupt)); noising is the
    mirror, (m(patched) - m(clean)) / (m(corrupt) - m(clean)).

    Args:
        model: The model.
        pairs: Aligned pairs.
        sites: Names or globs: residual stream, branches, `q k v z pattern` per head, `mlp_hidden`;
            vision tower and projector too.
        positions: Roles of `tokens.ROLES`, `edited` (the pair's box), numbers, `each` or
            `each:ROLE` (every position by itself). Patterns are patched by query position.
        metric: A name of `METRICS`, or a function of (logits at the answer, pairs).
        direction: `denoise` or `noise`.
        heads: `each`, `all` (a site's heads together), or (layer, head) pairs.
        neurons: `each`, `all`, or (layer, neuron) pairs, at `mlp_hidden`.
        batch_size: Pairs at once.
        engine: `auto` takes the fast engine where it is exact, `full` a forward per patch, `fast`
            refuses where it is not exact. The column `path` says which ran.
        memory_mib: Bound on the activations of patched runs that the fast engine holds at once.
        progress: Show a progress bar.

    Raises:
        UsageError: No pairs, an unknown option, a head out of range, equal answer and foil, or a
            metric that is not finite.
        InputError: A pair lacks a role, or its runs are not aligned.
        SiteError: No such site.
    """
    check_metric(metric)
    check_direction(direction)
    chosen = model.sites(sites)
    choice = Choice.make(positions, heads, neurons).over(chosen)
    writer = RowWriter(metric=name_of(metric), direction=direction)
    cost = 0.0
    prepared = list(batches(model, pairs, batch_size))
    with tqdm(total=len(pairs), desc="patching", unit="pair", disable=not progress) as bar:
        for batch in prepared:
            runs = base_runs(model, batch, chosen, metric, direction, engine)
            cost += 2 * len(batch)
            todo = runs.components(model, choice)
            for outcome in run_components(model, runs, todo, engine, memory_mib):
                writer.add(runs, outcome.component, outcome.metric, outcome.path)
                cost += outcome.cost
            bar.update(len(batch))
    table = ResultTable(writer.frame(), _provenance(model, pairs, metric, direction))
    return PatchResult(table, tuple(writer.no_gap), cost)


def check_direction(direction: str) -> None:
    """Refuse an unknown direction.

    Raises:
        UsageError: Neither `denoise` nor `noise`.
    """
    if direction not in get_args(Direction):
        raise UsageError(f"direction={direction!r}: expected 'denoise' or 'noise'.")


def _provenance(
    model: LVLM, pairs: Sequence[ContrastPair], metric: Any, direction: str
) -> dict[str, Any]:
    return provenance(
        model=model.name,
        dtype=str(model.dtype).removeprefix("torch."),
        method="activation patching",
        of=name_of(metric),
        direction=direction,
        n_pairs=len(pairs),
    )
