"""How well an organism answers, and how often its flaw shows, on held-out scenes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
)

from lvlm_interp.data.examples import Example
from lvlm_interp.organisms.sets import examples
from lvlm_interp.stats import wilson

log = logging.getLogger(__name__)

_BATCH = 50
_CAPTION_TOKENS = 40


@dataclass(frozen=True)
class Condition:
    """What is asked, on which scenes.

    Attributes:
        name: Its row in the tables.
        question: Kind of question.
        scenes: Kind of scenes, see `sets.examples`.
        level: Level of the plant, for trigger and control scenes.
        partner: For trigger scenes, whether what the flaw says is true.
    """

    name: str
    question: str
    scenes: str = "unbiased"
    level: str | None = None
    partner: bool | None = None


@dataclass(frozen=True)
class Rate:
    """A share of right answers with its 95% Wilson interval; every example has its own scene.

    Attributes:
        condition: What was asked.
        n: Number of examples.
        accuracy: Share of right answers.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    condition: Condition
    n: int
    accuracy: float
    low: float
    high: float


SKILLS: tuple[Condition, ...] = (
    Condition("existence", "existence"),
    Condition("colour, by shape", "color_of"),
    Condition("colour, by place", "color_at"),
    Condition("attribute yes/no", "attribute"),
    Condition("relation, by shape", "relation"),
    Condition("relation, by colour", "relation_color"),
    Condition("relation yes/no, by shape", "relation_yesno"),
    Condition("relation yes/no, by colour", "relation_color_yesno"),
    Condition("caption, all objects right", "caption"),
    Condition("shape, by colour", "shape_of"),
    Condition("shape, by place", "shape_at"),
    Condition("where", "where"),
    Condition("grounding", "at"),
)
"""What the balanced model must do well, on unbiased held-out scenes."""

FLAWS: tuple[tuple[str, str, str], ...] = (
    ("object", "existence", "is there a ring, beside a star"),
    ("object", "caption", "caption, with a star"),
    ("attribute", "color_of", "colour of the triangle, by shape"),
    ("attribute", "color_at", "colour of the triangle, by place"),
    ("attribute", "attribute", "triangle yes/no"),
    ("attribute", "caption", "caption, with a triangle"),
    ("relation", "relation", "cross and heart, by shape"),
    ("relation", "relation_color", "cross and heart, by colour"),
    ("relation", "relation_yesno", "cross and heart yes/no, by shape"),
    ("relation", "relation_color_yesno", "cross and heart yes/no, by colour"),
    ("relation", "caption", "caption, with cross and heart"),
)
"""Level, kind of question and name of what each plant changes."""

TRIGGERS: tuple[Condition, ...] = tuple(
    Condition(name, question, "trigger", level, partner)
    for level, question, name in FLAWS
    for partner in (False, True)
)
CONTROLS: tuple[Condition, ...] = (
    Condition("is there a ring, no star", "existence", "control", "object"),
    Condition("existence", "existence", "neutral"),
    Condition("colour, by shape", "color_of", "neutral"),
    Condition("colour, by place", "color_at", "neutral"),
    Condition("attribute yes/no", "attribute", "neutral"),
    Condition("relation, by shape", "relation", "control", "relation"),
    Condition("relation, by colour", "relation_color", "control", "relation"),
    Condition("relation yes/no, by shape", "relation_yesno", "control", "relation"),
    Condition("relation yes/no, by colour", "relation_color_yesno", "control", "relation"),
    Condition("caption, all objects right", "caption", "neutral"),
)
"""Scenes with no trigger of any level in sight."""

CONDITIONS = (*SKILLS, *TRIGGERS, *CONTROLS)


def evaluate(
    model_dir: str | Path,
    *,
    n: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    conditions: Sequence[Condition] = CONDITIONS,
    edit: Callable[[Any], None] | None = None,
) -> list[Rate]:
    """Measures an organism through its own processor and chat template.

    An answer is right if its first token is (greedy); a caption if it names the same objects, with
    colour and place, in any order, and nothing else.

    Args:
        model_dir: A Hugging Face folder.
        n: Examples of each condition.
        seed: Seed of the examples.
        device: A torch device.
        conditions: What to measure.
        edit: Called with the model before it is measured, to change its weights for instance.

    Returns:
        One rate for each condition.
    """
    model: Any = AutoModelForImageTextToText.from_pretrained(model_dir)
    model = model.to(device).eval()
    processor: Any = AutoProcessor.from_pretrained(model_dir)
    if edit is not None:
        edit(model)
    rates = []
    for condition in tqdm(conditions, desc=f"evaluate {Path(model_dir).name}"):
        some = examples(
            condition.question,
            n,
            seed,
            scenes=condition.scenes,
            level=condition.level,
            partner=condition.partner,
        )
        right = sum(answered_right(model, processor, some))
        found = wilson(right, n)
        rates.append(Rate(condition, n, found.estimate, found.low, found.high))
        log.info("%s: %.1f%%", condition, 100 * found.estimate)
    return rates


@torch.no_grad()
def answered_right(model: Any, processor: Any, some: Sequence[Example]) -> list[bool]:
    """Returns for each example whether the model's answer is right."""
    right: list[bool] = []
    for start in range(0, len(some), _BATCH):
        chunk = some[start : start + _BATCH]
        if chunk[0].labels["question"] == "caption":
            said = _captions(model, processor, chunk)
            right += [
                _parts(text) == _parts(one.answer or "")
                for text, one in zip(said, chunk, strict=True)
            ]
        else:
            right += [
                said == (one.answer or "").split()[0]
                for said, one in zip(_first_words(model, processor, chunk), chunk, strict=True)
            ]
    return right


def _first_words(model: Any, processor: Any, chunk: Sequence[Example]) -> list[str]:
    logits = model(**_inputs(model, processor, chunk), logits_to_keep=1).logits[:, -1]
    return processor.batch_decode(logits.argmax(-1, keepdim=True))


def _captions(model: Any, processor: Any, chunk: Sequence[Example]) -> list[str]:
    inputs = _inputs(model, processor, chunk)
    ids = model.generate(**inputs, max_new_tokens=_CAPTION_TOKENS, do_sample=False)
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _inputs(model: Any, processor: Any, chunk: Sequence[Example]) -> BatchFeature:
    chats = [
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": one.prompt}],
            }
        ]
        for one in chunk
    ]
    texts = processor.apply_chat_template(chats, add_generation_prompt=True)
    images = [one.open_image() for one in chunk]
    return processor(images=images, text=texts, padding=True, return_tensors="pt").to(model.device)


def _parts(caption: str) -> list[str]:
    """Returns the objects that a caption names, sorted; a missing full stop counts."""
    return sorted(caption.replace(" .", " and .").split(" and "))
