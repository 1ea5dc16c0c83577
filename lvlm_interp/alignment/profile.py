"""`profile`: how two positions represent the same examples, every layer against every layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats as scipy_stats
from torch import Tensor

from lvlm_interp.activations.base import Activations
from lvlm_interp.activations.forward import OWN_COLUMNS
from lvlm_interp.alignment.bundles import Bundler, bundler_of, over_blocks
from lvlm_interp.alignment.kernels import cka
from lvlm_interp.alignment.null import class_nulls, judge, permutations
from lvlm_interp.alignment.shifts import FAST, shifted_pairs
from lvlm_interp.alignment.sides import Side, sides_of
from lvlm_interp.errors import UsageError
from lvlm_interp.results import Result, ResultTable

__all__ = ["Profile", "profile"]

Values = Float[np.ndarray, "x y"]
Nulls = Float[np.ndarray, "permutation x y"]
Classes = str | Sequence[str] | Mapping[str, Any] | None

MOST_LABELS = 4
"""Labels whose classes make a null by default, of those that allow one."""

_SKIPPED = tuple(name for name in OWN_COLUMNS if name != "level")
_TEXTS = ("caption", "truth", "planted")


@dataclass(frozen=True, repr=False)
class Profile(Result):
    """Layer against layer.

    Attributes:
        table: One row per pair of layers and metric: `value` with `low, high`, `threshold, score,
            p` of the free null and its mean `null`; `p_within` is the largest p inside the classes
            of a label, `within` that label. The other side is in `other_site, other_layer,
            other_head, other_position`.
        best: One row per metric: the best pair of layers, judged against the best of every
            permutation.
        nulls: One row per pair, metric and label whose classes a null was permuted inside.
        n: Examples.
    """

    best: pd.DataFrame
    nulls: pd.DataFrame
    n: int

    def matrix(self, metric: str = "mutual_knn", column: str = "value") -> pd.DataFrame:
        """One metric as a frame of sites against sites.

        Raises:
            UsageError: The metric was not measured.
        """
        frame = self.table.frame
        part = frame[frame["metric"] == metric]
        if part.empty:
            known = ", ".join(frame["metric"].unique())
            raise UsageError(f"no metric {metric!r} in this profile; it has {known}")
        return part.pivot(index="site", columns="other_site", values=column).reindex(
            index=part["site"].unique(), columns=part["other_site"].unique()
        )

    @property
    def sentence(self) -> str:
        """What was found, with its interval, in words that the numbers allow."""
        return " ".join(_words(dict(row), self.n) for _, row in self.best.iterrows())


def profile(
    x: Activations,
    between: tuple[str, str] = ("image_mean", "caption"),
    *,
    y: Activations | None = None,
    sites: str | Sequence[str] = "*",
    metrics: Sequence[str] = FAST,
    k: int = 10,
    n_permutations: int = 200,
    seed: int = 0,
    classes: Classes = "labels",
    n_subsamples: int = 40,
    group: str = "group",
    heads: bool = False,
) -> Profile:
    """Alignment of two positions over all pairs of layers, calibrated, with intervals.

    Args:
        x: Activations in memory or a store of any size; one layer is read at a time.
        between: A position of x and a position of y.
        y: Activations of the other side, joined by example id; None takes x.
        sites: Names or globs.
        metrics: Names of `METRICS`; mutual kNN and debiased CKA come by the fast path.
        k: Neighbours.
        n_permutations: Of each null; the same permutations move all layers.
        seed: Of permutations and subsamples.
        classes: Labels to permute inside of as well: `"labels"` for those that allow it (see
            `class_nulls`), of more than four the four that both sides depend on most; names of
            labels; a mapping from names to one label per example of x; or None.
        n_subsamples: Halves of the groups for the intervals (a delete-half jackknife, Shao and Wu
            1989: copies of rows, as a bootstrap makes them, would be each other's neighbours); 0
            gives none.
        group: Label whose equal values are subsampled together, such as the scene.
        heads: Whether each head of a site with heads is a layer of its own.

    Raises:
        UsageError: A position or label that is not here, an unknown metric, too few examples.
    """
    left, right = sides_of(x, x if y is None else y, between, sites=sites, heads=heads)
    labels = x.labels.iloc[left.rows].reset_index(drop=True)
    halves = _halves(labels, group, n_subsamples, seed)
    free = _free(left, right, metrics, k, n_permutations, seed)
    pair = np.unravel_index(int(np.argmax(free[metrics[0]][0])), (len(left), len(right)))
    features = left.read(int(pair[0])), right.read(int(pair[1]))
    inside = _inside(classes, labels, left.rows, features)
    rows, nulls, best = [], [], []
    for metric in metrics:
        bundler = bundler_of(metric, k)
        raw, null = free[metric]
        spread = _spread(bundler, left, right, halves, raw)
        within = {
            name: _null(bundler, left, right, permutations(len(labels), n_permutations, seed, each))
            for name, each in inside.items()
        }
        judged = _judged(bundler, raw, null, within)
        rows += _rows(left, right, metric, raw, spread[0], judged)
        nulls += _null_rows(left, right, metric, judged)
        best.append(_best(left, right, metric, bundler, raw, null, within, spread[1]))
    frame = pd.DataFrame(rows).astype({"other_layer": "Int64", "other_head": "Int64"})
    return Profile(
        ResultTable(frame, x.provenance | {"seed": seed, "n_permutations": n_permutations, "k": k}),
        pd.DataFrame(best),
        pd.DataFrame(nulls, columns=["site", "other_site", "metric", "label", "threshold", "p"]),
        len(labels),
    )


def _inside(
    classes: Classes,
    labels: pd.DataFrame,
    rows: np.ndarray,
    features: tuple[Float[Tensor, "n dx"], Float[Tensor, "n dy"]],
) -> dict[str, Any]:
    if classes is None:
        return {}
    if isinstance(classes, Mapping):
        return {name: np.asarray(each, dtype=object)[rows] for name, each in classes.items()}
    if classes == "labels":
        return _telling(class_nulls(labels, (*_SKIPPED, *_TEXTS)), features)
    names = [classes] if isinstance(classes, str) else list(classes)
    for name in names:
        if name not in labels:
            raise UsageError(f"there is no label {name!r} here: {', '.join(labels.columns)}")
    return {name: labels[name] for name in names}


def _telling(
    found: Mapping[str, pd.Series], features: tuple[Float[Tensor, "n dx"], Float[Tensor, "n dy"]]
) -> dict[str, pd.Series]:
    """The labels that both sides depend on most: only these can carry an agreement."""
    if len(found) <= MOST_LABELS:
        return dict(found)
    depends = {}
    for name, column in found.items():
        marks = pd.get_dummies(column.astype(str)).to_numpy(dtype=float)
        depends[name] = min(cka(side, marks) for side in features)
    kept = sorted(depends, key=lambda name: -depends[name])[:MOST_LABELS]
    return {name: column for name, column in found.items() if name in kept}


def _halves(labels: pd.DataFrame, group: str, count: int, seed: int) -> list[np.ndarray]:
    """Rows of random halves of the groups."""
    if group in labels and labels[group].notna().all():
        codes = pd.factorize(labels[group])[0]
    else:
        codes = np.arange(len(labels))
    n_groups = int(codes.max()) + 1
    if count < 2 or n_groups < 8:
        return []
    rng = np.random.default_rng([seed, 1])
    drawn = (rng.permutation(n_groups)[: n_groups // 2] for _ in range(count))
    return [np.flatnonzero(np.isin(codes, kept)) for kept in drawn]


def _free(
    left: Side, right: Side, metrics: Sequence[str], k: int, n_permutations: int, seed: int
) -> dict[str, tuple[Values, Nulls]]:
    """Observed values and the free null of each metric."""
    n, sizes = len(left.rows), (len(left), len(right))
    found: dict[str, tuple[Values, Nulls]] = {}
    fast = [metric for metric in metrics if metric in FAST]
    if fast:
        options = {"k": k, "n_permutations": n_permutations, "seed": seed, "metrics": fast}
        many = shifted_pairs(left.read, right.read, n, sizes=sizes, **options)
        found = {name: (each.raw, each.null) for name, each in many.items()}
    for metric in metrics:
        if metric not in found:
            bundler = bundler_of(metric, k)
            raw = over_blocks(bundler, left.read, right.read, sizes, bundler.table, n=n)
            orders = permutations(n, n_permutations, seed)
            found[metric] = raw, _null(bundler, left, right, orders)
    return found


def _null(
    bundler: Bundler, left: Side, right: Side, orders: Int[np.ndarray, "permutation n"]
) -> Nulls:
    def moved(ahead: Any, behind: Any) -> np.ndarray:
        return np.stack([bundler.table(ahead, bundler.moved(behind, order)) for order in orders])

    sizes = (len(left), len(right))
    return over_blocks(bundler, left.read, right.read, sizes, moved, n=len(left.rows))


def _spread(
    bundler: Bundler, left: Side, right: Side, halves: Sequence[np.ndarray], raw: Values
) -> tuple[Values, float]:
    """Standard errors of each pair, and of the best pair, from values on half of the groups."""
    if not halves:
        return np.full(raw.shape, math.nan), math.nan
    sizes, found = (len(left), len(right)), []
    for keep in halves:
        x, y = left.only(keep), right.only(keep)
        found.append(over_blocks(bundler, x.read, y.read, sizes, bundler.table, n=len(keep)))
    values = np.stack(found)
    # Delete-d jackknife: variance times kept / deleted, which is 1 for halves.
    place = np.unravel_index(int(np.argmax(bundler.sign * raw)), raw.shape)
    each = values.std(axis=0, ddof=1)
    return each, float(each[place])


@dataclass(frozen=True)
class _Judged:
    free: Float[np.ndarray, "x y three"]
    within: Mapping[str, Float[np.ndarray, "x y three"]]
    null: Values


def _judged(bundler: Bundler, raw: Values, null: Nulls, within: Mapping[str, Nulls]) -> _Judged:
    def all_pairs(drawn: Nulls) -> np.ndarray:
        out = np.empty((*raw.shape, 3))
        for place in np.ndindex(raw.shape):
            out[place] = judge(
                float(raw[place]),
                drawn[(slice(None), *place)],
                best=bundler.best,
                sign=bundler.sign,
            )
        return out

    return _Judged(
        all_pairs(null), {name: all_pairs(each) for name, each in within.items()}, null.mean(axis=0)
    )


def _rows(
    left: Side, right: Side, metric: str, raw: Values, spread: Values, judged: _Judged
) -> list[dict[str, Any]]:
    rows = []
    z = float(scipy_stats.norm.ppf(0.975))
    for i, j in np.ndindex(raw.shape):
        score, threshold, p = judged.free[i, j]
        inside = {name: float(each[i, j, 2]) for name, each in judged.within.items()}
        label = max(inside, key=lambda name: inside[name], default=None)
        rows.append(
            _address(left, i, "")
            | _address(right, j, "other_")
            | {
                "metric": metric,
                "value": raw[i, j],
                "unit": "similarity",
                "low": raw[i, j] - z * spread[i, j],
                "high": raw[i, j] + z * spread[i, j],
                "null": judged.null[i, j],
                "threshold": threshold,
                "score": score,
                "p": p,
                "p_within": math.nan if label is None else inside[label],
                "within": label,
                "n": len(left.rows),
            }
        )
    return rows


def _address(side: Side, index: int, prefix: str) -> dict[str, Any]:
    site, head = side.places[index]
    own = {"site": str(site), "layer": site.layer, "head": head, "position": side.position}
    return {f"{prefix}{name}": value for name, value in own.items()} | (
        {} if prefix else {"tower": site.tower}
    )


def _null_rows(left: Side, right: Side, metric: str, judged: _Judged) -> list[dict[str, Any]]:
    return [
        {
            "site": _name(left, i),
            "other_site": _name(right, j),
            "metric": metric,
            "label": label,
            "threshold": values[i, j, 1],
            "p": values[i, j, 2],
        }
        for label, values in judged.within.items()
        for i, j in np.ndindex(values.shape[:2])
    ]


def _name(side: Side, index: int) -> str:
    site, head = side.places[index]
    return str(site) if head is None else f"{site}.{head}"


def _best(
    left: Side,
    right: Side,
    metric: str,
    bundler: Bundler,
    raw: Values,
    null: Nulls,
    within: Mapping[str, Nulls],
    spread: float,
) -> dict[str, Any]:
    """The best pair of layers against the best of each permutation."""
    i, j = np.unravel_index(int(np.argmax(bundler.sign * raw)), raw.shape)
    z = float(scipy_stats.norm.ppf(0.975))
    value, options = float(raw[i, j]), {"best": bundler.best, "sign": bundler.sign}

    def extreme(drawn: Nulls) -> np.ndarray:
        return bundler.sign * (bundler.sign * drawn).max(axis=(1, 2))

    score, threshold, p = judge(value, extreme(null), **options)
    inside = {name: judge(value, extreme(each), **options) for name, each in within.items()}
    label = max(inside, key=lambda name: inside[name][2], default=None)
    return {
        "metric": metric,
        "site": _name(left, int(i)),
        "other_site": _name(right, int(j)),
        "position": left.position,
        "other_position": right.position,
        "value": value,
        "low": value - z * spread,
        "high": value + z * spread,
        "threshold": threshold,
        "score": score,
        "p": p,
        "within": label,
        "threshold_within": math.nan if label is None else inside[label][1],
        "p_within": math.nan if label is None else inside[label][2],
    }


def _words(row: Mapping[str, Any], n: int) -> str:
    interval = "" if math.isnan(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
    found = (
        f"{row['metric']} of {row['position']} and {row['other_position']} over {n} examples is at "
        f"most {row['value']:.2f}{interval}, at {row['site']} and {row['other_site']}; the best "
        f"of permuted rows passes {row['threshold']:.2f} in 5% (p {row['p']:.3f})"
    )
    if row["p"] > 0.05:
        return f"{found}: no alignment is shown."
    if row["within"] is None:
        return f"{found}: they are aligned; no label allowed a null inside classes."
    tail = f"inside the classes of {row['within']} p is {row['p_within']:.3f}"
    if row["p_within"] > 0.05:
        return f"{found}, but {tail}: what they share may be no more than that class."
    return f"{found}, and {tail} at most: they are aligned beyond classes."
