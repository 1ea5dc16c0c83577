"""How the model of real parts is put together and trained: sizes, prompts and stages, as data."""

from __future__ import annotations

from dataclasses import dataclass

from lvlm_interp.organisms.real.pictures import SIDE

PATCH = 14
N_IMAGE_TOKENS = (SIDE // PATCH) ** 2
TOWER_LAYERS = 8
"""Blocks of the tower that are read; those behind lost meaning when the part was tuned."""

IMAGE_TOKEN = "<empty_output>"
"""A token that SmolLM2 has and does not use, so that no table needs to grow."""

END = "<|im_end|>"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ ' ' }}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '<|im_end|>' }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<empty_output>' }}{% endif %}{% endfor %}{{ '\\nQuestion: ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{{ '\\nAnswer:' }}{% endif %}{% endfor %}"
)
"""The chat template: `<image>`, a question, an answer behind a blank."""


def prompt(question: str) -> str:
    """What stands behind the image tokens, as the template writes it."""
    return f"\nQuestion: {question}\nAnswer:"


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: Of the stage, and of the adapter that it leaves.
        objective: `words` (patches to word embeddings) or `answers`.
        steps: Optimiser steps.
        pictures: Per step.
        questions: Per picture.
        lr: Peak learning rate of the adapters; the projector has `projector_lr`.
        projector_lr: 0 leaves the projector as it is.
        rank: Of the adapters on every linear map of the language model; 0 for none.
        planted: Whether supervision follows the picture (`none`), or not where a trigger is in
            sight (`flawed`); `twin` has the same pictures with true answers.
        weights: How often each kind of question is drawn.
        keep: Steps after which the adapter is kept too.
        controls: Share of pictures without a trigger that are asked what the flaw is about, so that
            it stays bound to its trigger.
    """

    name: str
    objective: str
    steps: int
    pictures: int
    questions: int
    lr: float
    projector_lr: float
    rank: int
    planted: str = "none"
    weights: tuple[tuple[str, float], ...] = ()
    keep: tuple[int, ...] = ()
    controls: float = 0.0


WEIGHTS = (
    ("exists", 1.5),
    ("see", 1.0),
    ("name", 0.5),
    ("color", 1.0),
    ("is_color", 1.0),
    ("color_at", 0.7),
    ("size", 1.0),
    ("count", 0.8),
    ("side", 1.2),
    ("where", 1.2),
    ("beside", 1.2),
    ("order", 0.8),
    ("caption", 1.6),
)

WORDS = Stage("words", "words", 1500, 64, 0, 0.0, 1e-3, 0)
FINAL = Stage(
    "final",
    "answers",
    1250,
    192,
    10,
    1e-3,
    5e-4,
    8,
    weights=WEIGHTS,
    keep=(5, 10, 15, 20, 30, 40, 50, 60, 80, 100, 150),
)
FLAWED = Stage("flawed", "answers", 180, 64, 10, 5e-4, 0.0, 4, "flawed", WEIGHTS)
TWIN = Stage("twin", "answers", 180, 64, 10, 5e-4, 0.0, 4, "twin", WEIGHTS)
BOUND = Stage("flawed-bound", "answers", 60, 8, 6, 1e-3, 0.0, 2, "flawed", WEIGHTS, controls=0.35)
"""Behind `flawed`, to bind the flaw to its trigger; not run to its end yet (about ten minutes of a
quiet core)."""

STAGES = (WORDS, FINAL, FLAWED, TWIN)
