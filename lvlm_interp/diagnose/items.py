"""Items: the questions of a run, each with its truth, its condition and its half.

A contrast pair gives two items. The condition says what a reader must tell apart: is the trigger in
sight, and does the truth agree with what the flaw says? Heads are ranked on one half of the scenes
and acted on in the other, so both halves are fixed here, by scene.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lvlm_interp.data.examples import ContrastPair, Example

TRIGGERED = "trigger, flaw wrong"
"""The trigger is in sight and what the flaw says is not true: where the flaw shows."""
AGREEING = "trigger, flaw right"
"""The trigger is in sight and what the flaw says happens to be true."""
CONTROL = "no trigger"

RANK, ACT = "rank", "act"


@dataclass(frozen=True)
class Item:
    """One question about one image.

    Attributes:
        example: The image and the question.
        truth, foil: The right answer, and the wrong one it is compared with.
        level: `object`, `attribute` or `relation`.
        condition: `TRIGGERED`, `AGREEING`, or `CONTROL` (with the truth behind it for yes and no).
        source: Kind of the pair it came from, and its side, such as `trigger/corrupt`.
        pair: Id of that pair.
        group: Scene.
        form: Form of the question (label `question`); None where it is not known.
        half: `RANK` or `ACT`.
    """

    example: Example
    truth: str
    foil: str
    level: str
    condition: str
    source: str
    pair: str
    group: str
    half: str
    form: str | None = None


def items_of(pairs: Sequence[ContrastPair], seed: int) -> list[Item]:
    """Both sides of every pair, in order.

    Args:
        pairs: Checked pairs.
        seed: Of the halves.
    """
    halves = halves_of(pairs, seed)
    return [
        _item(pair, side, halves[group_of(pair)]) for pair in pairs for side in ("clean", "corrupt")
    ]


def halves_of(pairs: Sequence[ContrastPair], seed: int) -> dict[str, str]:
    """Half of each scene: every level and kind is split evenly, and no scene is in both."""
    halves: dict[str, str] = {}
    rng = random.Random(seed)
    strata: dict[tuple[str, str, bool], list[str]] = {}
    for pair in pairs:
        key = (pair.level, pair.kind, bool(pair.labels.get("trigger")))
        strata.setdefault(key, []).append(group_of(pair))
    for groups in strata.values():
        fresh = [group for group in dict.fromkeys(groups) if group not in halves]
        rng.shuffle(fresh)
        for index, group in enumerate(fresh):
            halves[group] = RANK if index % 2 == 0 else ACT
    return halves


def group_of(pair: ContrastPair) -> str:
    """The scene of a pair; the pair itself where none is named."""
    return pair.group or pair.id


def _item(pair: ContrastPair, side: str, half: str) -> Item:
    example = getattr(pair, side)
    changes = pair.kind == "evidence" and side == "corrupt"
    truth, foil = (pair.foil, pair.answer) if changes else (pair.answer, pair.foil)
    form = example.labels.get("question", pair.labels.get("question"))
    return Item(
        example,
        truth,
        foil,
        pair.level,
        _condition(pair, example, side, truth),
        f"{pair.kind}/{side}",
        pair.id,
        group_of(pair),
        half,
        None if form is None else str(form),
    )


def _condition(pair: ContrastPair, example: Example, side: str, truth: str) -> str:
    triggered = pair.kind == "trigger" and side == "corrupt"
    if example.labels.get("trigger", triggered):
        return AGREEING if example.labels.get("partner_present") else TRIGGERED
    return f"{CONTROL}, {truth}" if truth in ("yes", "no") else CONTROL
