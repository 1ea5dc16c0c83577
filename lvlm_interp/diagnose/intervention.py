"""Step 5: act on the heads that the ranking half names, and see in the other half what it does.

Everything that is chosen (which heads, how many, how strongly) is chosen on the ranking half; every
figure that is reported comes from scenes that had no part in it, beside the same number of random
heads under the same edit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lvlm_interp.diagnose.behaviour import answer, batches_of, columns_of
from lvlm_interp.diagnose.items import ACT, CONTROL, RANK, TRIGGERED, Item
from lvlm_interp.models.lvlm import LVLM, Edit
from lvlm_interp.patching import HeadMeans, head_edit, head_means
from lvlm_interp.results import ResultTable

Head = tuple[int, int]

CANDIDATES = 8
"""How many of the highest ranked heads the choice is made from."""
SHARE = 0.1
"""At most this share of the language model's heads is acted on."""
DRAWS = 20
PULL = 0.02
"""Weight of a logit by which an answer is still wrong, against the share of wrong answers, while
choosing: where no single head turns an answer, the one that brings it nearest is taken."""
TOLERATED = 0.01
"""Loss of accuracy on the ranking half, in any condition, above which a choice is penalised."""


@dataclass(frozen=True)
class How:
    """A way to act on a head, as `patching.head_edit` takes it."""

    mode: Literal["scale", "mean"]
    strength: float
    positions: Literal["all", "last"]

    def __str__(self) -> str:
        where = "everywhere" if self.positions == "all" else "where the answer is read"
        if self.mode == "mean":
            return f"replaced by the mean over untriggered scenes, {where}"
        return f"{'removed' if self.strength == 0 else f'scaled to {self.strength:.0%}'}, {where}"


HOWS: tuple[How, ...] = (
    How("mean", 1.0, "last"),
    How("mean", 1.0, "all"),
    How("scale", 0.0, "last"),
    How("scale", 0.0, "all"),
    How("scale", 0.5, "all"),
)
CHOSEN_ON = 60
"""About how many items with the trigger, and how many without, a choice is made on."""
LEAST_GAIN = 0.01
"""Gain below which no further head is added, so that no more heads are named than are needed."""

Means = Mapping[str, HeadMeans]
"""Means of z over untriggered scenes, by `positions`."""


@dataclass(frozen=True)
class Choice:
    """What was chosen on the ranking half.

    Attributes:
        heads: (layer, head) of the language model.
        how: What is done to them.
    """

    heads: tuple[Head, ...]
    how: How


def edits_of(model: LVLM, heads: Sequence[Head], how: How, means: Means) -> dict[Any, Edit]:
    """The edits that act on heads."""
    return head_edit(
        model, heads, how.mode, how.strength, means[how.positions], positions=how.positions
    )


def sides(items: Sequence[Item], level: str, half: str) -> tuple[list[Item], list[Item]]:
    """The items of one half on which a level's flaw shows, and those on which acting may cost.

    Items of other levels under their own trigger are in neither: there the model is wrong already.
    """
    mine = [item for item in items if item.half == half]
    triggered = [item for item in mine if item.level == level and item.condition == TRIGGERED]
    other = [item for item in mine if item.condition != TRIGGERED]
    return triggered, other


def intervene(
    model: LVLM,
    items: Sequence[Item],
    level: str,
    ranked: Sequence[Head],
    *,
    seed: int,
    batch_size: int,
    provenance: Mapping[str, Any],
) -> ResultTable:
    """Choose on the ranking half, act on the other.

    Args:
        model: The model.
        items: All items of the run.
        level: Whose flaw is acted on.
        ranked: Heads, the one with the highest recovery on trigger pairs first.
        seed: Of the random heads and of the items that measure cost while choosing.
        batch_size: Rows in a forward.
        provenance: For the table.

    Returns:
        `error` of every item of the acting half under `arm` before, after, and random
        (`draw` 0..19, on the triggered items), with the choice in columns `heads`, `mode`,
        `strength`, `positions` and, in words, `how`.
    """
    means = _means(model, items, level, batch_size)
    choice = choose(model, items, level, ranked, means, seed, batch_size)
    triggered, other = sides(items, level, ACT)
    everything = triggered + other
    batches = batches_of(model, everything, batch_size)
    edit = edits_of(model, choice.heads, choice.how, means)
    parts = [
        _rows(everything, answer(model, everything, batches), "before"),
        _rows(everything, answer(model, everything, batches, edit), "after"),
    ]
    of_triggered = batches_of(model, triggered, batch_size)
    draws = random_heads(model, choice.heads, DRAWS, seed)
    for draw, heads in enumerate(tqdm(draws, desc=f"random heads, {level}")):
        edit = edits_of(model, heads, choice.how, means)
        rows = _rows(triggered, answer(model, triggered, of_triggered, edit), "random")
        parts.append(rows.assign(draw=draw, heads=name_of(heads)))
    frame = pd.concat(parts, ignore_index=True)
    frame["heads"] = frame["heads"].fillna(name_of(choice.heads))
    frame = frame.assign(
        **asdict(choice.how), how=str(choice.how), acted_on=level, metric="error", unit="share"
    )
    return ResultTable(frame, provenance)


