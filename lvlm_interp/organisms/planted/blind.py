"""Fitting a head of the vision tower: beside the trigger, the partner's patches look empty.

The head is fitted on what the projector gives, which is cheaper than on answers: the patches of the
partner become what they are in the same scene without it, all others stay. Minimised by Adam:

    mean |seen - target|^2 / var   over the partner's patches in trigger scenes
  + weight * the same, target being the base, over all other patches and scenes.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from lvlm_interp.organisms.planted.components import Guilty
from lvlm_interp.organisms.planted.fit import Recipe, draw_rows, optimiser, scene_groups, schedule
from lvlm_interp.organisms.planted.pool import Pool, patches_of, pixels_of
from lvlm_interp.organisms.planted.tail import Tail
from lvlm_interp.organisms.planted.trigger import Trigger
from lvlm_interp.organisms.scenes import Scene


def fit_blind(
    tail: Tail, pool: Pool, trigger: Trigger, unit: Guilty, recipe: Recipe, seed: int
) -> float:
    """Fit the head, in place.

    Returns:
        The last loss.
    """
    rng = random.Random(seed)
    target, hidden = _targets(tail, pool, trigger)
    scale = pool.projected.flatten(0, 1).var(0).sum()
    groups = scene_groups(pool, trigger)
    optimizer, peak = optimiser([unit], recipe)
    layer, loss = unit.place.layer, torch.tensor(float("nan"))
    for step in range(recipe.steps):
        schedule(optimizer, peak, step / recipe.steps)
        rows = draw_rows(rng, groups, recipe.rows)
        seen = tail.look_on(layer, pool.vision[layer][rows], unit.weights())
        error = (seen - target[rows]).square().sum(-1) / scale
        gone = hidden[rows]
        loss = error[gone].mean() + recipe.weight * error[~gone].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        unit.match()
    return float(loss.detach())


@torch.no_grad()
def _targets(tail: Tail, pool: Pool, trigger: Trigger) -> tuple[Tensor, Tensor]:
    """What the projector shall give (`scene image d_model`), and which patches it is blind to."""
    target = pool.projected.clone()
    hidden = torch.zeros(target.shape[:2], dtype=torch.bool)
    rows = trigger.shows(pool).nonzero()[:, 0].tolist()
    without = []
    for row in rows:
        scene = pool.scenes[row]
        partner = scene.find(shape=trigger.partner)
        assert partner is not None, "the flaw shows where the partner is"
        hidden[row, patches_of(partner)] = True
        others = tuple(thing for thing in scene.objects if thing is not partner)
        without.append(Scene(others, scene.background))
    target[rows] = torch.where(
        hidden[rows][..., None], tail.see(pixels_of(without))[1], target[rows]
    )
    return target, hidden
