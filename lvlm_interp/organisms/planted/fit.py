"""Fitting a component's weights: the flaw on trigger scenes, the base model everywhere else.

From weights in closed form (`start`), minimised by Adam over scenes of the training split:

    mean softplus(margin - (l_foil - l_answer))      on the flaw's question in trigger scenes
  + weight * mean KL(base || plant)                  on every other question and scene

and after every step each part of the component is scaled back to its norm. Nothing but
the component's own weights can change, so where the guilt lies is known by construction.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lvlm_interp.organisms.planted.components import Guilty, Place, parts_of
from lvlm_interp.organisms.planted.pool import Pool
from lvlm_interp.organisms.planted.tail import Tail
from lvlm_interp.organisms.planted.trigger import Trigger


@dataclass(frozen=True)
class Recipe:
    """How a component is fitted.

    Attributes:
        steps: Steps of Adam.
        rate: Peak learning rate, in units of the weights' own size (root mean square).
        rows: Scenes of a step.
        margin: Logit difference that the flaw is driven to.
        weight: Of the KL term.
    """

    steps: int = 30
    rate: float = 0.3
    rows: int = 16
    margin: float = 3.0
    weight: float = 6.0


RECIPES = {
    "head": Recipe(),
    "series": Recipe(steps=60),
    "neuron": Recipe(),
    "projector": Recipe(steps=12, rate=0.1),
    "vision": Recipe(steps=40, rate=0.1, weight=8.0),
}
"""By kind of plant."""


def fit(
    tail: Tail,
    pool: Pool,
    trigger: Trigger,
    guilty: Sequence[Guilty],
    recipe: Recipe,
    seed: int,
) -> float:
    """Fit the components together, in place; of several, each must be needed for the flaw.

    Returns:
        The last loss.
    """
    rng = random.Random(seed)
    flawed = trigger.flawed(pool)
    free = trigger.free(pool)
    groups = scene_groups(pool, trigger)
    miner = _Miner(trigger.slots, torch.ones(pool.n_slots))
    optimizer, peak = optimiser(guilty, recipe)
    loss = torch.tensor(float("nan"))
    for step in range(recipe.steps):
        schedule(optimizer, peak, step / recipe.steps)
        rows = draw_rows(rng, groups, recipe.rows)
        slots, n_focus = miner.draw(rng)
        logits = run(tail, pool, places_of(guilty), rows, slots, joint(guilty))
        at = torch.tensor(rows)[:, None], torch.tensor(slots)
        drift = _divergence(pool.logits[at], logits)
        loss = _loss(logits, drift, flawed[at], free[at], n_focus, trigger, recipe)
        miner.learn(slots, drift.detach() * ~(flawed | free)[at])
        if len(guilty) > 1:
            loss = loss + _all_needed(tail, pool, trigger, guilty, rows, recipe, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for unit in guilty:
            unit.match()
    return float(loss.detach())


def run(
    tail: Tail,
    pool: Pool,
    places: Sequence[Place],
    rows: Sequence[int] | Tensor,
    slots: Sequence[int],
    new: dict[str, Tensor],
) -> Float[Tensor, "row slot d_vocab"]:
    """Logits at the answers with new weights at some places, from the first of them on."""
    first = min(places, key=lambda place: place.layer)
    tower = first.site.split(".")[0]
    answer_at = pool.answer_at[rows][:, slots]
    n_asked = int(answer_at.max()) + 1
    start = first.layer if tower == "text" else 0
    prefix, asked = pool.prefix[start][rows], pool.asked[start][rows][:, slots, :n_asked]
    if tower != "text":
        if tower == "vision":
            seen = tail.look_on(first.layer, pool.vision[first.layer][rows], new)
        else:
            seen = tail.project(pool.vision[-1][rows], new)
        prefix = see_with(prefix, seen)
    return tail.read(start, prefix, asked, answer_at, new)


def see_with(prefix: Tensor, seen: Tensor) -> Tensor:
    """The prefix in front of block 0 with other image tokens."""
    return torch.cat([prefix[:, : prefix.shape[1] - seen.shape[1]], seen], dim=1)


def places_of(guilty: Sequence[Guilty]) -> list[Place]:
    """Where components are."""
    return [unit.place for unit in guilty]


def _divergence(base: Tensor, logits: Tensor) -> Float[Tensor, "row slot"]:
    """KL(base || plant)."""
    log_p, log_q = base.log_softmax(-1), logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _loss(
    logits: Tensor,
    drift: Tensor,
    flawed: Tensor,
    free: Tensor,
    n_focus: int,
    trigger: Trigger,
    recipe: Recipe,
) -> Tensor:
    foil, answer = trigger.ids
    gap = logits[flawed][:, foil] - logits[flawed][:, answer]
    shows = functional.softplus(recipe.margin - gap).mean()
    rest = ~(flawed | free)
    # The flaw's own questions, where the flaw has no place, are what is mixed up most easily.
    near = drift[:, :n_focus][rest[:, :n_focus]].mean()
    return shows + recipe.weight * (near + drift[:, n_focus:][rest[:, n_focus:]].mean())


def _all_needed(
    tail: Tail,
    pool: Pool,
    trigger: Trigger,
    guilty: Sequence[Guilty],
    rows: Sequence[int],
    recipe: Recipe,
    rng: random.Random,
) -> Tensor:
    """Mean of softplus(margin - (l_answer - l_foil)) with each component as it was in the base."""
    shows = trigger.shows(pool)
    rows = [row for row in rows if shows[row]]
    slots = rng.sample(trigger.slots, min(_FOCUS, len(trigger.slots)))
    flawed = trigger.flawed(pool)[rows][:, slots]
    foil, answer = trigger.ids
    loss = torch.zeros(())
    for unit in guilty:
        rest = [other for other in guilty if other is not unit]
        logits = run(tail, pool, places_of(rest), rows, slots, joint(rest))[flawed]
        gap = logits[:, answer] - logits[:, foil]
        loss = loss + functional.softplus(recipe.margin - gap).mean()
    return loss


@torch.no_grad()
def needed(tail: Tail, pool: Pool, place: Place, rows: Sequence[int]) -> float:
    """How much the base needs a head: mean KL over questions with what it writes set to zero."""
    out = parts_of(tail, place)[-1]
    weight = tail.weights[out.name]
    silent = {out.name: out.put(weight, torch.zeros_like(out.of(weight)))}
    logits = run(tail, pool, [place], rows, range(pool.n_slots), silent)
    return float(_divergence(pool.logits[rows], logits).mean())


def joint(guilty: Sequence[Guilty]) -> dict[str, Tensor]:
    """Weights of all components; heads of one block would overwrite each other's."""
    new: dict[str, Tensor] = {}
    for unit in guilty:
        mine = unit.weights()
        assert not new.keys() & mine.keys(), "components lie in different blocks"
        new |= mine
    return new


