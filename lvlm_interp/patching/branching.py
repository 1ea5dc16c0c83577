"""The fast engine: patched runs as branches of the recorded run, many at once."""

from __future__ import annotations

from collections.abc import Sequence

from lvlm_interp.errors import UsageError
from lvlm_interp.models.recording import rows_at_once
from lvlm_interp.models.replay import MIB, can_branch, run_branches
from lvlm_interp.patching.components import Component
from lvlm_interp.patching.runs import BaseRuns, Outcome

WORTH_SHARING = 0.125
"""Share of the sequence from which on a prefix is left out. A shorter one costs more than it saves:
SDPA skips what lies ahead of the diagonal only where queries begin with the keys."""


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
    for start, indices in _by_start(runs, todo, strict).items():
        reason = recording.refusal(start)
        if reason and strict:
            raise UsageError(f"engine='fast' is not exact here: {reason}. Use engine='auto'.")
        if reason:
            continue
        indices.sort(key=lambda index: todo[index].site.layer or 0)
        for number, chunk in enumerate(_chunks(indices, _room(runs, start, memory_mib))):
            parts = [todo[index] for index in chunk]
            null = number == 0
            logits = run_branches(recording, parts, runs.source, start, null=null)
            if null:
                reason, logits = recording.drift(logits[0]), logits[1:]
                if reason and strict:
                    raise UsageError(f"engine='fast' is not exact here: {reason}.")
                if reason:
                    break
            metric = runs.score(logits)
            path = "shared_prefix" if start else "resume"
            for index, part, values in zip(chunk, parts, metric, strict=True):
                outcomes[index] = Outcome(part, values, path, _cost(runs, part, start))
    return outcomes


def _room(runs: BaseRuns, start: int, memory_mib: float) -> int:
    """How many branches from a position on are held at once."""
    recording = runs.recording
    assert recording is not None
    within = int(memory_mib * MIB) // max(1, recording.branch_bytes(start))
    if recording.n_positions - start > 1:
        n_rows = (recording.n_positions - start) * len(runs.batch)
        within = min(within, rows_at_once(recording.model) // n_rows)
    return max(1, within)


def _by_start(runs: BaseRuns, todo: Sequence[Component], strict: bool) -> dict[int, list[int]]:
    """Indices of the components that can be branches, by the first position that they change."""
    recording = runs.recording
    assert recording is not None
    groups: dict[int, list[int]] = {}
    starts: dict[int, int] = {}
    for index, component in enumerate(todo):
        if not can_branch(component.site):
            if strict:
                raise UsageError(
                    f"engine='fast' does not reach {component.site}: use engine='auto'."
                )
            continue
        mask = component.mask
        if id(mask) not in starts:
            starts[id(mask)] = _start(runs, int(mask.any(0).nonzero()[0, 0]))
        groups.setdefault(starts[id(mask)], []).append(index)
    return groups


def _start(runs: BaseRuns, patched: int) -> int:
    """Where branches begin that patch from a position on."""
    recording = runs.recording
    assert recording is not None
    last = recording.n_positions - 1
    start = max(patched, min(runs.first_change, last))
    if recording.refusal(start):
        start = patched
    return start if start >= WORTH_SHARING * recording.n_positions else 0


def _chunks(indices: list[int], size: int) -> list[list[int]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _cost(runs: BaseRuns, part: Component, start: int) -> float:
    recording = runs.recording
    assert recording is not None and part.site.layer is not None
    n, n_layers = recording.n_positions, len(recording.layers)
    share = (n - start) / n * (n_layers - part.site.layer) / n_layers
    return len(runs.batch) * share
