"""How the sites of a tower see its tensors: the row of the batch first, whatever the tower does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm_interp.models.family import Tower
from lvlm_interp.models.hooks import AS_IS, View
from lvlm_interp.models.inputs.run import CurrentRun

_FIRST = View(lambda raw: raw[0], lambda raw, new: new[None])
"""Of a batch of one, as the attention function gets of flat towers."""


@dataclass(frozen=True)
class TowerViews:
    """The views of one tower.

    Attributes:
        positions: Of what modules get and give.
        rotary: Of queries and keys inside the attention function.
        scores, pattern: Of queries by keys.
        run: What the views need to know of; None for the language model, whose tensors have the
            row first as they are.
    """

    positions: View = AS_IS
    rotary: View = AS_IS
    scores: View = AS_IS
    pattern: View = AS_IS
    run: CurrentRun | None = None

    def of_part(self, part: str) -> View:
        """Of a part of the attention function, by its name in `hooks.ATTENTION_PARTS`."""
        return {"scores": self.scores, "pattern": self.pattern}.get(part, self.rotary)


def by_row(run: CurrentRun, tower: str) -> View:
    """`row pos ...` of a tower's tensors."""
    return View(
        lambda raw: run.rows(tower).read(raw), lambda raw, new: run.rows(tower).write(raw, new)
    )


def tower_views(run: CurrentRun, tower: Tower) -> TowerViews:
    """Of a tower in front of the language model.

    Args:
        run: Knows the rows of the run that is going on.
        tower: The tower.
    """
    name, plain = tower.name, by_row(run, tower.name)
    first = _FIRST.then(plain)

    def write(raw: Tensor, new: Tensor) -> Tensor:
        return run.rows(name).write_pairs(raw, new)

    return TowerViews(
        first if tower.packed else plain,
        first if tower.flat or tower.packed else plain,
        View(lambda raw: run.rows(name).read_pairs(raw, torch.finfo(raw.dtype).min), write),
        View(lambda raw: run.rows(name).read_pairs(raw, 0.0), write),
        run,
    )
