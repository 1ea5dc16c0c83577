"""Patching a set of components at once, from the other run or from activations of one's own.

Components that stand in for each other show little by themselves, and those in series show the same
effect each: a set is patched together to see what it does as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.patching.activation import Direction, check_direction
from lvlm_interp.patching.batches import batches
from lvlm_interp.patching.components import Component, masks, unit_axis
from lvlm_interp.patching.metrics import Metric, check_metric, name_of
from lvlm_interp.patching.result import PatchResult
from lvlm_interp.patching.rows import RowWriter
from lvlm_interp.patching.runs import BaseRuns
from lvlm_interp.patching.sweep import base_runs, patched_logits
from lvlm_interp.results import ResultTable, provenance
from lvlm_interp.sites import Site

_NAME = re.compile(r"(?P<site>[^\[\]]+)(\[(?P<unit>\d+)\])?")

Member = tuple[Site, int | None]
"""A site, and the head or neuron of it; None for all of it."""


def patch_together(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    sets: Mapping[str, Sequence[str]],
    position: str | int = "all",
    *,
    source: Mapping[str, Tensor] | None = None,
    metric: str | Metric = "logit_diff",
    direction: Direction = "denoise",
    batch_size: int = 16,
    progress: bool = True,
) -> PatchResult:
    """Patch every set of components, all of a set in one run.

    Args:
        model: The model.
        pairs: Aligned pairs.
        sets: Name of a set to its components: a site (`text.3.mlp_out`), or a head or neuron of one
            (`text.2.z[5]`, `text.1.mlp_hidden[40]`); globs stand for several sites.
        position: As in `activation_patch`, one for all.
        source: Activations to put in instead of the other run's, by site, the first axis the pairs
            in order: another image's, a mean, one that a method made.
        metric: As in `activation_patch`.
        direction: Which run is patched, as in `activation_patch`.
        batch_size: Pairs at once.
        progress: Show a progress bar.

    Returns:
        One row per pair and set; `site` is the set's name.

    Raises:
        UsageError: No sets, an empty set, a component that does not exist, or an unknown option.
        InputError: As in `activation_patch`, or a source of another shape than its site.
    """
    check_metric(metric)
    check_direction(direction)
    members = {name: _members(model, parts) for name, parts in sets.items()}
    if not members or not all(members.values()):
        raise UsageError("Expected at least one set, each with at least one component.")
    sites = list(dict.fromkeys(site for parts in members.values() for site, _ in parts))
    given = {} if source is None else {model.sites(name)[0]: source[name] for name in source}
    _check_source(sites, given, len(pairs), source is not None)
    writers = {name: RowWriter(name_of(metric), direction) for name in members}
    cost, start = 0.0, 0
    with tqdm(total=len(pairs), desc="sets", unit="pair", disable=not progress) as bar:
        for batch in list(batches(model, pairs, batch_size)):
            runs = base_runs(model, batch, sites, metric, direction, "full")
            runs = _with_given(runs, given, start)
            start += len(batch)
            for name, parts in members.items():
                together = list(_components(runs, parts, str(position)))
                patched = runs.score(patched_logits(model, runs, together))
                writers[name].add(runs, together[0], patched, "full")
            cost += (2 + len(members)) * len(batch)
            bar.update(len(batch))
    facts = provenance(
        model=model.name,
        method="patching of sets",
        of=name_of(metric),
        direction=direction,
        source="given" if given else "the other run",
        sets={name: list(parts) for name, parts in sets.items()},
    )
    return _result(writers, facts, cost)


def _result(writers: Mapping[str, RowWriter], facts: dict[str, Any], cost: float) -> PatchResult:
    frames = [_named(writer.frame(), name) for name, writer in writers.items()]
    table = ResultTable(pd.concat(frames, ignore_index=True), facts)
    return PatchResult(table, tuple(next(iter(writers.values())).no_gap), cost)


def _members(model: LVLM, parts: Sequence[str]) -> list[Member]:
    found: list[Member] = []
    for part in parts:
        match = _NAME.fullmatch(part)
        if match is None:
            raise UsageError(
                f"{part!r}: expected a site (text.2.z) or one unit of it (text.2.z[5])."
            )
        unit = None if match["unit"] is None else int(match["unit"])
        for site in model.sites(match["site"]):
            if unit is not None and unit_axis(site) is None:
                raise UsageError(f"{part!r}: {site} has no heads or neurons: leave out [{unit}].")
            found.append((site, unit))
    return found


def _check_source(
    sites: Sequence[Site], given: Mapping[Site, Tensor], n_pairs: int, wanted: bool
) -> None:
    if missing := [str(site) for site in sites if wanted and site not in given]:
        raise UsageError(f"source has no activations of {', '.join(missing)}.")
    for site, value in given.items():
        if len(value) != n_pairs:
            raise InputError(
                f"source[{str(site)!r}] holds {len(value)} rows for {n_pairs} pairs: give one each."
            )


def _with_given(runs: BaseRuns, given: Mapping[Site, Tensor], start: int) -> BaseRuns:
    if not given:
        return runs
    cache = ActivationCache()
    for site in runs.source.sites:
        like, mine = runs.source[site], given[site][start : start + len(runs.batch)]
        if mine.shape != like.shape:
            raise InputError(
                f"source[{str(site)!r}] has rows of shape {tuple(mine.shape[1:])}, but the site "
                f"has {tuple(like.shape[1:])} in these pairs."
            )
        cache[site] = mine.to(like)
    return runs.with_source(cache)


def _components(runs: BaseRuns, parts: Sequence[Member], position: str) -> Iterator[Component]:
    for site, unit in parts:
        value, axes = runs.source[site], site.shape.split()
        axis = unit_axis(site)
        if unit is not None and axis is not None and unit >= value.shape[axis]:
            raise UsageError(
                f"There is no unit {unit} at {site}: it has {value.shape[axis]}, from 0."
            )
        n_positions = value.shape[axes.index("query_pos" if "query_pos" in axes else "pos")]
        found = masks(runs.batch, site.positions_of, n_positions, [position])
        if len(found) != 1:
            raise UsageError(f"position={position!r}: expected one for all, not each by itself.")
        label, mask = found[0]
        yield Component(site, unit, label, mask)


def _named(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows of a set, which has no tower, layer or unit of its own."""
    frame = frame.assign(site=name)
    for column in ("tower", "layer", "head", "neuron"):
        frame[column] = pd.Series([pd.NA] * len(frame), dtype=frame[column].dtype)
    return frame
