"""Run the check, leave the model as it was, and say what failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm_interp.errors import ModelError
from lvlm_interp.models.hooks import READ
from lvlm_interp.models.identities import off
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.sample import sample_inputs
from lvlm_interp.models.recording import record_run
from lvlm_interp.models.selfcheck.report import BARE, TOLERANCE, CheckReport, SiteCheck
from lvlm_interp.models.selfcheck.rows import CLEAN, N, repeated
from lvlm_interp.models.selfcheck.stations import Stations
from lvlm_interp.sites import Site

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM


def self_check(model: LVLM, inputs: Inputs | Mapping[str, Any] | None = None) -> CheckReport:
    """Prove on one batch that every declared site reads and writes what it says.

    Args:
        model: The model; it is left as it was.
        inputs: One row to run on; by default a random image with a short prompt.

    Returns:
        The read error and write effect of every site.

    Raises:
        ModelError: A site reads wrong or is written without effect; all such sites are named.
    """
    report = inspect(model, inputs)
    if failed := report.failed:
        names = "; ".join(report.complaint(check) for check in failed[:8])
        more = f"; and {len(failed) - 8} more" if len(failed) > 8 else ""
        raise ModelError(
            f"The self-check of {model.name} failed: {names}{more}. Load it with selfcheck=False "
            "only to find out why."
        )
    return report


def inspect(model: LVLM, inputs: Inputs | Mapping[str, Any] | None = None) -> CheckReport:
    """The self-check's table, whether or not all sites pass."""
    one = model.as_inputs(inputs) if inputs is not None else sample_inputs(model)
    report = CheckReport(model.name, TOLERANCE.get(model.dtype, 1e-2), N)
    found = Stations(model, one)
    with _unchanged_state(model.hf), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clean = _run(model, found, repeated(one))
        bare = model(one)
        recorded = record_run(model, one).logits
    report.bare_error = off(clean, bare)
    report.bare_tolerance = BARE.get(model.dtype, 0.2)
    model._runs.records_exactly = off(recorded, bare[:, -1]) <= report.bare_tolerance
    for site in model.sites():
        effect, floor = found.effects.get(site, (0.0, 0.0))
        report.checks.append(SiteCheck(str(site), found.reads.get(site), effect, floor))
    return report


def _run(model: LVLM, found: Stations, batch: Inputs) -> Tensor:
    """One forward with a visitor at every site; logits of the clean row."""

    def visitor(site: Site) -> Callable[[Tensor], Tensor | None]:
        return lambda value: found.visit(site, value)

    with model._connected({site: visitor(site) for site in model.sites()}, READ):
        return model(batch)[CLEAN : CLEAN + 1]


@contextmanager
def _unchanged_state(hf: Any) -> Iterator[None]:
    """Put back what a forward of transformers leaves on its modules (M-RoPE offsets)."""
    before = [
        (module, module.rope_deltas) for module in hf.modules() if hasattr(module, "rope_deltas")
    ]
    try:
        yield
    finally:
        for module, value in before:
            module.rope_deltas = value
