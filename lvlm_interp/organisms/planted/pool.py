"""A pool of scenes with many questions each, and the base model's states on them.

Plants of one base model share a pool: the base runs on it once, and its states in front of every
block are kept, so that a plant in block l is fitted and checked from block l on. Questions of a
scene do not see each other (the layout of training, `batches.collate`), so the image is paid for
once; to each of them it is the single-turn prompt of the chat template.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.organisms.architecture import N_IMAGE_TOKENS, PATCH_SIZE, normalise
from lvlm_interp.organisms.batches import PREFIX, REPLY
from lvlm_interp.organisms.planted.tail import Tail
from lvlm_interp.organisms.questions import Question, ask, named_objects, truth
from lvlm_interp.organisms.scenes import CELL, GRID, Scene, SceneObject, random_scene
from lvlm_interp.organisms.vocabulary import IMAGE, PAD, SHAPES, TOKEN_ID, encode

EXISTENCE = tuple(range(len(SHAPES)))
"""Slots of the questions "is there a SHAPE ?", one for each shape; they come first."""

OTHERS = (
    *("color_of", "color_at", "shape_of", "shape_at", "attribute", "where", "at"),
    *("relation", "relation_color", "relation_yesno", "relation_color_yesno"),
)
"""Kinds of the slots behind them. A scene without two objects on a line repeats `attribute`."""

N_PREFIX = len(PREFIX) + N_IMAGE_TOKENS
_BATCH = 32
_SIDE = CELL // PATCH_SIZE


@dataclass(frozen=True, eq=False)
class Pool:
    """Scenes, their questions, and what the base model makes of them.

    Attributes:
        scenes: The scenes.
        kinds: Kind of each question; `scene slot`.
        has: Whether a shape is in the scene.
        about: Whether a question names a shape, or what it names is of that shape.
        right: Token id of the true answer.
        answer_at: Position in the question at which its answer is predicted.
        prefix: State of `<s> user :` and the image, in front of each block.
        asked: State of the questions, in front of each block.
        vision: State in the vision tower, in front of each block and of the projector.
        projected: What the projector gives.
        logits: Of the base at each answer.
    """

    scenes: list[Scene]
    kinds: list[list[str]]
    has: Bool[Tensor, "scene shape"]
    about: Bool[Tensor, "scene slot shape"]
    right: Int[Tensor, "scene slot"]
    answer_at: Int[Tensor, "scene slot"]
    prefix: list[Float[Tensor, "scene pos d_model"]]
    asked: list[Float[Tensor, "scene slot word d_model"]]
    vision: list[Float[Tensor, "scene patch d_vision"]]
    projected: Float[Tensor, "scene image d_model"]
    logits: Float[Tensor, "scene slot d_vocab"]

    @property
    def n_slots(self) -> int:
        """Questions of each scene."""
        return self.right.shape[1]


def draw_scenes(n: int, seed: int, split: str) -> list[Scene]:
    """Scenes of a split with two to four objects, which give many questions an answer."""
    rng = random.Random(f"planted/{split}/{seed}")
    found: list[Scene] = []
    while len(found) < n:
        scene = random_scene(rng, n_objects=rng.choice((2, 3, 4, 4)))
        if scene.split == split:
            found.append(scene)
    return found


def questions_of(scene: Scene, rng: random.Random) -> list[Question]:
    """One existence question for each shape, then one of every other kind."""
    found = [Question("existence", (shape,)) for shape in SHAPES]
    for kind in OTHERS:
        question = ask(rng, scene, kind) or ask(rng, scene, "attribute")
        assert question is not None, "every scene has an object to ask about"
        found.append(question)
    return found


@torch.no_grad()
def make_pool(model: LVLM, scenes: list[Scene], seed: str) -> Pool:
    """Draw questions to scenes, and run the base model on them once."""
    rng = random.Random(f"planted/questions/{seed}")
    questions = [questions_of(scene, rng) for scene in scenes]
    ids, answer_at = _tokens(questions)
    tail = Tail(model)
    pixels = pixels_of(scenes)
    parts = [
        _run(tail, pixels[i : i + _BATCH], ids[i : i + _BATCH], answer_at[i : i + _BATCH])
        for i in range(0, len(scenes), _BATCH)
    ]
    vision, projected, prefix, asked, logits = zip(*parts, strict=True)

    def joined(states: Sequence[list[Tensor]]) -> list[Tensor]:
        return [torch.cat(layer) for layer in zip(*states, strict=True)]

    words = [
        [truth(scene, question).split()[0] for question in some]
        for scene, some in zip(scenes, questions, strict=True)
    ]
    return Pool(
        scenes,
        [[question.kind for question in some] for some in questions],
        torch.tensor(
            [[scene.find(shape=shape) is not None for shape in SHAPES] for scene in scenes]
        ),
        torch.tensor(
            [
                [_shapes_of(scene, question) for question in some]
                for scene, some in zip(scenes, questions, strict=True)
            ]
        ),
        torch.tensor([[TOKEN_ID[word] for word in some] for some in words]),
        answer_at,
        joined(prefix),
        joined(asked),
        joined(vision),
        torch.cat(projected),
        torch.cat(logits),
    )


def patches_of(thing: SceneObject) -> list[int]:
    """Image tokens of the cell that an object stands in."""
    width = GRID * _SIDE
    start = _SIDE * thing.row * width + _SIDE * thing.col
    return [start + down * width + right for down in range(_SIDE) for right in range(_SIDE)]


def tokens_of(
    pool: Pool, thing: Callable[[Scene], SceneObject | None]
) -> Bool[Tensor, "scene image"]:
    """Image tokens that an object of each scene covers."""
    covered = torch.zeros(len(pool.scenes), N_IMAGE_TOKENS, dtype=torch.bool)
    for row, scene in enumerate(pool.scenes):
        found = thing(scene)
        if found is not None:
            covered[row, patches_of(found)] = True
    return covered


def pixels_of(scenes: Sequence[Scene]) -> Float[Tensor, "scene rgb height width"]:
    """Images as the vision tower takes them."""
    return normalise(torch.from_numpy(np.stack([scene.pixels() for scene in scenes])))


def _shapes_of(scene: Scene, question: Question) -> list[bool]:
    named = {thing.shape for thing in named_objects(scene, question)}
    if question.kind in ("shape_of", "relation_color", "relation_color_yesno"):
        named |= {thing.shape for thing in scene.objects if thing.color in question.args}
    return [shape in named or shape in question.args for shape in SHAPES]


def _tokens(questions: list[list[Question]]) -> tuple[Tensor, Tensor]:
    """Ids of every question with the turn of the assistant behind it, and where it ends."""
    rows = [[encode(question.text) + REPLY for question in some] for some in questions]
    length = max(len(row) for some in rows for row in some)
    padded = [[row + [TOKEN_ID[PAD]] * (length - len(row)) for row in some] for some in rows]
    ends = [[len(row) - 1 for row in some] for some in rows]
    return torch.tensor(padded), torch.tensor(ends)


def _run(
    tail: Tail, pixels: Tensor, ids: Tensor, answer_at: Tensor
) -> tuple[list[Tensor], Tensor, list[Tensor], list[Tensor], Tensor]:
    vision, projected = tail.see(pixels)
    start = torch.tensor([*PREFIX, *[TOKEN_ID[IMAGE]] * N_IMAGE_TOKENS]).expand(len(ids), -1)
    prefix = tail.embed(start)
    prefix[:, len(PREFIX) :] = projected
    asked = tail.embed(ids)
    before, between = [], []

    def note(state: Tensor) -> None:
        before.append(state[:, :N_PREFIX].clone())
        between.append(state[:, N_PREFIX:].unflatten(1, ids.shape[1:]).clone())

    logits = tail.read(0, prefix, asked, answer_at, note=note)
    return vision, projected, before, between, logits
