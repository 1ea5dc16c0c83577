"""The fast engine: patched runs as branches of the recorded run, many at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_interp.errors import UsageError
from lvlm_interp.models.replay import MIB, Recording, Write, can_branch
from lvlm_interp.patching.components import Component, unit_axis
from lvlm_interp.patching.runs import BaseRuns, Outcome
from lvlm_interp.sites import Site


def branch_outcomes(
    runs: BaseRuns, todo: Sequence[Component], memory_mib: float, *, strict: bool
) -> dict[int, Outcome]:
    """Outcomes of the components that can be branches, by their index in `todo`.

    Args:
        runs: Base runs.
        todo: What to patch.
        memory_mib: Bound on the activations of the branches that are held at once.
        strict: Refuse, with the reason, where branches are not exact.

    Raises:
        UsageError: See `strict`.
    """
    recording = runs.recording
    assert recording is not None
    outcomes: dict[int, Outcome] = {}
    for start, indices in _by_start(todo, strict).items():
        reason = recording.refusal(start)
        if reason and strict:
            raise UsageError(f"engine='fast' is not exact here: {reason}. Use engine='auto'.")
        if reason:
            continue
        room = int(memory_mib * MIB) // max(1, recording.branch_bytes(start))
        indices.sort(key=lambda index: todo[index].site.layer or 0)
        for number, chunk in enumerate(_chunks(indices, max(1, room))):
            parts = [todo[index] for index in chunk]
            logits = run_branches(recording, runs, parts, start, null=number == 0)
            if number == 0:
                reason, logits = recording.drift(logits[0]), logits[1:]
                if reason and strict:
                    raise UsageError(f"engine='fast' is not exact here: {reason}.")
                if reason:
                    break
            metric = runs.score(logits)
            for index, part, values in zip(chunk, parts, metric, strict=True):
                path = "shared_prefix" if start else "resume"
                outcomes[index] = Outcome(part, values, path, _cost(runs, part, start))
    return outcomes


def run_branches(
    recording: Recording, runs: BaseRuns, parts: Sequence[Component], start: int, *, null: bool
) -> Tensor:
    """Logits at the answer with each component exchanged by itself; `component pair d_vocab`.

    With `null` the first row is an unpatched branch through every block.
    """
    ahead = int(null)

    def writes(_layer: int, fresh: list[int]) -> dict[Site, Write]:
        by_site: dict[Site, list[int]] = {}
        for index in fresh:
            if index >= ahead:
                by_site.setdefault(parts[index - ahead].site, []).append(index)
        return {
            site: _write(
                [parts[i - ahead] for i in rows], rows, runs.source[site][:, start:], start
            )
            for site, rows in by_site.items()
        }

    layers = [part.site.layer for part in parts]
    branches = [0] * ahead + [layer for layer in layers if layer is not None]
    return recording.run(branches, start, writes)


def _write(parts: list[Component], rows: list[int], source: Tensor, start: int) -> Write:
    """Exchange each component in the branch that it stands for.

    Args:
        parts: Components of one site.
        rows: Place of each one's branch in the batch.
        source: Values to put in, from `start` on; `pair pos ...`.
        start: First position of the branches.
    """
    mask = torch.stack([part.mask[:, start:] for part in parts], dim=1)  # pair branch pos
    axis = unit_axis(parts[0].site)

    def write(value: Tensor) -> Tensor:
        chosen = mask.to(value.device).reshape(*mask.shape, *[1] * (value.ndim - 3))
        if axis is not None and parts[0].unit is not None:
            # Behind the branch axis, the unit axis is one further back than in the site.
            count = value.shape[axis + 1]
            units = torch.tensor([part.unit for part in parts], device=value.device)
            one = torch.nn.functional.one_hot(units, count).bool()
            chosen = chosen & one.reshape(1, len(parts), 1, count, *[1] * (value.ndim - axis - 2))
        new = value.clone()
        new[:, rows] = torch.where(chosen, source[:, None].to(value), value[:, rows])
        return new

    return write


def _by_start(todo: Sequence[Component], strict: bool) -> dict[int, list[int]]:
    """Indices of the components that can be branches, by their first position."""
    groups: dict[int, list[int]] = {}
    for index, component in enumerate(todo):
        if not can_branch(component.site):
            if strict:
                raise UsageError(
                    f"engine='fast' does not reach {component.site}: use engine='auto'."
                )
            continue
        start = int(component.mask.any(0).nonzero()[0, 0])
        groups.setdefault(start, []).append(index)
    return groups


def _chunks(indices: list[int], size: int) -> list[list[int]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _cost(runs: BaseRuns, part: Component, start: int) -> float:
    recording = runs.recording
    assert recording is not None and part.site.layer is not None
    n, n_layers = recording.n_positions, len(recording.layers)
    share = (n - start) / n * (n_layers - part.site.layer) / n_layers
    return len(runs.batch) * share
