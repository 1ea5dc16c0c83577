"""Every localisation method as one function: a plant and its pairs in, a score per component out.

Scores are the mean effect on the logit difference, towards the clean run: the higher, the more
guilty. Methods without a sign rank by size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.circuits.directions import DirectionMethod, Side, score_directions
from lvlm_interp.circuits.graph import Graph
from lvlm_interp.circuits.scores import score_edges
from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.organisms.planted import Place, Planted
from lvlm_interp.organisms.planted.components import parts_of
from lvlm_interp.organisms.planted.tail import PROJECTOR, Tail
from lvlm_interp.patching import (
    Integration,
    PatchResult,
    ablate,
    activation_patch,
    attribution_patch,
    direct_logit_attribution,
)
from lvlm_interp.patching.result import effect_and_gap

SITES = {
    "head": ("text.*.z",),
    "series": ("text.*.z",),
    "neuron": ("text.*.mlp_hidden",),
    "vision": ("vision.*.z",),
}
"""Sites whose units are the components of a kind; the projector's are directions."""

_STEPS = 5
_BATCH = 8


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of all components of a kind, and what they cost in forwards over one pair."""

    scores: Float[np.ndarray, " component"]
    forwards: float


@dataclass(frozen=True)
class Case:
    """One plant to be scored.

    Attributes:
        plant: The plant.
        pairs: Its trigger pairs.
        places: All components of its kind, the guilty ones among them.
    """

    plant: Planted
    pairs: list[ContrastPair]
    places: list[Place]

    @classmethod
    def of(cls, plant: Planted, n_pairs: int, seed: int = 0) -> Case:
        """With fresh pairs."""
        return cls(plant, plant.pairs(n_pairs, seed), components(plant))

    @property
    def guilty(self) -> np.ndarray:
        """Which of the components are guilty."""
        return np.array([place in self.plant.guilty for place in self.places])


def components(plant: Planted) -> list[Place]:
    """Every component of a plant's kind."""
    if plant.basis is not None:
        return [Place("projector.out", unit) for unit in range(len(plant.basis))]
    found = []
    for site in plant.model.sites(SITES[plant.kind]):
        size = plant.model.towers[site.tower]
        d_mlp = plant.model.config.text_config.intermediate_size
        count = d_mlp if site.name == "mlp_hidden" else size.n_heads
        found += [Place(str(site), unit) for unit in range(count)]
    return found


Localiser = Callable[[Case], Scored]


def _patching(case: Case) -> Scored:
    return _directions(case, "patch") or _table(case, activation_patch)


def _ablation(mode: str) -> Localiser:
    def localise(case: Case) -> Scored:
        name: DirectionMethod = "zero" if mode == "zero" else "mean"
        return _directions(case, name) or _table(case, ablate, mode=mode)

    return localise


def _attribution(gradient: Side, *, graddrop: bool = False) -> Localiser:
    """AtP, and AtP* with `graddrop`, by the gradient of one run.

    Where an answer has levelled off the gradient is small, so the two runs need not agree: both are
    scored. AtP*'s paper takes that of the clean run, which the other is patched into.
    """
    direction = "noise" if gradient == "clean" else "denoise"

    def localise(case: Case) -> Scored:
        name: DirectionMethod = "atp_star" if graddrop else "atp"
        found = _directions(case, name, gradient)
        return found or _table(case, attribution_patch, graddrop=graddrop, direction=direction)

    return localise


def _integrated(case: Case) -> Scored:
    path = Integration(steps=_STEPS, path=_path(case))
    return _directions(case, "ig") or _table(case, attribution_patch, integration=path)


def _path(case: Case) -> Literal["embed", "pixels"]:
    """Merged embeddings where they are the whole way, pixels for the vision tower."""
    return "pixels" if case.plant.kind == "vision" else "embed"


def _eap(method: str) -> Localiser:
    """Sum of |mean score| over the edges that leave a head."""

    def localise(case: Case) -> Scored:
        model = case.plant.model
        graph = Graph.of(model, vision=case.plant.kind == "vision")
        path = Integration(steps=_STEPS, path=_path(case)) if method == "eap_ig" else None
        found = score_edges(
            model,
            case.pairs,
            graph,
            method=method,  # pyright: ignore[reportArgumentType]
            direction="denoise",
            integration=path,
            batch_size=_BATCH,
            progress=False,
        )
        out = found.mean.abs().sum((1, 2))
        by_place = {
            (f"{sender.tower}.{sender.layer}.z", sender.head): float(score)
            for sender, score in zip(graph.senders, out, strict=True)
            if sender.head is not None
        }
        scores = np.array([by_place[place.site, place.unit] for place in case.places])
        return Scored(scores, found.n_forwards)

    return localise


def _direct(case: Case) -> Scored:
    """What a head adds to the logit difference itself: clean run minus corrupt run."""
    runs = []
    for run in ("clean", "corrupt"):
        found = direct_logit_attribution(
            case.plant.model, case.pairs, run=run, batch_size=_BATCH, progress=False
        )
        frame = found.table.frame
        runs.append(frame[frame["site"] == "z"].groupby(["layer", "head"])["value"].mean())
    change = runs[0] - runs[1]
    scores = [change.loc[(place.layer, place.unit)] for place in case.places]
    return Scored(np.array(scores, dtype=float), 2.0 * len(case.pairs))


