"""Directions that probes found, used as edits: is what can be read there also used by the model?

A probe shows that something is there; only an intervention shows that the model uses it. Erasing or
adding the probe's direction is compared with random directions of the same norm and of the
covariance of the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats as scipy_stats
from sklearn import base
from torch import Tensor
from tqdm import tqdm

from lvlm_interp.data.examples import Example
from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.positions import tower_positions
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.sites import Site
from lvlm_interp.stats import Estimate, cluster_bootstrap, difference

__all__ = ["CausalEffect", "Direction", "causal_effect", "fit_direction"]

Edit = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction at a site.

    Attributes:
        site, position, head: Where it was read; an edit acts on that head alone.
        vector: Of unit length, towards the second class.
        mean: Mean activation of the examples it was fitted on.
        gap: Difference of the class means along the vector, in the units of the activations.
        spread: Activations it was fitted on, less their mean, from which random directions are
            mixed; None draws them from the sphere.
    """

    site: str
    position: str
    head: int | None
    vector: Float[np.ndarray, " feature"]
    mean: Float[np.ndarray, " feature"]
    gap: float
    spread: Float[np.ndarray, "row feature"] | None = None

    def erase(self, at: Tensor | None = None) -> Edit:
        """An edit that sets the component along the vector to that of the mean activation.

        Args:
            at: Positions to act on, bool of shape `batch pos`; all by default.
        """
        vector, mean = torch.from_numpy(self.vector), torch.from_numpy(self.mean)

        def change(value: Tensor) -> Tensor:
            along = vector.to(value)
            return value - ((value - mean.to(value)) @ along)[..., None] * along

        return self._edit(change, at)

    def add(self, scale: float = 1.0, at: Tensor | None = None) -> Edit:
        """An edit that moves the activations along the vector by `scale` gaps between the classes.

        Args:
            scale: 1 moves the mean of the first class to that of the second; negative moves back.
            at: Positions to act on, bool of shape `batch pos`; all by default.
        """
        step = torch.from_numpy(self.vector * self.gap * scale)
        return self._edit(lambda value: value + step.to(value), at)

    def random(self, rng: np.random.Generator) -> Direction:
        """A random direction with everything else the same.

        Activations vary along few directions, and any probe, also of meaningless labels, finds one
        of these; a direction of the sphere is hardly ever among them. So rows are mixed with normal
        weights: the directions have the covariance of the activations, as the difference of means
        of two random halves has.
        """
        if self.spread is None:
            drawn = rng.standard_normal(len(self.vector))
        else:
            drawn = rng.standard_normal(len(self.spread)) @ self.spread
        drawn = drawn.astype(self.vector.dtype)
        return replace(self, vector=drawn / np.linalg.norm(drawn))

    def _edit(self, change: Callable[[Tensor], Tensor], at: Tensor | None) -> Edit:
        has_heads = Site.parse(self.site).has_heads

        def edit(value: Tensor) -> Tensor:
            new = value
            if has_heads and self.head is None:
                new = change(value.flatten(2)).view_as(value)
            elif has_heads:
                new = value.clone()
                new[:, :, self.head] = change(value[:, :, self.head])
            else:
                new = change(value)
            if at is None:
                return new
            mask = at.to(value.device).view(*at.shape, *[1] * (value.dim() - 2))
            return torch.where(mask, new, value)

        return edit


def fit_direction(
    site: str,
    position: str,
    head: int | None,
    X: Float[np.ndarray, "row feature"],
    codes: Int[np.ndarray, " row"],
    estimator: Any,
    settings: Mapping[str, Any],
) -> Direction:
    """The direction of a linear probe fitted on all rows; codes are 0 and 1.

    Raises:
        UsageError: The probe has no direction.
    """
    copy: Any = base.clone(estimator)
    fitted = copy.set_params(**settings).fit(X, codes)
    if not hasattr(fitted, "direction_"):
        raise UsageError(f"{type(fitted).__name__} has no direction: take a linear probe.")
    vector = np.asarray(fitted.direction_, dtype=np.float32)
    gap = float((X[codes == 1].mean(axis=0) - X[codes == 0].mean(axis=0)) @ vector)
    mean = X.mean(axis=0, dtype=np.float32)
    return Direction(site, position, head, vector, mean, gap, (X - mean).astype(np.float32))


@dataclass(frozen=True, repr=False)
class CausalEffect(Result):
    """What acting on a direction does to the answers.

    Attributes:
        table: One row per example and run: metrics `logit_diff` (answer minus foil, at the last
            position) and `right`, with the columns `run` (`before`, `probe`, `random`) and `draw`.
        effect: Mean change of the logit difference by the probe's direction.
        random: Mean change by each random direction.
        beyond_random: `effect` minus the mean of the random directions, paired by example; the
            interval holds the spread between random directions, of which the probe's could be one.
    """

    effect: Estimate
    random: tuple[float, ...]
    beyond_random: Estimate


