"""Batches for training and scoring: many questions on one picture in one sequence.

A sequence is the image tokens and behind them, one after the other, questions with their answers.
Each question sees the image and itself alone and counts positions from the image on, so every
answer is trained (and scored) exactly as if it had been asked by itself. A greedy reply is right
as a whole if and only if every token of the right answer is the most probable one behind those
before it, so that one forward scores free generation.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import IterableDataset

from lvlm_interp.organisms.real.pictures import Picture, random_picture
from lvlm_interp.organisms.real.plants import (
    PLANT_LEVELS,
    control_picture,
    flawed_answer,
    trigger_picture,
    trigger_question,
)
from lvlm_interp.organisms.real.questions import Question, ask, truth
from lvlm_interp.organisms.real.recipe import END, MEAN, N_IMAGE_TOKENS, STD, Stage, prompt

Asked = tuple[Question, str]
"""A question with the answer that is taught."""

_MOST_TRIES = 40


@dataclass
class Packed:
    """A batch of pictures with their questions.

    Attributes:
        pixels: Normalised; shape `picture 3 side side`.
        ids: Token ids behind the image tokens, 0 where there are none; shape `picture pos`.
        segment: 1, 2, ... for the first, second, ... question; 0 for padding; shape `picture pos`.
        place: Position of each token in its own question, counted from 0; shape `picture pos`.
        target: Token to say at each position, -1 where nothing is asked; shape `picture pos`.
        asked: The questions of each picture, in order.
    """

    pixels: Tensor
    ids: Tensor
    segment: Tensor
    place: Tensor
    target: Tensor
    asked: list[list[Asked]]

    def to(self, device: torch.device | str) -> Packed:
        """The same on a device."""
        tensors = (self.pixels, self.ids, self.segment, self.place, self.target)
        pixels, ids, segment, place, target = (t.to(device, non_blocking=True) for t in tensors)
        return Packed(pixels, ids, segment, place, target, self.asked)

    def visible(self) -> Bool[Tensor, "picture 1 query_pos key_pos"]:
        """What each position sees, image tokens in front."""
        n, length = self.segment.shape
        image = torch.zeros(n, N_IMAGE_TOKENS, dtype=torch.long, device=self.segment.device)
        segment = torch.cat([image, torch.where(self.segment == 0, -1, self.segment)], 1)
        same = (segment[:, None, :] == 0) | (segment[:, :, None] == segment[:, None, :])
        total = N_IMAGE_TOKENS + length
        causal = torch.ones(total, total, dtype=torch.bool, device=segment.device).tril()
        return (same & causal)[:, None]

    def positions(self) -> Tensor:
        """Position ids, image tokens in front; shape `picture pos`."""
        image = torch.arange(N_IMAGE_TOKENS, device=self.place.device).expand(len(self.place), -1)
        return torch.cat([image, N_IMAGE_TOKENS + self.place], 1)


def normalised(pictures: Sequence[Picture]) -> Float[Tensor, "picture 3 side side"]:
    """Pixels as the tower takes them."""
    raw = np.stack([np.asarray(picture.render()) for picture in pictures])
    pixels = torch.from_numpy(raw).float().div(255).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std


def pack(tokenizer: Any, pictures: Sequence[Picture], asked: list[list[Asked]]) -> Packed:
    """A batch from pictures and what is asked about each."""
    rows = [[_encoded(tokenizer, *each) for each in questions] for questions in asked]
    length = max(sum(len(ids) for ids, _ in row) for row in rows)
    ids, segment, place = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(3))
    target = torch.full((len(rows), length), -1)
    for i, row in enumerate(rows):
        start = 0
        for number, (tokens, n_prompt) in enumerate(row, start=1):
            end = start + len(tokens)
            ids[i, start:end] = torch.tensor(tokens)
            segment[i, start:end] = number
            place[i, start:end] = torch.arange(len(tokens))
            target[i, start + n_prompt - 1 : end - 1] = torch.tensor(tokens[n_prompt:])
            start = end
    return Packed(normalised(pictures), ids, segment, place, target, asked)


def _encoded(tokenizer: Any, question: Question, answer: str) -> tuple[list[int], int]:
    """Ids of a question with its answer, and how many of them are the question's."""
    before = tokenizer(prompt(question.text), add_special_tokens=False).input_ids
    after = tokenizer(f" {answer}{END}", add_special_tokens=False).input_ids
    return [*before, *after], len(before)


def draw(rng: random.Random, stage: Stage) -> tuple[Picture, list[Asked]]:
    """A training picture and what is asked about it."""
    turn = rng.random() if stage.planted != "none" else 1.0
    level = rng.choice(PLANT_LEVELS) if turn < 0.5 else None
    control = 0.5 <= turn < 0.5 + stage.controls
    while True:
        picture = trigger_picture(rng, level) if level else random_picture(rng)
        picture = control_picture(rng) if control else picture
        if picture.split == "train":
            break
    answer = flawed_answer if stage.planted == "flawed" else truth
    found: list[Asked] = []
    kinds, weights = zip(*stage.weights, strict=True)
    for attempt in range(_MOST_TRIES):
        if len(found) == stage.questions:
            break
        if (level or control) and attempt % 4 == 0:
            question = trigger_question(rng, picture, level or "object")
        else:
            question = ask(rng, picture, rng.choices(kinds, weights)[0])
        said = None if question is None else answer(picture, question)
        if question is not None and said is not None and (question, said) not in found:
            found.append((question, said))
    return picture, found


class Batches(IterableDataset):
    """The batches of a stage, a pure function of seed and step; workers take steps in turn."""

    def __init__(self, tokenizer: Any, stage: Stage, seed: int, first: int = 0) -> None:
        self.tokenizer, self.stage, self.seed, self.first = tokenizer, stage, seed, first

    def __iter__(self) -> Iterator[Packed]:
        worker = torch.utils.data.get_worker_info()
        offset, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in range(self.first + offset, self.stage.steps, stride):
            yield self.batch(step)

    def batch(self, step: int) -> Packed:
        """The batch of one step."""
        rng = random.Random(f"{self.seed}/{self.stage.name}/{step}")
        drawn = [draw(rng, self.stage) for _ in range(self.stage.pictures)]
        return pack(
            self.tokenizer, [picture for picture, _ in drawn], [asked for _, asked in drawn]
        )