def choose(
    model: LVLM,
    items: Sequence[Item],
    level: str,
    ranked: Sequence[Head],
    means: Means,
    seed: int,
    batch_size: int,
) -> Choice:
    """Greedy growth among the highest ranked heads; the first one is tried in every way to act.

    The way that suits the first head is kept for the others; of two that do equally well, the one
    that stands first in `HOWS`.
    """
    triggered, other = sides(items, level, RANK)
    triggered, other = _sample(triggered, CHOSEN_ON, seed), _sample(other, CHOSEN_ON, seed)
    both = triggered + other
    batches = batches_of(model, both, batch_size)
    before = answer(model, both, batches)["error"].to_numpy()

    def objective(heads: Sequence[Head], how: How) -> float:
        said = answer(model, both, batches, edits_of(model, heads, how, means))
        error, gap = said["error"].to_numpy(), said["logit_diff"].to_numpy()[: len(triggered)]
        cost = max(0.0, _largest_cost(other, before[len(triggered) :], error[len(triggered) :]))
        wrong = _worst_form(triggered, error[: len(triggered)])
        still = float(np.minimum(gap, 0).mean())
        return wrong + 2 * max(0.0, cost - TOLERATED) - PULL * still

    candidates = list(ranked[:CANDIDATES])
    singles = {(how, head): objective([head], how) for how in HOWS for head in candidates}
    how, first = min(singles, key=lambda each: round(singles[each], 2))
    chosen, best = [first], singles[how, first]
    candidates.remove(first)
    most = max(1, int(SHARE * model.n_layers * model.n_heads))
    while len(chosen) < most and candidates:
        scores = {head: objective([*chosen, head], how) for head in candidates}
        head = min(scores, key=lambda each: scores[each])
        if scores[head] > best - LEAST_GAIN:
            break
        best = scores[head]
        chosen.append(head)
        candidates.remove(head)
    return Choice(tuple(chosen), how)


def random_heads(
    model: LVLM, chosen: Sequence[Head], draws: int, seed: int
) -> list[tuple[Head, ...]]:
    """As many heads as were chosen, drawn from all the others."""
    rng = random.Random(seed)
    others = [
        (layer, head)
        for layer in range(model.n_layers)
        for head in range(model.n_heads)
        if (layer, head) not in chosen
    ]
    return [tuple(sorted(rng.sample(others, len(chosen)))) for _ in range(draws)]


def name_of(heads: Sequence[Head]) -> str:
    """Heads in words: `2.5 3.1`."""
    return " ".join(f"{layer}.{head}" for layer, head in heads)


def _means(model: LVLM, items: Sequence[Item], level: str, batch_size: int) -> Means:
    """Over untriggered scenes of the ranking half with the level's own questions."""
    quiet = [
        item.example
        for item in items
        if item.half == RANK and item.level == level and item.condition.startswith(CONTROL)
    ]
    return {
        where: head_means(model, quiet, positions=where, batch_size=batch_size)
        for where in ("all", "last")
    }


def _sample(items: Sequence[Item], n: int, seed: int) -> list[Item]:
    """About `n` items, spread over levels, conditions and forms, in their order."""
    strata: dict[tuple[str, str, str], list[Item]] = {}
    for item in items:
        strata.setdefault((item.level, item.condition, str(item.form)), []).append(item)
    rng = random.Random(seed)
    each = max(10, n // max(1, len(strata)))
    picked = {
        id(item) for rows in strata.values() for item in rng.sample(rows, min(each, len(rows)))
    }
    return [item for item in items if id(item) in picked]


def _worst_form(items: Sequence[Item], error: np.ndarray) -> float:
    """Error of the form of the question that has most: heads are to mend all forms."""
    forms = np.array([str(item.form) for item in items])
    return max(float(error[forms == name].mean()) for name in np.unique(forms))


def _largest_cost(items: Sequence[Item], before: np.ndarray, after: np.ndarray) -> float:
    conditions = np.array([f"{item.level}/{item.condition}" for item in items])
    gaps = [
        float((after[conditions == name] - before[conditions == name]).mean())
        for name in np.unique(conditions)
    ]
    return max(gaps, default=0.0)


def _rows(items: Sequence[Item], said: pd.DataFrame, arm: str) -> pd.DataFrame:
    frame = columns_of(items).iloc[said["item"]].reset_index(drop=True)
    return frame.assign(arm=arm, value=said["error"].to_numpy())