def _magnitude(case: Case) -> Scored:
    """Root of the sum of squares of all weights that a component owns."""
    tail = Tail(case.plant.model)
    if case.plant.basis is not None:
        weight = tail.weights[f"{PROJECTOR}.linear_2.weight"]
        return Scored((case.plant.basis @ weight).norm(dim=1).numpy(), 0.0)
    scores = []
    for place in case.places:
        shares = [part.of(tail.weights[part.name]) for part in parts_of(tail, place)]
        scores.append(float(torch.stack([share.square().sum() for share in shares]).sum().sqrt()))
    return Scored(np.array(scores), 0.0)


def _near_median(case: Case) -> Scored:
    """How near every part's norm is to the median of its neighbours: no more than a rank of them.

    A plant whose parts were given that very norm is found by it, with no forward.
    """
    return _of_parts(
        case,
        lambda own, neighbours: (
            -float((own.norm() / neighbours.median()).log().abs().clamp_min(1e-12).log())
        ),
    )


def _stable_rank(case: Case) -> Scored:
    """How few directions a component's first part has: minus |W|_F^2 / |W|_2^2."""
    return _of_parts(case, lambda own, _: -_rank(own), parts=1)


def _rank(weight: Tensor) -> float:
    values = torch.linalg.svdvals(torch.atleast_2d(weight).float())
    return float(values.square().sum() / values[0].square())


def _of_parts(
    case: Case, measure: Callable[[Tensor, Tensor], float], *, parts: int | None = None
) -> Scored:
    """The least suspicious of a component's parts, by a measure of the weights alone."""
    tail, scores = Tail(case.plant.model), []
    for place in case.places:
        mine = parts_of(tail, place)[:parts]
        weights = [tail.weights[part.name] for part in mine]
        each = [
            measure(part.of(weight), part.neighbours(weight))
            for part, weight in zip(mine, weights, strict=True)
        ]
        scores.append(min(each))
    return Scored(np.array(scores), 0.0)


def _random(case: Case) -> Scored:
    rng = np.random.default_rng([case.plant.seed, len(case.places)])
    return Scored(rng.random(len(case.places)), 0.0)


METHODS: dict[str, Localiser] = {
    "activation patching": _patching,
    "zero ablation": _ablation("zero"),
    "mean ablation": _ablation("mean"),
    "AtP": _attribution("corrupt"),
    "AtP, clean gradient": _attribution("clean"),
    "AtP*": _attribution("clean", graddrop=True),
    "AtP*, corrupt gradient": _attribution("corrupt", graddrop=True),
    "integrated gradients": _integrated,
    "EAP": _eap("eap"),
    "EAP-IG": _eap("eap_ig"),
    "direct logit attribution": _direct,
    "weight magnitude": _magnitude,
    "nearest to the median norm": _near_median,
    "stable rank": _stable_rank,
    "random": _random,
}

_HEADS_ONLY = ("EAP", "EAP-IG")
_TEXT_HEADS_ONLY = ("direct logit attribution",)
_PARTS_ONLY = ("nearest to the median norm", "stable rank")


def methods_for(kind: str) -> list[str]:
    """Methods that give the components of a kind a score at all."""
    heads = kind in ("head", "series", "vision")
    text = kind in ("head", "series")
    return [
        name
        for name in METHODS
        if (heads or name not in (*_HEADS_ONLY, *_PARTS_ONLY))
        and (text or name not in _TEXT_HEADS_ONLY)
    ]


def _directions(case: Case, method: DirectionMethod, gradient: Side = "corrupt") -> Scored | None:
    basis = case.plant.basis
    if basis is None:
        return None
    scores, cost = score_directions(
        case.plant.model, case.pairs, basis, method, gradient=gradient, steps=_STEPS
    )
    return Scored(scores, cost)


def _table(case: Case, method: Callable[..., PatchResult], **options: object) -> Scored:
    """Mean effect of each component, read off the table of a patching method."""
    result = method(
        case.plant.model,
        case.pairs,
        SITES[case.plant.kind],
        "all",
        neurons="each",
        batch_size=_BATCH,
        progress=False,
        **options,
    )
    return Scored(effects(result, case.places), result.n_forwards)


def effects(result: PatchResult, places: Sequence[Place]) -> Float[np.ndarray, " component"]:
    """Mean over the pairs of the effect towards the clean run, or of the score without sign."""
    frame = result.table.frame
    effect, _ = effect_and_gap(frame)
    towards = effect.where(frame["direction"] == "denoise", -effect)
    value = towards if result.signed else frame["value"]
    unit = frame["head"].fillna(frame["neuron"]).astype(int)
    site = frame["tower"] + "." + frame["layer"].astype(str) + "." + frame["site"]
    means = pd.DataFrame({"site": site, "unit": unit, "value": value}).groupby(["site", "unit"])
    found = means["value"].mean()
    return np.array([found.loc[(place.site, place.unit)] for place in places], dtype=float)
