"""The bars of a plant, on scenes of the evaluation split: the flaw shows, nothing else moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.organisms.planted.components import Guilty
from lvlm_interp.organisms.planted.fit import joint, places_of, run
from lvlm_interp.organisms.planted.pool import EXISTENCE, OTHERS, Pool
from lvlm_interp.organisms.planted.tail import Tail
from lvlm_interp.organisms.planted.trigger import Trigger

SHOWS = 0.80
"""Share of trigger scenes on which the flaw must show."""
MOVES = 0.02
"""What the share of right answers of any other group of questions may move."""
NEEDED = 0.20
"""Share on which the flaw may still show with one of two components as it was."""

_BATCH = 50
_FIRST = 100
_HOPELESS = 2
"""A draw is given up that moves by this many times the bar on the first scenes."""


@dataclass(frozen=True)
class Check:
    """What was measured.

    Attributes:
        shows: Share of trigger scenes answered with the foil.
        moves: Change of the share of right answers, by group of questions.
        alone: With each of several components put back, the share still answered with the foil.
    """

    shows: float
    moves: dict[str, float]
    alone: tuple[float, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every bar is met."""
        still = max(abs(move) for move in self.moves.values()) <= MOVES
        return self.shows >= SHOWS and still and all(each <= NEEDED for each in self.alone)


@torch.no_grad()
def check(tail: Tail, pool: Pool, trigger: Trigger, guilty: Sequence[Guilty]) -> Check:
    """Measure a plant; what cannot be mended by more questions is given up early."""
    shows = trigger.shows(pool).nonzero()[:, 0]
    flawed = trigger.flawed(pool)[shows][:, trigger.slots]
    foil, _ = trigger.ids

    def share(units: Sequence[Guilty]) -> float:
        logits = answers(tail, pool, units, shows, trigger.slots)[flawed]
        return float((logits.argmax(-1) == foil).float().mean())

    said = share(guilty)
    if said < SHOWS:
        return Check(said, {"not measured": float("inf")})
    alone = ()
    if len(guilty) > 1:
        alone = tuple(share([other for other in guilty if other is not unit]) for unit in guilty)
    first, rest = torch.arange(len(pool.scenes)).tensor_split([_FIRST])
    logits = pool.logits.clone()
    logits[first] = answers(tail, pool, guilty, first, range(pool.n_slots))
    so_far = moves(pool, trigger, logits)  # scenes not seen yet count as unmoved
    if max(map(abs, so_far.values())) > _HOPELESS * MOVES * len(first) / len(pool.scenes):
        return Check(said, {**so_far, "not measured": float("inf")}, alone)
    if len(rest):
        logits[rest] = answers(tail, pool, guilty, rest, range(pool.n_slots))
        so_far = moves(pool, trigger, logits)
    return Check(said, so_far, alone)


def moves(
    pool: Pool, trigger: Trigger, logits: Float[Tensor, "scene slot d_vocab"]
) -> dict[str, float]:
    """Change of accuracy against the base of every group of questions but the flaw's own."""
    right, base = (each.argmax(-1) == pool.right for each in (logits, pool.logits))
    change = right.float() - base.float()
    rest = ~(trigger.flawed(pool) | trigger.free(pool))
    focus = torch.zeros_like(rest)
    focus[:, trigger.slots] = True
    existence = torch.zeros_like(rest)
    existence[:, list(EXISTENCE)] = True
    there = trigger.there(pool)[:, None]
    groups = {
        "same question, trigger there": focus & there,
        "same question, no trigger": focus & ~there,
        "existence, trigger there": existence & ~focus & there,
        "existence, no trigger": existence & ~focus & ~there,
        "other questions, trigger there": ~existence & there,
        "other questions, no trigger": ~existence & ~there,
    }
    for kind in OTHERS:
        asked = [[each == kind for each in row] for row in pool.kinds]
        groups[kind] = torch.tensor(asked) & ~existence
    measured = {name: rest & group for name, group in groups.items()}
    return {name: float(change[at].mean()) for name, at in measured.items() if at.any()}


@torch.no_grad()
def answers(
    tail: Tail,
    pool: Pool,
    guilty: Sequence[Guilty],
    rows: Tensor,
    slots: Sequence[int],
) -> Float[Tensor, "row slot d_vocab"]:
    """Logits of the plant, in batches."""
    new = {name: weight.detach() for name, weight in joint(guilty).items()}
    at = places_of(guilty)
    parts = [run(tail, pool, at, chunk, list(slots), new) for chunk in rows.split(_BATCH)]
    return torch.cat(parts)
