"""Three sources of an answer: the image, the prompt, and what the language model expects anyway.

For each example the reply (what the model said, by default) is scored in four runs, bare question
or whole prompt by image on or off, and shared out as `game.py` has it. The score is its
log-probability token by token, against a foil where there is one: m = log p(y) - log p(foil).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from lvlm_interp.attribution.game import SOURCES, Shares, four_runs
from lvlm_interp.attribution.image_off import BASELINES, Off, Runner, question_of
from lvlm_interp.attribution.replies import reply_tokens
from lvlm_interp.data.examples import Example
from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.provenance import provenance
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.stats import cluster_bootstrap

INTERACTION = "image:prompt"
TOTAL = "sum"
FOIL = "foil"
"""In the column `token`: what the foil takes away from the answer's score."""


@dataclass(frozen=True, repr=False)
class Sources(Result):
    """What each source gives to each token of each reply.

    `table` has a row per example, token and source: `image`, `prompt`, `prior`, their
    `image:prompt` interaction, and `sum`, the score of the whole run, which the three add up to.
    `value` is in nats. Further columns: `token` (its text; `foil` for what the foil takes away),
    `place` (its index), `reply`, `foil`, `group`, `level`, `image_off` (the baseline that was run).
    Where an example names no bare question the prompt is not tested, and its value is missing.
    """

    def by_example(self) -> pd.DataFrame:
        """The sources of each whole answer: a row per example, a column per source, in nats."""
        frame = self.table.frame
        totals = frame.pivot_table(
            index=["example", "group"],
            columns="metric",
            values="value",
            aggfunc=lambda part: part.sum(min_count=1),
            sort=False,
            dropna=False,
        )
        order = [*SOURCES, INTERACTION, TOTAL]
        return totals.reindex(columns=order).dropna(how="all").reset_index()

    def means(self, *, seed: int = 0) -> pd.DataFrame:
        """Mean nats of each source over examples, with 95% intervals over groups.

        Returns:
            Columns `source, estimate, low, high, n`; `n` counts examples in which it was tested.
        """
        frame = self.by_example()
        rows = []
        for source in (*SOURCES, INTERACTION, TOTAL):
            kept = frame[frame[source].notna()]
            rows.append({"source": source} | _interval(kept[source], kept["group"], seed))
        return pd.DataFrame(rows)

    def shares(self, *, seed: int = 0) -> pd.DataFrame:
        """Share of each source in the answer's score, where all of them pull the same way.

        A share means something only where no source speaks against the answer; examples whose
        signs differ are left out and counted.

        Returns:
            Columns `source, estimate, low, high, n, left_out`; intervals over groups.
        """
        frame = self.by_example()
        tested = [source for source in SOURCES if frame[source].notna().any()]
        values = frame[tested].fillna(0.0)
        agree = ((values >= 0).all(axis=1) | (values <= 0).all(axis=1)) & (
            values.abs().sum(axis=1) > 0
        )
        kept = values[agree].div(values[agree].sum(axis=1), axis=0)
        rows = [
            {"source": source}
            | _interval(kept[source], frame.loc[agree, "group"], seed)
            | {"left_out": int((~agree).sum())}
            for source in tested
        ]
        return pd.DataFrame(rows)

    def dominant(self) -> pd.DataFrame:
        """The source that speaks most for each answer: columns `example, group, source, value`."""
        frame = self.by_example()
        values = frame[list(SOURCES)].fillna(-np.inf)
        return pd.DataFrame(
            {
                "example": frame["example"],
                "group": frame["group"],
                "source": values.idxmax(axis=1),
                "value": values.max(axis=1),
            }
        )


def _interval(values: pd.Series, groups: pd.Series, seed: int) -> dict[str, Any]:
    if not len(values):
        return {"estimate": np.nan, "low": np.nan, "high": np.nan, "n": 0}
    found = cluster_bootstrap(values.to_numpy(), groups.to_numpy(), seed=seed)
    return {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}


