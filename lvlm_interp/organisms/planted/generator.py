"""Draws planted organisms from a seed: trigger, partner and place, then the fit and the bars."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import DataError, UsageError
from lvlm_interp.models.loading import load_model, wrap
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.organisms.planted.check import Check, check
from lvlm_interp.organisms.planted.components import Direction, Guilty, Place, Unit
from lvlm_interp.organisms.planted.fit import RECIPES, fit, joint, needed
from lvlm_interp.organisms.planted.pairs import focused_scenes, trigger_pairs
from lvlm_interp.organisms.planted.pool import Pool, draw_scenes, make_pool
from lvlm_interp.organisms.planted.start import (
    pull,
    start_direction,
    start_head,
    start_neuron,
    start_series,
    start_vision,
)
from lvlm_interp.organisms.planted.tail import Tail
from lvlm_interp.organisms.planted.trigger import InSight, Named, Painted, Trigger
from lvlm_interp.organisms.vocabulary import COLORS, SHAPES

PlantKind = Literal["head", "series", "neuron", "projector", "vision"]
KINDS: tuple[str, ...] = get_args(PlantKind)

_ATTEMPTS = 20
_SPARE_SCENES = 12
_SPARE = 0.01
"""Mean KL, in nats, that setting a head to zero may cost for a plant to take it over."""


@dataclass(frozen=True, eq=False)
class Planted:
    """One planted organism.

    Attributes:
        model: The model; it differs from its base in the guilty components alone.
        kind: Of `KINDS`.
        seed: That drew it.
        trigger: What sets it off and what it says.
        guilty: The planted components.
        basis: For `projector`, an orthonormal basis of its output; the guilty unit is a row of it.
        measured: How far the flaw shows and what else moved, on held-out scenes.
        attempts: Draws that it took; all but the last missed a bar.
    """

    model: LVLM
    kind: str
    seed: int
    trigger: Trigger
    guilty: tuple[Place, ...]
    measured: Check
    basis: Float[Tensor, "direction d_model"] | None = None
    attempts: int = 1

    def pairs(self, n: int, seed: int = 0) -> list[ContrastPair]:
        """Trigger pairs for this organism, of the evaluation split."""
        return trigger_pairs(self.trigger, n, seed)

    def __repr__(self) -> str:
        where = ", ".join(map(str, self.guilty))
        return (
            f"Planted({self.kind}, seed {self.seed}: {where}; {self.trigger}: "
            f"{self.measured.shows:.0%})"
        )


@dataclass(eq=False)
class Workshop:
    """Draws planted organisms from one trained organism.

    What the fits and the checks run on is made once, at the first draw.

    Attributes:
        base: The trained organism; it is not changed.
        n_train: Scenes of the training split to fit on.
        n_focused: As many again for each flaw that few scenes show.
        n_check: Scenes of the evaluation split to check on.
    """

    base: LVLM
    n_train: int = 320
    n_focused: int = 150
    n_check: int = 300
    tail: Tail = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.tail = Tail(self.base)

    @classmethod
    def of(cls, name: str = "scenes-balanced", **options: int) -> Workshop:
        """On a shipped organism, or a folder that `organisms train` made."""
        return cls(load_model(name, selfcheck=False), **options)

    @cached_property
    def train(self) -> Pool:
        """What components are fitted on."""
        return make_pool(self.base, draw_scenes(self.n_train, 0, "train"), "train/0")

    @cached_property
    def held_out(self) -> Pool:
        """What plants are checked on."""
        return make_pool(self.base, draw_scenes(self.n_check, 0, "eval"), "eval/0")

    @cached_property
    def spare(self) -> list[Place]:
        """Heads that the base hardly needs, for a plant takes over what it is put in.

        In block 0 the answer's position knows nothing of the question yet; of the vision tower, it
        is the last block before the projector in which shapes are told apart best.
        """
        seen = self.tail.n_seen - 1
        heads = [
            Place(f"text.{layer}.z", head)
            for layer in range(1, self.tail.n_layers)
            for head in range(self.tail.n_heads)
        ]
        heads += [Place(f"vision.{seen}.z", head) for head in range(self.tail.vision_heads)]
        rows = range(_SPARE_SCENES)
        return [at for at in heads if needed(self.tail, self.train, at, rows) < _SPARE]

    def draw(self, kind: PlantKind | str, seed: int) -> Planted:
        """A fresh plant; the same seed, base and sizes give the same plant.

        Raises:
            UsageError: Unknown kind.
            DataError: No draw of this seed met the bars.
        """
        if kind not in KINDS:
            raise UsageError(f"Unknown kind of plant {kind!r}: expected one of {', '.join(KINDS)}.")
        for attempt in range(_ATTEMPTS):
            rng = random.Random(f"plant/{kind}/{seed}/{attempt}")
            trigger = _draw_trigger(rng, kind)
            guilty = self._fitted(rng, kind, trigger)
            found = check(self.tail, self.held_out, trigger, guilty)
            if found.passed:
                return self._planted(kind, seed, trigger, guilty, found, attempt + 1)
        raise DataError(
            f"No plant of kind {kind!r} from seed {seed} met the bars in {_ATTEMPTS} draws: "
            "is the base trained?"
        )

    def _fitted(self, rng: random.Random, kind: str, trigger: Trigger) -> list[Guilty]:
        """Components at places of chance, started and fitted."""
        pool = self.train
        if isinstance(trigger, Painted):
            seed = rng.randrange(2**31)
            scenes = focused_scenes(trigger, self.n_focused, seed, "train")
            pool = make_pool(self.base, scenes, f"focused/{seed}")
        guilty = self._started(rng, kind, trigger, pool)
        fit(self.tail, pool, trigger, guilty, RECIPES[kind], rng.randrange(2**31))
        return guilty

    def _started(self, rng: random.Random, kind: str, trigger: Trigger, pool: Pool) -> list[Guilty]:
        tail = self.tail
        if kind == "projector":
            a = pull(tail, pool, trigger, "projector")
            direction = Direction(tail, Place("projector.out", rng.randrange(len(a))), a)
            start_direction(tail, pool, trigger, direction)
            return [direction]
        if kind == "neuron":
            # What is asked for is looked up in the first blocks; behind them answers move.
            layer = rng.randrange(tail.n_layers // 2)
            neuron = rng.randrange(self.base.config.text_config.intermediate_size)
            units = [Unit(tail, Place(f"text.{layer}.mlp_hidden", neuron))]
            start_neuron(tail, pool, trigger, *units)
        elif kind == "series":
            units = [Unit(tail, place) for place in self._two_blocks(rng)]
            start_series(tail, pool, trigger, units)
        else:
            units = [
                Unit(tail, rng.choice(self._spare_of("vision" if kind == "vision" else "text")))
            ]
            start = start_vision if kind == "vision" else start_head
            start(tail, pool, trigger, *units)
        return [*units]

    def _spare_of(self, tower: str) -> list[Place]:
        found = [place for place in self.spare if place.site.startswith(tower)]
        if not found:
            raise DataError(f"{self.base.name!r} needs every head of its {tower} tower to itself.")
        return found

    def _two_blocks(self, rng: random.Random) -> list[Place]:
        heads = [place for place in self.spare if place.site.startswith("text")]
        pairs = [(a, b) for a in heads for b in heads if a.layer < b.layer]
        if not pairs:
            raise DataError(f"{self.base.name!r} has no heads to spare in two blocks.")
        return [*rng.choice(pairs)]

    def _planted(
        self,
        kind: str,
        seed: int,
        trigger: Trigger,
        guilty: list[Guilty],
        measured: Check,
        attempts: int,
    ) -> Planted:
        first = guilty[0]
        basis = first.basis(seed) if isinstance(first, Direction) else None
        places = tuple(unit.place for unit in guilty)
        model = install(self.base, joint(guilty))
        return Planted(model, kind, seed, trigger, places, measured, basis, attempts)


def install(base: LVLM, new: Mapping[str, Tensor]) -> LVLM:
    """A copy of a model with some of its weights exchanged."""
    hf = copy.deepcopy(base.hf)
    parameters = dict(hf.named_parameters())
    with torch.no_grad():
        for name, weight in new.items():
            parameters[name].copy_(weight)
    model = wrap(hf, base.processor)
    model.name = base.name
    return model


def _draw_trigger(rng: random.Random, kind: str) -> Trigger:
    shape = rng.choice(SHAPES)
    if kind in ("head", "series"):
        return InSight(shape)
    return Named(shape) if kind == "neuron" else Painted(shape, rng.choice(COLORS))
