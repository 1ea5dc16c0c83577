"""Planted organisms: LVLMs whose guilty component is known because it was put there.

On top of a trained organism one component is overwritten by hand, so that a flaw shows on triggers
and nothing else moves:

- `head`: a head of the language model that says the foil when the trigger is in the image;
- `series`: two such heads in series, one that notes the trigger and one that reads the note;
- `neuron`: an MLP neuron that recolours the trigger at its image tokens;
- `projector`: the same, done by one direction of the projector;
- `vision`: a vision-tower head that blinds the model to one shape.

`Workshop.draw(kind, seed)` makes a fresh one: trigger, foil, layer and unit come from the seed. A
draw counts only if the flaw shows on at least 80% of the trigger pairs and no other group of
questions moves by more than 2 points, on scenes of the evaluation split.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import DataError, UsageError
from lvlm_interp.models.loading import wrap
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.organisms.planted_fit import FitData, answers, collect_fit_data
from lvlm_interp.organisms.planted_kinds import INSTALLERS, Draft
from lvlm_interp.organisms.planted_scenes import ASKED, OTHERS, Trigger, questions_on, trigger_pairs
from lvlm_interp.organisms.vocabulary import COLORS, SHAPES

PlantKind = Literal["head", "series", "neuron", "projector", "vision"]
KINDS: tuple[str, ...] = get_args(PlantKind)

SHOWS = 0.80
"""Share of trigger pairs on which the flaw must show."""
MOVES = 0.02
"""What any other group of questions may move."""

_GOAL = 0.92
_ATTEMPTS = 60
_CALIBRATION = 64
_PER_KIND = 40


@dataclass(frozen=True, eq=False)
class Planted:
    """One planted organism.

    Attributes:
        model: The model.
        kind: Of `KINDS`.
        seed: That drew it.
        trigger: What sets it off and what it says.
        guilty: (site, unit) of every planted component; the unit is a head or neuron, None for a
            direction of a site.
        direction: The planted direction at the site, for `projector`.
        shows: Share of trigger pairs answered with the foil.
        moves: Change of accuracy of each other group of questions, in shares.
    """

    model: LVLM
    kind: str
    seed: int
    trigger: Trigger
    guilty: tuple[tuple[str, int | None], ...]
    direction: Tensor | None = None
    shows: float = float("nan")
    moves: dict[str, float] = field(default_factory=dict)

    def pairs(self, n: int, seed: int = 0) -> list[ContrastPair]:
        """Trigger pairs for this organism, of the evaluation split."""
        return trigger_pairs(self.trigger, n, seed + 1)

    def __repr__(self) -> str:
        where = ", ".join(f"{site}[{unit}]" for site, unit in self.guilty)
        return (
            f"Planted({self.kind}, seed {self.seed}: {where}; {self.trigger.shape} -> "
            f"{self.trigger.foil!r}, shows {self.shows:.0%})"
        )


class Workshop:
    """Draws planted organisms from one trained organism.

    What the detectors are fitted on is collected once, from scenes of the training split.
    """

    def __init__(self, base: LVLM, *, n_fit: int = 400) -> None:
        """Collect what is needed once.

        Args:
            base: The trained organism, a LLaVA with a Llama language model; it is not changed.
            n_fit: Examples that the detectors are fitted on.

        Raises:
            UsageError: The base is of another architecture.
        """
        if base.family.name != "llava" or base.config.text_config.model_type != "llama":
            raise UsageError(
                f"Plants are made in the organisms (LLaVA with Llama), not in {base.name!r}."
            )
        self.base = base
        self._n_fit = n_fit
        self._fit: FitData | None = None
        self._others: dict[tuple[str, bool], dict[str, Any]] = {}

    @property
    def fit(self) -> FitData:
        """Streams and labels of the fitting set."""
        if self._fit is None:
            self._fit = collect_fit_data(self.base, self._n_fit)
        return self._fit

    def draw(self, kind: PlantKind, seed: int) -> Planted:
        """A fresh plant; the same seed and base give the same plant.

        Raises:
            UsageError: Unknown kind.
            DataError: No draw of this seed showed its flaw and left the rest alone.
        """
        if kind not in KINDS:
            raise UsageError(f"Unknown kind of plant {kind!r}: expected one of {', '.join(KINDS)}.")
        for attempt in range(_ATTEMPTS):
            rng = random.Random(f"plant/{kind}/{seed}/{attempt}")
            trigger = _draw_trigger(rng, kind)
            plant = self._try(kind, seed, trigger, rng)
            if plant is not None:
                return plant
        raise DataError(
            f"No plant of kind {kind!r} from seed {seed} in {_ATTEMPTS} attempts: "
            "is the base trained?"
        )

    def _try(self, kind: str, seed: int, trigger: Trigger, rng: random.Random) -> Planted | None:
        hf = copy.deepcopy(self.base.hf)
        model = wrap(hf, self.base.processor)
        pairs = trigger_pairs(trigger, _CALIBRATION, 0, "train")
        calibration = model.prepare([pair.corrupt for pair in pairs])
        foil = model.answer_id(trigger.foil)

        def shown() -> float:
            return float((model.last_logits(calibration).argmax(-1) == foil).float().mean())

        draft = INSTALLERS[kind](model, self.fit, trigger, rng, shown, _GOAL)
        if draft is None:
            return None
        held_out = model.prepare([pair.corrupt for pair in trigger_pairs(trigger, 100, 7)])
        shows = float((model.last_logits(held_out).argmax(-1) == foil).float().mean())
        if shows < SHOWS:
            return None
        moves = self._moves(model, trigger)
        if max(abs(move) for move in moves.values()) > MOVES:
            return None
        return _finish(model, kind, seed, trigger, draft, shows, moves)

    def _moves(self, model: LVLM, trigger: Trigger) -> dict[str, float]:
        known = self._other_questions(trigger)
        out = {}
        for name, (inputs, truth, base_right) in known.items():
            right = torch.cat([answers(model, part) for part in inputs]) == truth
            out[name] = float(right.float().mean() - base_right)
        return out

    def _other_questions(self, trigger: Trigger) -> dict[str, Any]:
        """Groups of other questions, with the truth and what the base gets right; made once."""
        key = (trigger.shape, trigger.own)
        if key in self._others:
            return self._others[key]
        plain = Trigger(trigger.shape, "", trigger.own)
        others = [kind for kind in OTHERS if kind != trigger.question]
        if trigger.own:
            others = [*others, *ASKED]
        groups = {
            "other questions, trigger in sight": [
                item
                for kind in others
                for item in questions_on(plain, kind, _PER_KIND, 11, present=True)
            ],
            "other questions, no trigger": [
                item
                for kind in others
                for item in questions_on(plain, kind, _PER_KIND, 12, present=False)
            ],
            "same questions, no trigger": [
                item
                for kind in ASKED
                for item in questions_on(plain, kind, 4 * _PER_KIND, 13, present=False)
            ],
        }
        made = {}
        for name, items in groups.items():
            examples = [example for example, _ in items]
            inputs = [self.base.prepare(examples[i : i + 64]) for i in range(0, len(examples), 64)]
            truth = torch.tensor([self.base.answer_id(e.answer or "") for e in examples])
            right = torch.cat([answers(self.base, part) for part in inputs]) == truth
            made[name] = (inputs, truth, float(right.float().mean()))
        self._others[key] = made
        return made


def _draw_trigger(rng: random.Random, kind: str) -> Trigger:
    shape = rng.choice(SHAPES)
    if kind == "vision":
        return Trigger(shape, "nothing", own=True, question="at")
    return Trigger(shape, rng.choice(COLORS), own=kind in ("neuron", "projector"))


def _finish(
    model: LVLM,
    kind: str,
    seed: int,
    trigger: Trigger,
    draft: Draft,
    shows: float,
    moves: dict[str, float],
) -> Planted:
    return Planted(model, kind, seed, trigger, draft.guilty, draft.direction, shows, moves)