def three_sources(
    model: LVLM,
    examples: Sequence[Example],
    *,
    image_off: str = "balanced",
    replies: Sequence[str] | None = None,
    pool: Sequence[Example] | None = None,
    against_foil: bool = True,
    max_new_tokens: int = 16,
    batch_size: int = 16,
    seed: int = 0,
) -> Sources:
    """Share each answer out among image, prompt and prior.

    Args:
        model: The model.
        examples: One question each; `question` names the bare one inside the prompt.
        image_off: The baseline; see `image_off.BASELINES`. Where `balanced` has fewer than eight
            donors, or donors of one answer only, `mean` stands in; the table says where.
        replies: What was said to each; the model's own greedy reply by default.
        pool: Examples whose images may stand in; the examples themselves by default.
        against_foil: Score against the example's foil (or its right answer, where the reply is the
            foil); else the log-probability of the reply alone.
        max_new_tokens: Of a reply.
        batch_size: Rows in one forward.
        seed: Of the choice of donors.

    Returns:
        The `Sources`; provenance holds `forwards`, the rows that went through the model.

    Raises:
        UsageError: No examples, an unknown baseline, or not one reply per example.
    """
    examples = list(examples)
    _check(examples, image_off, replies)
    runner = Runner(model, seed, batch_size, list(pool) if pool is not None else examples)
    said = (
        list(replies) if replies is not None else _said(model, examples, max_new_tokens, batch_size)
    )
    foils = [
        _foil(e, reply) if against_foil else None for e, reply in zip(examples, said, strict=True)
    ]
    answer, names = _game(runner, examples, said, image_off)
    with_foil = [i for i, foil in enumerate(foils) if foil is not None]
    against: dict[int, Shares] = {}
    if with_foil:
        found, _ = _game(
            runner, [examples[i] for i in with_foil], [foils[i] or "" for i in with_foil], image_off
        )
        against = dict(zip(with_foil, found, strict=True))
    rows = []
    for i, example in enumerate(examples):
        common = {
            "example": example.id,
            "group": example.group or example.id,
            "level": example.level,
            "reply": said[i],
            "foil": foils[i],
            "image_off": names[i],
            "unit": "nat",
        }
        texts = [model.tokenizer.decode([t]) for t in reply_tokens(model, example, said[i])]
        rows += _rows(common, texts, answer[i], tested=example.question is not None)
        if i in against:
            rows += _foil_rows(common, against[i], len(texts), tested=example.question is not None)
    record = provenance(model=model.name, seed=seed, image_off=image_off)
    return Sources(ResultTable(rows, {**record, "forwards": runner.count.rows}))


def _check(examples: Sequence[Example], image_off: str, replies: Sequence[str] | None) -> None:
    if not examples:
        raise UsageError("There is nothing to attribute: the list of examples is empty.")
    if image_off not in BASELINES:
        raise UsageError(f"image_off={image_off!r}: expected one of {', '.join(BASELINES)}.")
    if replies is not None and len(replies) != len(examples):
        raise UsageError(f"Expected {len(examples)} replies, one per example, got {len(replies)}.")
    blind = [example.id for example in examples if example.image is None]
    if blind:
        raise UsageError(f"Example {blind[0]!r} has no image, so nothing can come from it.")


def _said(
    model: LVLM, examples: Sequence[Example], max_new_tokens: int, batch_size: int
) -> list[str]:
    found: list[str] = []
    for start in range(0, len(examples), batch_size):
        inputs = model.prepare(list(examples[start : start + batch_size]))
        replies = model.generate(inputs, max_new_tokens=max_new_tokens)
        found += [str(reply).strip() for reply in replies]
    silent = [e.id for e, reply in zip(examples, found, strict=True) if not reply]
    if silent:
        raise UsageError(f"The model says nothing to {silent[0]!r}: pass replies.")
    return found


def _foil(example: Example, reply: str) -> str | None:
    """What the reply is scored against: the foil, or the right answer where the reply is it."""
    if example.answer is None or example.foil is None:
        return None
    if reply.strip().lower() == example.foil.strip().lower():
        return example.answer
    return example.foil if example.foil != reply else None


def _game(
    runner: Runner, examples: Sequence[Example], replies: Sequence[str], image_off: str
) -> tuple[list[Shares], list[str]]:
    """The game of each token of each reply, and the baseline that was run."""
    bare = [replace(e, prompt=question_of(e), question=None) for e in examples]
    same = [e.prompt == b.prompt for e, b in zip(examples, bare, strict=True)]
    whole = runner.on(examples, replies)
    off = runner.off(image_off, bare, replies)
    more = [i for i, alike in enumerate(same) if not alike]
    with_image, with_prompt = list(whole), list(off.logprobs)
    if more:
        some = [replies[i] for i in more]
        for i, value in zip(more, runner.on([bare[i] for i in more], some), strict=True):
            with_image[i] = value
        found: Off = runner.off(image_off, [examples[i] for i in more], some)
        for i, value in zip(more, found.logprobs, strict=True):
            with_prompt[i] = value
    games = [
        four_runs(*(_array(run) for run in runs))
        for runs in zip(off.logprobs, with_prompt, with_image, whole, strict=True)
    ]
    return games, off.names


def _array(values: Tensor) -> np.ndarray:
    return values.double().numpy()


def _rows(
    common: dict[str, Any], texts: Sequence[str], game: Shares, *, tested: bool
) -> list[dict[str, Any]]:
    parts = _parts(game, tested)
    return [
        {**common, "metric": source, "value": float(values[place]), "token": text, "place": place}
        for place, text in enumerate(texts)
        for source, values in parts.items()
    ]


def _foil_rows(
    common: dict[str, Any], game: Shares, n_tokens: int, *, tested: bool
) -> list[dict[str, Any]]:
    return [
        {
            **common,
            "metric": source,
            "value": -float(values.sum()),
            "token": FOIL,
            "place": n_tokens,
        }
        for source, values in _parts(game, tested).items()
    ]


def _parts(game: Shares, tested: bool) -> dict[str, np.ndarray]:
    untested = np.full_like(game.image, np.nan)
    return {
        "image": game.image,
        "prompt": game.prompt if tested else untested,
        "prior": game.prior,
        INTERACTION: game.interaction if tested else untested,
        TOTAL: game.total,
    }
