"""Is a wrong answer preceded by lower alignment? Per example, and honest where it says nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.activations.base import Activations
from lvlm_interp.alignment.arrays import centred, unit
from lvlm_interp.alignment.measures import centred_kernel
from lvlm_interp.alignment.neighbours import overlaps
from lvlm_interp.alignment.sides import sides_of
from lvlm_interp.errors import UsageError
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.stats import area, auroc, benjamini_hochberg

__all__ = ["PER_EXAMPLE", "Beside", "beside_behaviour", "per_example"]

PER_EXAMPLE = ("overlap", "cosine", "cosine_centred", "rank", "cka_share")
"""What `per_example` measures; `cosine` and `rank` need both sides in one space."""

CONFIDENCE = "output_probability"
_ALPHA = 0.05


def per_example(
    x: Activations,
    between: tuple[str, str] = ("image_mean", "caption"),
    *,
    y: Activations | None = None,
    sites: str | Sequence[str] = "*",
    k: int = 10,
) -> ResultTable:
    """Alignment of each example, the same layer on both sides.

    Args:
        x: Activations with both positions. To look at one object, take its tokens (`object`) on one
            side, and give each example a `caption` that describes that object alone.
        between: The two positions.
        y: Activations of the other side; None takes x.
        sites: Names or globs.
        k: Neighbours.

    Returns:
        Rows of `example, group, site, layer, position, metric, value`, larger where better aligned:
        `overlap` (share of k neighbours in common), `cosine` (raw), `cosine_centred`, `rank` (share
        of the other examples whose own y is further from this x than this y is, by centred cosine)
        and `cka_share` (n times what the example's row adds to debiased CKA).

    Raises:
        UsageError: As `profile`.
    """
    left, right = sides_of(x, x if y is None else y, between, sites=sites)
    labels = x.labels.iloc[left.rows]
    frames = []
    for index, place in enumerate(left.places):
        if place not in right.places:
            continue
        values = _values(left.read(index), right.read(right.places.index(place)), k)
        for metric, column in values.items():
            frames.append(
                pd.DataFrame(
                    {
                        "example": labels["example"].to_numpy(),
                        "group": labels["group"].to_numpy(),
                        "tower": place[0].tower,
                        "site": str(place[0]),
                        "layer": place[0].layer,
                        "position": left.position,
                        "metric": metric,
                        "value": column,
                        "unit": "similarity",
                    }
                )
            )
    if not frames:
        raise UsageError(f"no site has both {between[0]!r} and {between[1]!r}")
    return ResultTable(pd.concat(frames, ignore_index=True), x.provenance)


def _values(x: Tensor, y: Tensor, k: int) -> dict[str, Float[np.ndarray, " n"]]:
    left, right = x.double().numpy(), y.double().numpy()
    found = {"overlap": overlaps(left, right, min(k, len(left) - 1))}
    if left.shape[1] == right.shape[1]:
        found["cosine"] = (unit(left) * unit(right)).sum(axis=1)
        similar = unit(centred(left)) @ unit(centred(right)).T
        own = np.diag(similar)
        found["cosine_centred"] = own
        found["rank"] = (similar < own[:, None]).sum(axis=1) / (len(own) - 1)
    found["cka_share"] = len(left) * (centred_kernel(left) * centred_kernel(right)).sum(axis=1)
    return found


@dataclass(frozen=True, repr=False)
class Beside(Result):
    """How well low alignment tells wrong answers from right ones.

    Attributes:
        table: One row per feature and site: `value` is the AUROC, P(the feature is lower where the
            answer is wrong), with `low, high`; `shuffled` its mean over shuffled answers, `p` from
            these (two-sided), `p_adjusted` over all features (Benjamini and Hochberg), `n` and
            `n_wrong`. `baseline` marks the output probability.
    """

    @property
    def sentence(self) -> str:
        """What alignment says about wrong answers, and whether it says anything."""
        frame = self.table.frame
        if not len(frame) or frame["value"].isna().all():
            return "All answers are of one kind, so nothing can be said about wrong ones."
        own = frame[~frame["baseline"]]
        shown = own[own["p_adjusted"] <= _ALPHA]
        pool = shown if len(shown) else own
        strength = (shown["value"] - 0.5).abs() if len(shown) else -own["p_adjusted"]
        best = pool.iloc[int(np.argmax(strength.to_numpy()))]
        where = f"{best['metric']} at {best['site']}"
        numbers = f"AUROC {best['value']:.2f} [{best['low']:.2f}, {best['high']:.2f}]"
        if not (best["p_adjusted"] <= _ALPHA and not best["low"] <= 0.5 <= best["high"]):
            text = (
                f"Alignment says nothing shown about wrong answers ({best['n_wrong']} of "
                f"{best['n']}): its best feature, {where}, has {numbers}, adjusted p "
                f"{best['p_adjusted']:.3f}."
            )
        else:
            way = "lower" if best["value"] > 0.5 else "higher"
            text = (
                f"Wrong answers ({best['n_wrong']} of {best['n']}) come with {way} alignment: "
                f"{where} has {numbers}, adjusted p {best['p_adjusted']:.3f}."
            )
        sure = frame[frame["baseline"]]
        if len(sure):
            row = sure.iloc[0]
            text += (
                f" The output probability has {row['value']:.2f} "
                f"[{row['low']:.2f}, {row['high']:.2f}]."
            )
        return text


def beside_behaviour(
    features: ResultTable | pd.DataFrame | Sequence[Mapping[str, Any]] | Activations,
    answers: Any,
    *,
    within: str | None = None,
    n_shuffles: int = 1000,
    seed: int = 0,
) -> Beside:
    """AUROC of alignment for wrong answers, beside the output probability and shuffled answers.

    Args:
        features: What `per_example` gave, or any rows of `example, metric, value` (and `site`); or
            activations, of which `per_example` is taken.
        answers: Rows by `example` with `wrong`, or with `value` 1 where right (a table of
            `evaluation`), and if known `p_yes, p_no`, `probability` or `margin` as the confidence.
        within: Column of the answers: only examples with an equal value are compared, so that an
            easy kind of question is not taken for alignment.
        n_shuffles: Shuffles of right and wrong (inside `within`).
        seed: Of the shuffles.

    Raises:
        UsageError: No example in common, or columns that are missing.
    """
    rows = per_example(features) if isinstance(features, Activations) else features
    long = rows.frame if isinstance(rows, ResultTable) else pd.DataFrame(rows)
    known = _answers(answers, within)
    missing = [name for name in ("example", "metric", "value") if name not in long]
    if missing:
        raise UsageError(
            f"features need a column {missing[0]!r}; they have {', '.join(map(str, long))}"
        )
    long = long.assign(site=long["site"] if "site" in long else None)
    sites = long["site"].astype(object).where(long["site"].notna(), "")
    found = []
    for (metric, site), part in long.groupby([long["metric"], sites], sort=False):
        values = part.assign(example=part["example"].astype(str)).set_index("example")["value"]
        found.append((str(metric), str(site), False, values))
    if "confidence" in known and known["confidence"].notna().any():
        found.append((CONFIDENCE, "", True, known["confidence"]))
    out = [
        {"metric": metric, "site": site or None, "unit": "area", "baseline": baseline}
        | _tested(values, known, n_shuffles, seed)
        for metric, site, baseline, values in found
    ]
    frame = pd.DataFrame(out)
    frame["p_adjusted"] = benjamini_hochberg(frame["p"].to_numpy())
    return Beside(ResultTable(frame, {"seed": seed}))


def _answers(answers: Any, within: str | None) -> pd.DataFrame:
    """By example: wrong, group, stratum and confidence."""
    table = getattr(answers, "table", answers)
    frame = table.frame if isinstance(table, ResultTable) else pd.DataFrame(table)
    if "example" not in frame or not {"wrong", "value"} & set(frame):
        raise UsageError(
            f"answers need the columns 'example' and 'wrong' (or 'value', 1 where right), they "
            f"have {', '.join(map(str, frame))}"
        )
    wrong = frame["wrong"] if "wrong" in frame else frame["value"].map({1.0: False, 0.0: True})
    columns = {"wrong": wrong, "group": frame["group"] if "group" in frame else frame["example"]}
    columns["group"] = columns["group"].where(columns["group"].notna(), frame["example"])
    if within is not None:
        if within not in frame:
            raise UsageError(f"answers have no column {within!r}: {', '.join(map(str, frame))}")
        columns["stratum"] = frame[within].astype(str)
    if {"p_yes", "p_no"} <= set(frame):
        columns["confidence"] = frame[["p_yes", "p_no"]].max(axis=1)
    elif "probability" in frame:
        columns["confidence"] = frame["probability"]
    elif "margin" in frame:  # logit of the answer over the foil: how sure, whichever was said
        columns["confidence"] = frame["margin"].abs()
    known = pd.DataFrame(columns).assign(example=frame["example"].astype(str))
    known = known[known["wrong"].notna()].drop_duplicates("example").set_index("example")
    return known.assign(wrong=known["wrong"].astype(bool))


def _tested(values: pd.Series, known: pd.DataFrame, n_shuffles: int, seed: int) -> dict[str, Any]:
    joined = known.join(values.rename("feature"), how="inner").dropna(subset=["feature"])
    if joined.empty:
        raise UsageError("features and answers have no example in common")
    scores, wrong = -joined["feature"].to_numpy(dtype=float), joined["wrong"].to_numpy(dtype=bool)
    strata = (
        pd.factorize(joined["stratum"])[0]
        if "stratum" in joined
        else np.zeros(len(joined), dtype=np.intp)
    )
    found = {"n": len(joined), "n_wrong": int(wrong.sum())}
    told = auroc(wrong, scores, joined["group"].to_numpy(), strata=strata)
    if math.isnan(told.estimate):
        return found | dict.fromkeys(("value", "low", "high", "shuffled", "p"), math.nan)
    rng = np.random.default_rng(seed)
    shuffled = [
        stratified(scores, _shuffled(wrong, strata, rng), strata) for _ in range(n_shuffles)
    ]
    far = sum(abs(each - 0.5) >= abs(told.estimate - 0.5) - 1e-12 for each in shuffled)
    return found | {
        "value": told.estimate,
        "low": told.low,
        "high": told.high,
        "shuffled": float(np.mean(shuffled)),
        "p": (1 + far) / (n_shuffles + 1),
    }


def stratified(
    scores: Float[np.ndarray, " n"], wrong: Bool[np.ndarray, " n"], strata: np.ndarray
) -> float:
    """AUROC over the pairs of one stratum, all strata together; NaN without any such pair."""
    top = pairs = 0.0
    for stratum in np.unique(strata):
        own = strata == stratum
        bad = int(wrong[own].sum())
        count = bad * (int(own.sum()) - bad)
        if count:
            top += count * area(wrong[own], scores[own])
            pairs += count
    return top / pairs if pairs else math.nan


def _shuffled(wrong: np.ndarray, strata: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out = wrong.copy()
    for stratum in np.unique(strata):
        own = np.flatnonzero(strata == stratum)
        out[own] = rng.permutation(wrong[own])
    return out
