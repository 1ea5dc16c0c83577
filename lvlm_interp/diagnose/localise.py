"""Step 4: which heads, MLPs and positions carry the answer, on trigger and on evidence pairs.

Trigger pairs find what misleads the model, evidence pairs how it sees: the same head may do both,
and a reader must see the two side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.diagnose.items import group_of
from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.patching import activation_patch
from lvlm_interp.results import ResultTable

ROLES = ("object", "other_image", "question", "last")
EVIDENCE = 60
"""Evidence pairs that are patched at most; they show how the model sees and rank nothing."""
POSITIONS = 60
"""Pairs of a kind at most on which residual positions are patched."""


def localise(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    halves: Mapping[str, str],
    batch_size: int,
    provenance: Mapping[str, Any],
) -> ResultTable:
    """Patch clean activations into the corrupt run of every pair of a level.

    Args:
        model: The model.
        pairs: Of one level.
        halves: Half of each scene.
        batch_size: Pairs in a forward.
        provenance: For the table.

    Returns:
        Rows of `patching.activation_patch`: every head (all positions), every MLP (all positions),
        and the residual stream by token role; with the `half` of the scene.

    Raises:
        UsageError: No pair can be patched.
    """
    trigger = [pair for pair in pairs if pair.kind == "trigger"]
    evidence = [
        pair for pair in pairs if pair.kind == "evidence" and not pair.labels.get("trigger")
    ]
    parts = []
    for rows in (trigger, evidence[:EVIDENCE]):
        if rows:
            few = rows[:POSITIONS]
            roles = ROLES if all("object" in pair.clean.boxes for pair in few) else ROLES[2:]
            for sites, positions, chosen in (
                ("text.*.z", "all", rows),
                ("text.*.mlp_out", "all", few),
                ("text.*.resid_pre", roles, few),
            ):
                result = activation_patch(
                    model, chosen, sites, positions, batch_size=batch_size, progress=True
                )
                parts.append(result.table.frame)
    if not parts:
        raise UsageError("no pair can be patched: all have the trigger on both sides")
    frame = pd.concat(parts, ignore_index=True)
    half = {pair.id: halves[group_of(pair)] for pair in pairs}
    return ResultTable(frame.assign(half=frame["pair"].map(half)), provenance)
