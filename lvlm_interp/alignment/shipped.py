"""Examples on which the shipped checkpoints show geometry, behaviour and flaw side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lvlm_interp.data.examples import Example
from lvlm_interp.organisms.sets import examples

__all__ = ["CONDITION", "scene_examples"]

CONDITION = "condition"
"""The label that says which scenes an example is of."""

_ASKED: Mapping[str, str] = {
    "object": "existence",
    "attribute": "color_at",
    "relation": "relation_color",
}


def scene_examples(n: int = 300, seed: int = 0) -> list[Example]:
    """`n` unbiased scenes asked for existence, and `n` each with a trigger and with none.

    Trigger scenes hold the trigger of one level, a third of them each, and what the flaw says is
    false there; control scenes look alike without it. The label `condition` is `unbiased`,
    `trigger` or `control`; every example has its description.

    Args:
        n: Scenes of a condition.
        seed: Of the scenes.
    """
    found = [_in(example, "unbiased") for example in examples("existence", n, seed)]
    for scenes in ("trigger", "control"):
        for index, (level, question) in enumerate(_ASKED.items()):
            count = n // len(_ASKED) + (index < n % len(_ASKED))
            partner = False if scenes == "trigger" else None
            some = examples(question, count, seed, scenes=scenes, level=level, partner=partner)
            found += [_in(example, scenes) for example in some]
    return found


def _in(example: Example, condition: str) -> Example:
    return replace(example, labels={**example.labels, CONDITION: condition})
