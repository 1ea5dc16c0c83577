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
from lvlm_interp.organisms.planted.blind import fit_blind
from lvlm_interp.organisms.planted.check import Check, check
from lvlm_interp.organisms.planted.components import Direction, Guilty, Place, Unit
from lvlm_interp.organisms.planted.fit import RECIPES, fit, joint, needed
from lvlm_interp.organisms.planted.pairs import trigger_pairs
from lvlm_interp.organisms.planted.pool import Pool, looks_like, make_pool
from lvlm_interp.organisms.planted.tail import Tail
from lvlm_interp.organisms.planted.trigger import Trigger
from lvlm_interp.organisms.vocabulary import SHAPES

PlantKind = Literal["head", "series", "neuron", "projector", "vision"]
KINDS: tuple[str, ...] = get_args(PlantKind)

_ATTEMPTS = 20
_SPARE_SCENES = 12


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
            f"Planted({self.kind}, seed {self.seed}: {where}; with a {self.trigger.shape}, "
            f"{self.trigger.foil!r} to a {self.trigger.partner or 'shape that is not there'}: "
            f"{self.measured.shows:.0%})"
        )


@dataclass(eq=False)
class Workshop:
    """Draws planted organisms from one trained organism.

    What the fits and the checks run on is made once, at the first draw.

    Attributes:
        base: The trained organism; it is not changed.
        n_train: Scenes of the training split to fit on.
        n_check: Scenes of the evaluation split to check on.
    """

    base: LVLM
    n_train: int = 320
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
        return make_pool(self.base, self.n_train, 0, "train")

    @cached_property
    def held_out(self) -> Pool:
        """What plants are checked on."""
        return make_pool(self.base, self.n_check, 0, "eval")

    @cached_property
    def spare(self) -> list[Place]:
        """The half of each block's heads that the base needs least.

        A plant takes a head over. Most of what a needed head did can be fitted anew beside the
        flaw, but not to within 2 points.
        """
        cost = needed(self.tail, self.train, range(_SPARE_SCENES))
        found: list[Place] = []
        for layer in range(self.tail.n_layers):
            mine = sorted((p for p in cost if p.layer == layer), key=cost.__getitem__)
            found += mine[: len(mine) // 2]
        return found

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
            guilty = self._components(rng, kind, trigger)
            self._fit(kind, trigger, guilty, rng.randrange(2**31))
            found = check(self.tail, self.held_out, trigger, guilty)
            if found.passed:
                return self._planted(kind, seed, trigger, guilty, found, attempt + 1)
        raise DataError(
            f"No plant of kind {kind!r} from seed {seed} met the bars in {_ATTEMPTS} draws: "
            "is the base trained?"
        )

    def _fit(self, kind: str, trigger: Trigger, guilty: list[Guilty], seed: int) -> None:
        if kind == "vision":
            fit_blind(self.tail, self.train, trigger, guilty[0], RECIPES[kind], seed)
        else:
            fit(self.tail, self.train, trigger, guilty, RECIPES[kind], seed)

    def _components(self, rng: random.Random, kind: str, trigger: Trigger) -> list[Guilty]:
        if kind == "projector":
            a = looks_like(self.train, trigger.partner)
            return [Direction(self.tail, Place("projector.out", rng.randrange(len(a))), a)]
        if kind == "neuron":
            d_mlp = self.base.config.text_config.intermediate_size
            # What is asked for is looked up in the first blocks; behind them answers move.
            layer = rng.randrange(self.tail.n_layers // 2)
            places = [Place(f"text.{layer}.mlp_hidden", rng.randrange(d_mlp))]
        elif kind == "vision":
            layer = rng.randrange(1, self.tail.n_seen)
            places = [Place(f"vision.{layer}.z", rng.randrange(self.tail.vision_heads))]
        else:
            # In block 0 the answer's position knows nothing of the question yet, and behind the
            # last one no MLP is left to weigh what a head writes there.
            inner = range(1, self.tail.n_layers - 1)
            places = [rng.choice([place for place in self.spare if place.layer in inner])]
            if kind == "series":
                earlier = [place for place in self.spare if place.layer < places[0].layer]
                places.insert(0, rng.choice(earlier))
        return [Unit(self.tail, place) for place in places]

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
    shape, partner = rng.sample(SHAPES, 2)
    if kind in ("head", "series"):
        return Trigger(shape)
    return Trigger(shape, partner, "no" if kind == "vision" else "yes")