def causal_effect(
    model: LVLM,
    data: Iterable[Example],
    direction: Direction,
    *,
    mode: Literal["erase", "add"] = "erase",
    scale: float = 1.0,
    everywhere: bool = False,
    n_random: int = 20,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> CausalEffect:
    """Act on a direction and measure the answers, beside random directions of the same norm.

    Args:
        model: The model.
        data: Examples with answer and foil.
        direction: From `ProbeSweep.direction`.
        mode: `erase` the direction, or `add` it.
        scale: Of `add`, in gaps between the classes.
        everywhere: Act on all positions; otherwise on those of the direction's role alone.
        n_random: Random directions.
        batch_size: Examples per forward.
        seed: Of the random directions.
        progress: Show a bar.

    Raises:
        InputError: An example lacks answer, foil or role.
    """
    examples = list(data)
    for example in examples:
        if example.answer is None or example.foil is None:
            raise InputError(f"Example {example.id!r} needs an answer and a foil to be compared.")
    rng = np.random.default_rng(seed)
    runs: list[tuple[str, int | None, Direction | None]] = [
        ("before", None, None),
        ("probe", None, direction),
        *(("random", draw, direction.random(rng)) for draw in range(n_random)),
    ]
    frames: list[dict[str, Any]] = []
    starts = range(0, len(examples), batch_size)
    for start in tqdm(starts, desc="causal use", unit="batch", disable=not progress):
        part = examples[start : start + batch_size]
        inputs = model.prepare(part)
        at = None if everywhere else role_mask(inputs, direction)
        for run, draw, each in runs:
            edits: dict[str | Site, Edit] = {}
            if each is not None:
                edits = {each.site: each.erase(at) if mode == "erase" else each.add(scale, at)}
            with model.edit(edits):
                logits = model.last_logits(inputs).float().cpu()
            frames += _answers(model, part, logits, run, draw, direction)
    return _effect(ResultTable(frames), seed)


def role_mask(inputs: Inputs, direction: Direction) -> Tensor:
    """The positions of a direction's role in a batch, bool of shape `batch pos` at its site.

    Raises:
        InputError: An example lacks the role.
    """
    tower = Site.parse(direction.site).tower
    role = direction.position
    base_role = "image_all" if role == "image_mean" else role
    n = inputs.n_positions(tower)
    mask = torch.zeros((inputs.batch_size, n), dtype=torch.bool)
    for row, tokens in enumerate(inputs.tokens):
        boxes = getattr(inputs.examples[row], "boxes", None)
        real = inputs.real(row, tower, n)
        mask[row, tower_positions(tokens, tower, base_role, boxes, real)] = True
    return mask


def _answers(
    model: LVLM,
    examples: Sequence[Example],
    logits: Tensor,
    run: str,
    draw: int | None,
    direction: Direction,
) -> list[dict[str, Any]]:
    rows = []
    for index, example in enumerate(examples):
        answer, foil = (model.answer_id(str(word)) for word in (example.answer, example.foil))
        values = {
            "logit_diff": float(logits[index, answer] - logits[index, foil]),
            "right": float(int(logits[index].argmax()) == answer),
        }
        rows += [
            {
                "example": example.id,
                "group": example.group or example.id,
                "site": direction.site,
                "head": direction.head,
                "position": direction.position,
                "metric": metric,
                "value": value,
                "unit": "logits" if metric == "logit_diff" else None,
                "run": run,
                "draw": draw,
            }
            for metric, value in values.items()
        ]
    return rows


def _effect(table: ResultTable, seed: int) -> CausalEffect:
    frame = table.frame[table.frame["metric"] == "logit_diff"]
    parts = {str(run): part for run, part in frame.groupby("run", sort=False)}
    before = parts["before"].set_index("example")["value"]
    probe = parts["probe"].set_index("example")["value"].reindex(before.index) - before
    groups = parts["before"]["group"].to_numpy()
    effect = cluster_bootstrap(probe.to_numpy(), groups, seed=seed)
    if "random" not in parts:
        return CausalEffect(table, effect, (), Estimate(np.nan, np.nan, np.nan, 0))
    wide = parts["random"].pivot(index="example", columns="draw", values="value")
    changes = wide.reindex(before.index).sub(before, axis=0)
    beyond = difference(probe.to_numpy(), changes.mean(axis=1).to_numpy(), groups, seed=seed)
    draws = changes.mean().to_numpy()
    return CausalEffect(table, effect, tuple(map(float, draws)), _with_spread(beyond, draws))


def _with_spread(found: Estimate, draws: np.ndarray) -> Estimate:
    """The interval widened by that of one more draw: Student's, sd * sqrt(1 + 1 / n)."""
    n = len(draws)
    if n < 2:
        return found
    more = float(scipy_stats.t.ppf(0.975, n - 1) * draws.std(ddof=1) * (1 + 1 / n) ** 0.5)
    low = found.estimate - np.hypot(found.estimate - found.low, more)
    high = found.estimate + np.hypot(found.high - found.estimate, more)
    return Estimate(found.estimate, float(low), float(high), found.n)