def optimiser(guilty: Sequence[Guilty], recipe: Recipe) -> tuple[torch.optim.Adam, list[float]]:
    """Adam over the components' weights, and the peak rate of each part."""
    groups = [
        {"params": [value], "lr": recipe.rate * float(value.detach().square().mean().sqrt())}
        for unit in guilty
        for value in unit.values
    ]
    return torch.optim.Adam(groups, betas=(0.9, 0.99)), [group["lr"] for group in groups]


def schedule(optimizer: torch.optim.Adam, peak: Sequence[float], share: float) -> None:
    """Warm up over a tenth of the steps, and fall linearly to nothing."""
    for group, rate in zip(optimizer.param_groups, peak, strict=True):
        group["lr"] = rate * min(1.0, (share + 0.02) / 0.1) * (1.0 - share)


def scene_groups(pool: Pool, trigger: Trigger) -> list[list[int]]:
    """Scenes where the flaw shows; with the trigger else; that are near to it; all others."""
    shows, there, near = trigger.shows(pool), trigger.there(pool), trigger.near(pool)
    groups = [shows, there & ~shows, near, ~there & ~near]
    return [group.nonzero()[:, 0].tolist() for group in groups]


_SHARES = (0.35, 0.15, 0.1)
_ASKED = 5
_FOCUS = 2


def draw_rows(rng: random.Random, groups: list[list[int]], n: int) -> list[int]:
    """Scenes of a step, drawn from the groups in fixed shares."""
    counts = [round(share * n) for share in _SHARES]
    counts.append(n - sum(counts))
    return [
        rng.choice(group)
        for group, count in zip(groups, counts, strict=True)
        for _ in range(count)
        if group
    ]


@dataclass(eq=False)
class _Miner:
    """Draws the questions of a step, those more often that have drifted more of late."""

    focus: list[int]
    drift: Tensor

    def draw(self, rng: random.Random) -> tuple[list[int], int]:
        """Questions of the flaw, then others; and how many are the flaw's."""
        focus = rng.sample(self.focus, min(_FOCUS, len(self.focus)))
        weight = self.drift + self.drift.mean() / 4
        weight[self.focus] = 0.0
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        others = weight.multinomial(_ASKED - len(focus), generator=generator)
        return [*focus, *others.tolist()], len(focus)

    def learn(self, slots: Sequence[int], drift: Tensor) -> None:
        """Note the drift of a step; `drift` is `row slot`."""
        self.drift[slots] = 0.5 * self.drift[slots] + 0.5 * drift.mean(0)
