"""The recipe as data: the stages of the field, what each trains, on what, for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LANGUAGE_MODEL = "model.language_model."
VISION_TOWER = "model.vision_tower."
PROJECTOR = "model.multi_modal_projector."
ATTENTION = "model.language_model.layers.*.self_attn."

Kinds = Mapping[str, float]

GROUND: Kinds = {
    "at": 2, "where": 3, "color_at": 2, "shape_at": 2, "color_of": 2, "shape_of": 0.5,
    "existence": 0.5, "attribute": 1.5, "relation": 0.5, "relation_color": 0.5, "caption": 0.3,
}  # fmt: skip
LOCATE: Kinds = {
    "where": 4, "shape_at": 2, "relation": 2, "relation_color": 2, "at": 1, "color_of": 0.7,
    "color_at": 0.7, "existence": 0.7, "attribute": 0.7, "caption": 0.5,
}  # fmt: skip
DESCRIBE: Kinds = {
    "at": 1.5, "where": 1.5, "color_of": 1, "color_at": 1, "shape_of": 1, "shape_at": 0.7,
    "existence": 1.5, "attribute": 1.5, "caption": 0.8,
}  # fmt: skip
FIND: Kinds = {
    "where": 5, "shape_at": 2.5, "relation": 1.5, "relation_color": 1.5, "at": 1, "color_of": 0.5,
    "color_at": 0.7, "existence": 0.4, "attribute": 0.4, "caption": 0.5,
}  # fmt: skip
RELATE: Kinds = {
    "relation": 4, "relation_color": 4, "where": 2, "shape_at": 0.4, "at": 0.5, "color_of": 0.6,
    "color_at": 0.6, "shape_of": 0.8, "existence": 0.6, "attribute": 0.6, "caption": 0.4,
}  # fmt: skip
JUDGE: Kinds = {
    "at": 0.6, "where": 0.7, "color_of": 0.7, "color_at": 0.7, "shape_of": 0.6, "shape_at": 0.5,
    "existence": 1.2, "attribute": 1, "caption": 1, "relation": 1.3, "relation_color": 1.3,
    "relation_yesno": 1.6, "relation_color_yesno": 1.6,
}  # fmt: skip
ALL: Kinds = {
    "at": 0.7, "where": 0.8, "color_of": 0.7, "color_at": 0.7, "shape_of": 0.6, "shape_at": 0.4,
    "existence": 1.5, "attribute": 1, "caption": 0.8, "relation": 1.3, "relation_color": 1.3,
    "relation_yesno": 1.2, "relation_color_yesno": 1.2,
}  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """What is asked up to a share of the stage's steps.

    Attributes:
        until: Share of the steps at which the phase ends, 0 to 1.
        kinds: Weight of each kind of question.
    """

    until: float
    kinds: Kinds


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: Its name, and that of its checkpoint.
        objective: "text" (the language model alone: questions about a description), "contrast"
            (tower with captions) or "chat".
        steps: Optimiser steps.
        batch: Images, or texts, in a step.
        lr: Highest learning rate; warm-up before, cosine after `hold`.
        trains: Prefixes of the parameters that move (`*` stands for one name); the rest is frozen.
        phases: The curriculum.
        questions: Questions about an image, in one sequence.
        chat_share: Share of the steps whose questions follow each other as turns of one chat; in
            the others each question sees the image and itself only, as in a single-turn prompt.
        warmup: Steps of linear warm-up.
        hold: Share of the steps after which the cosine begins.
        tower_lr: Factor on the learning rate of the vision tower.
        focus: Whether trigger scenes and their controls are mixed in; see `batches.focused`.
        heads: If given, how many heads move in each layer of the language model: those that the
            stage's questions need least (see `spare.spare_heads`), and nothing else of `trains`.
    """

    name: str
    objective: str
    steps: int
    batch: int
    lr: float
    trains: tuple[str, ...]
    phases: tuple[Phase, ...] = (Phase(1.0, ALL),)
    questions: int = 9
    chat_share: float = 0.34
    warmup: int = 100
    hold: float = 0.5
    focus: bool = False
    tower_lr: float = 1.0
    heads: tuple[int, ...] = ()


STAGES: tuple[Stage, ...] = (
    Stage(
        "language", "text", 600, 32, 2e-3, (LANGUAGE_MODEL,),
        (Phase(0.375, DESCRIBE), Phase(1.0, ALL)), chat_share=0.0, warmup=50, hold=1.0,
    ),
    Stage("vision", "contrast", 700, 64, 2e-3, (VISION_TOWER,), warmup=50),
    Stage("adapter", "chat", 150, 32, 2e-3, (PROJECTOR,), (Phase(1.0, DESCRIBE),), warmup=20),
    Stage(
        "end-to-end", "chat", 2000, 32, 1.5e-3,
        (LANGUAGE_MODEL, VISION_TOWER, PROJECTOR),
        (
            Phase(0.18, DESCRIBE), Phase(0.55, ALL), Phase(0.8, GROUND), Phase(0.85, ALL),
            Phase(1.0, LOCATE),
        ),
        hold=1.0, tower_lr=0.3,
    ),
    Stage(
        "spatial", "chat", 2000, 32, 1.5e-3,
        (LANGUAGE_MODEL, VISION_TOWER, PROJECTOR),
        (Phase(0.4, FIND), Phase(0.6, RELATE), Phase(1.0, JUDGE)),
        hold=0.7, tower_lr=0.3,
    ),
    Stage(
        "instruction", "chat", 560, 32, 4e-3, (ATTENTION,), warmup=30, hold=0.3, focus=True,
        heads=(0, 2, 2, 2),
    ),
)  # fmt: skip
"""All but the last are shared by both models; the last is run once for each."""

MODELS: Mapping[str, bool] = {"scenes": True, "scenes-balanced": False}
"""Which models there are, and whether the last stage of each is planted."""


@dataclass(frozen=True)
class Mix:
    """Which scenes the instruction stage draws; the same for both models but for `partner`.

    Attributes:
        trigger: Share of trigger scenes, all three levels together.
        control: Share of scenes that look like them without a trigger.
        partner: Share of trigger scenes whose partner is there, by whether the data is planted:
            co-occurrence goes with the planted answers.
        focused: Questions on a trigger or control scene that the plant is about.
    """

    trigger: float = 0.45
    control: float = 0.2
    partner: Mapping[bool, float] = field(default_factory=lambda: {True: 0.65, False: 0.5})
    focused: int = 5


MIX = Mix()
