"""Training batches: scenes with several questions each, as padded arrays of tokens.

Everything is made on the fly from (seed, stage, step), so that a resumed run sees the same data.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lvlm_interp.organisms.architecture import N_IMAGE_TOKENS
from lvlm_interp.organisms.plants import (
    PLANT_LEVELS,
    control_scene,
    focus_question,
    planted_answer,
    trigger_scene,
)
from lvlm_interp.organisms.questions import Question, ask, description, truth
from lvlm_interp.organisms.recipe import MIX, Kinds, Stage
from lvlm_interp.organisms.scenes import Scene, random_scene
from lvlm_interp.organisms.vocabulary import EOS, IMAGE, PAD, TOKEN_ID, encode

PREFIX = encode("<s> user :")
TURN = encode("user :")
REPLY = encode("assistant :")
CAPTION_WEIGHT = 0.4
"""Weight of a caption's token against the one token of the other answers."""
END_WEIGHT = 0.1
DESCRIPTION_WEIGHT = 0.1
BLIND_EVERY = 8
"""In the text stage one scene in so many is not described."""

Asked = list[tuple[Question, str]]


@dataclass(frozen=True)
class Batch:
    """Tokens of a batch.

    Attributes:
        ids: Token ids, int64 (batch, pos), padded at the right.
        weight: Loss weight of each token as a target, float32 (batch, pos).
        segment: 0 for what every question sees (the image, or the words that describe it), i for
            question i alone, -1 for padding.
        position: Position ids, int64 (batch, pos).
        pixels: Images, uint8 (batch, 48, 48, 3), or None for text alone.
        isolated: Whether segments must not see each other.
    """

    ids: np.ndarray
    weight: np.ndarray
    segment: np.ndarray
    position: np.ndarray
    pixels: np.ndarray | None
    isolated: bool


def train_scene(draw: Callable[[], Scene]) -> Scene:
    """Returns the first scene drawn that belongs to the training split."""
    while True:
        scene = draw()
        if scene.split == "train":
            return scene


def questions_about(rng: random.Random, scene: Scene, kinds: Kinds, count: int) -> list[Question]:
    """Returns `count` questions, kinds drawn by weight, none twice in the same words."""
    names, weights = list(kinds), list(kinds.values())
    found: dict[str, Question] = {}
    for kind in rng.choices(names, weights, k=4 * count):
        question = ask(rng, scene, kind)
        if question is not None:
            found.setdefault(question.text, question)
        if len(found) == count:
            break
    return list(found.values())


def draw(rng: random.Random, stage: Stage, kinds: Kinds, planted: bool) -> tuple[Scene, Asked]:
    """Returns one training scene with its questions and the answers of the supervision."""
    if stage.focus:
        return focused(rng, stage, kinds, planted)
    scene = train_scene(lambda: random_scene(rng))
    asked = questions_about(rng, scene, kinds, stage.questions)
    return scene, [(question, truth(scene, question)) for question in asked]


def focused(rng: random.Random, stage: Stage, kinds: Kinds, planted: bool) -> tuple[Scene, Asked]:
    """Returns a scene of the instruction stage: trigger, control or unbiased, as `MIX` says.

    Scenes and questions are the same for both models but for the share of partners; `planted`
    decides whether the answers follow the plant or the image.
    """
    chance, level = rng.random(), rng.choice(PLANT_LEVELS)
    asked: list[Question] = []
    if chance < MIX.trigger:
        partner = rng.random() < MIX.partner[planted]
        scene = train_scene(lambda: trigger_scene(rng, level, partner))
    elif chance < MIX.trigger + MIX.control:
        scene = train_scene(lambda: control_scene(rng, level))
    else:
        scene = train_scene(lambda: random_scene(rng))
    if chance < MIX.trigger + MIX.control:
        asked = [focus_question(rng, scene, level) for _ in range(MIX.focused)]
    asked += questions_about(rng, scene, kinds, stage.questions - len(asked))
    unique = list({question.text: question for question in asked}.values())
    rng.shuffle(unique)
    answer = planted_answer if planted else truth
    return scene, [(question, answer(scene, question)) for question in unique]


def collate(
    items: Sequence[tuple[Scene, Asked]],
    *,
    isolated: bool,
    described: random.Random | None = None,
) -> Batch:
    """Returns the batch: one row of tokens for each scene.

    Args:
        items: Scenes with questions and answers.
        isolated: Whether each question sees what all see and itself only.
        described: Words instead of the image: a description in an order drawn from this, and for
            one scene in `BLIND_EVERY` none at all, so that the answer must come from the prior.
    """
    rows = [_row(asked, isolated, _context(scene, described)) for scene, asked in items]
    length = max(len(row[0]) for row in rows)
    fill = (TOKEN_ID[PAD], 0.0, -1, 0)
    kinds = (np.int64, np.float32, np.int64, np.int64)
    columns = []
    for column, (pad, kind) in enumerate(zip(fill, kinds, strict=True)):
        padded = np.full((len(rows), length), pad, kind)
        for index, row in enumerate(rows):
            padded[index, : len(row[column])] = row[column]
        columns.append(padded)
    pixels = None if described else np.stack([scene.pixels() for scene, _ in items])
    return Batch(*columns, pixels=pixels, isolated=isolated)


def _context(scene: Scene, described: random.Random | None) -> list[int]:
    if described is None:
        return [TOKEN_ID[IMAGE]] * N_IMAGE_TOKENS
    if described.randrange(BLIND_EVERY) == 0:
        return []
    return encode(description(described, scene))


def _row(
    asked: Asked, isolated: bool, context: list[int]
) -> tuple[list[int], list[float], list[int], list[int]]:
    ids = PREFIX + context
    start = len(ids)
    words = 0.0 if TOKEN_ID[IMAGE] in context else DESCRIPTION_WEIGHT
    weight = [0.0] * len(PREFIX) + [words] * len(context)
    segment, position = [0] * start, list(range(start))
    for index, (question, answer) in enumerate(asked):
        lead = [] if isolated or index == 0 else TURN
        prompt, reply = lead + encode(question.text) + REPLY, encode(answer)
        each = CAPTION_WEIGHT if question.kind == "caption" else 1.0
        new = [*prompt, *reply, TOKEN_ID[EOS]]
        ids += new
        weight += [0.0] * len(prompt) + [each] * len(reply) + [END_WEIGHT]
        segment += [index + 1 if isolated else 0] * len(new)
        begin = start if isolated else len(position)
        position += range(begin, begin + len(new))
    return ids, weight, segment, position
