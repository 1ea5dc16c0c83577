"""One model on some examples: representation and behaviour side by side.

What `stages` and `compare` do for each model. Representation is measured layer by layer (a layer of
the image against the same layer of the description, both in one space), behaviour as the share of
right answers, and what the language model can do alone as the same with the description in place of
the image.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats
from torch import Tensor

from lvlm_interp.activations.base import Activations
from lvlm_interp.activations.memory import collect
from lvlm_interp.activations.roles import CAPTION
from lvlm_interp.alignment.bundles import bundler_of
from lvlm_interp.alignment.null import judge, permutations
from lvlm_interp.alignment.one_space import cosine
from lvlm_interp.alignment.shifts import FAST, shifted_pairs
from lvlm_interp.alignment.sides import Side, sides_of
from lvlm_interp.data.examples import Example
from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.stats import rate

__all__ = ["ALL", "Setting", "measured"]

ALL = "all"
"""The condition that holds every example."""

_LEAST_OF_ALL = 8
"""Examples without which nothing is measured at all."""

_COSINES = ("raw", "centred", "retrieval", "wrong")


@dataclass(frozen=True)
class Setting:
    """What is measured of each model.

    Attributes:
        sites: Sites of the language model, names or globs.
        between: The two positions.
        condition: Label that tells conditions apart, such as `trigger`; None for one condition.
        metrics: Calibrated metrics, by name.
        k: Neighbours.
        n_permutations: Of each null.
        n_subsamples: Halves of the examples for the intervals.
        classes: Label inside whose classes a null is permuted too; None for the free one alone.
        heads: Whether each head of a site that has heads is measured.
        least: Examples that a condition needs for its similarities; all examples together need 8.
        batch_size: Examples per forward.
        seed: Of permutations and subsamples.
    """

    sites: Sequence[str] = ("text.embed", "text.*.resid_post", "text.final_norm")
    between: tuple[str, str] = ("image_mean", CAPTION)
    condition: str | None = None
    metrics: Sequence[str] = ("cka", "mutual_knn")
    k: int = 10
    n_permutations: int = 200
    n_subsamples: int = 40
    classes: str | None = "n_objects"
    heads: bool = False
    least: int = 40
    batch_size: int = 50
    seed: int = 0
    _z: float = field(default=float(scipy_stats.norm.ppf(0.975)), repr=False)


def measured(model: LVLM, examples: Sequence[Example], setting: Setting) -> list[dict[str, Any]]:
    """Rows of representation and behaviour of one model.

    Raises:
        InputError: An example has no description.
        UsageError: A condition that is no label of the examples.
    """
    start = time.perf_counter()
    data = collect(
        model,
        examples,
        setting.sites,
        list(setting.between),
        batch_size=setting.batch_size,
        progress=False,
    )
    seconds = time.perf_counter() - start
    rows = list(_behaviour(data.labels, setting, "accuracy"))
    rows += list(_behaviour(_alone(model, examples, setting), setting, "text_accuracy"))
    rows += list(_representation(data, setting))
    cost = {"metric": "cost", "value": seconds / len(examples), "unit": "s/example", "n": len(data)}
    size = sum(parameter.numel() for parameter in model.hf.parameters())
    return [*rows, cost, {"metric": "parameters", "value": float(size), "unit": "count"}]


def conditions(labels: pd.DataFrame, name: str | None) -> Iterator[tuple[str, np.ndarray]]:
    """Names of conditions and which examples each holds; all of them first.

    Raises:
        UsageError: There is no such label.
    """
    yield ALL, np.ones(len(labels), dtype=bool)
    if name is None:
        return
    if name not in labels:
        raise UsageError(
            f"there is no label {name!r} to tell conditions: {', '.join(map(str, labels))}"
        )
    for value in sorted(labels[name].dropna().unique(), key=str):
        yield str(value), (labels[name] == value).to_numpy(dtype=bool)


def _alone(model: LVLM, examples: Sequence[Example], setting: Setting) -> pd.DataFrame:
    """Labels and answers where the description stands in place of the image."""
    texts = [
        replace(
            example,
            image=None,
            boxes={},
            prompt=f"{example.labels[CAPTION]} {example.prompt}",
        )
        for example in examples
    ]
    found = collect(
        model, texts, "text.embed", "last", batch_size=setting.batch_size, progress=False
    )
    return found.labels


def _behaviour(labels: pd.DataFrame, setting: Setting, metric: str) -> Iterator[dict[str, Any]]:
    """Share of right answers by condition, and by level where examples have one."""
    known = labels[labels["wrong"].notna()]
    for condition, inside in conditions(known, setting.condition):
        part = known[inside]
        levels = [(None, part)]
        if part["level"].nunique() > 1:
            levels += [(str(level), each) for level, each in part.groupby("level")]
        for level, each in levels:
            if not len(each):
                continue
            groups = each["group"].where(each["group"].notna(), each["example"])
            right = rate(~each["wrong"].to_numpy(dtype=bool), groups.to_numpy())
            yield {
                "metric": metric,
                "condition": condition,
                "level": level,
                "value": right.estimate,
                "low": right.low,
                "high": right.high,
                "unit": "share",
                "n": right.n,
            }


def _representation(data: Activations, setting: Setting) -> Iterator[dict[str, Any]]:
    left, right = sides_of(data, data, setting.between, heads=setting.heads)
    # One scene asked twice is one scene: its copies would be each other's neighbours.
    labels = data.labels.iloc[left.rows].reset_index(drop=True)
    names = labels["group"].where(labels["group"].notna(), labels["example"])
    for condition, inside in conditions(labels, setting.condition):
        keep = np.flatnonzero(inside)
        keep = keep[~names.iloc[keep].duplicated().to_numpy()]
        if len(keep) < (_LEAST_OF_ALL if condition == ALL else setting.least):
            continue
        part = labels.iloc[keep]
        classes = part[setting.classes] if setting.classes in part else None
        for row in _layers(left.only(keep), right.only(keep), setting, classes):
            yield row | {"condition": condition, "n": len(keep)}


def _layers(
    left: Side, right: Side, setting: Setting, classes: pd.Series | None
) -> Iterator[dict[str, Any]]:
    n, rng = len(left.rows), np.random.default_rng([setting.seed, 2])
    orders = {"p": permutations(n, setting.n_permutations, setting.seed)}
    if classes is not None and classes.duplicated().any():
        orders["p_within"] = permutations(n, setting.n_permutations, setting.seed, classes)
    halves = [rng.permutation(n)[: n // 2] for _ in range(setting.n_subsamples)]
    for index, place in enumerate(left.places):
        if place not in right.places:
            continue
        x, y = left.read(index), right.read(right.places.index(place))
        own = {
            "site": str(place[0]),
            "layer": place[0].layer,
            "head": place[1],
            "unit": "similarity",
        }
        for metric in setting.metrics:
            yield own | {"metric": metric} | _calibrated(metric, x, y, orders, halves, setting)
        for kind in _COSINES:
            value = cosine(x, y, kind=kind)
            yield own | {"metric": "cosine" if kind == "raw" else f"cosine_{kind}", "value": value}


def _calibrated(
    metric: str,
    x: Tensor,
    y: Tensor,
    orders: dict[str, np.ndarray],
    halves: Sequence[np.ndarray],
    setting: Setting,
) -> dict[str, Any]:
    bundler = bundler_of(metric, min(setting.k, len(x) - 1))
    ahead, behind = bundler.bundle([x]), bundler.bundle([y])
    value = float(bundler.table(ahead, behind)[0, 0])
    found: dict[str, Any] = {"value": value, "low": math.nan, "high": math.nan}
    for name, drawn in orders.items():
        if name == "p" and metric in FAST:
            fast = shifted_pairs(
                lambda _: x,
                lambda _: y,
                len(x),
                sizes=(1, 1),
                k=min(setting.k, len(x) - 1),
                n_permutations=len(drawn),
                seed=setting.seed,
                metrics=(metric,),
            )
            null = fast[metric].null[:, 0, 0]
        else:
            null = np.array(
                [bundler.table(ahead, bundler.moved(behind, order))[0, 0] for order in drawn]
            )
        score, threshold, p = judge(value, null, best=bundler.best, sign=bundler.sign)
        suffix = name.removeprefix("p")
        found |= {name: p, f"score{suffix}": score, f"threshold{suffix}": threshold}
        found[f"null{suffix}"] = float(null.mean())
    if len(halves) > 1:
        drawn = [
            bundler.table(bundler.bundle([x[keep]]), bundler.bundle([y[keep]]))[0, 0]
            for keep in halves
        ]
        spread = setting._z * float(np.std(drawn, ddof=1))
        found |= {"low": value - spread, "high": value + spread}
    return found
