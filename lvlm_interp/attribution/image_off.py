"""Runs without the image: what the answer's probability is when the image says nothing.

Image off decides everything. An empty picture is evidence that nothing is there, and a text-only
run is out of what the model was trained on; only the mean probability over other images, balanced
over their answers, finds a model without a prior prior-free. So `balanced` is the default, and the
others are there to be compared.

- `balanced`: the log of the mean probability over up to 32 other images of the same question, as
  many for each right answer; the example's own group is left out.
- `text_only`: the prompt without an image.
- `mean`: the mean of the images of that size, pixel by pixel. `grey`: an even grey.
- `knockout`: the image is there and no text position reads it: attention to image tokens is cut in
  every layer of the language model, cross-attention silenced.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lvlm_interp.attribution.replies import token_logprobs
from lvlm_interp.data.examples import Example
from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM, Edit
from lvlm_interp.sites import Site

BASELINES = ("balanced", "text_only", "mean", "grey", "knockout")
MOST_DONORS = 32
LEAST_DONORS = 8
FALLBACK = "mean"
"""What stands in where `balanced` has too few donors."""


@dataclass
class Counter:
    """How many rows went through the model."""

    rows: int = 0


@dataclass(frozen=True)
class Off:
    """Log-probabilities of each example's reply with the image off.

    Attributes:
        logprobs: Of each token, one tensor an example.
        names: Which baseline was run for each example.
    """

    logprobs: list[Tensor]
    names: list[str]


@dataclass
class Runner:
    """Scores replies with the image on and off, and counts what that costs.

    Attributes:
        model: The model.
        seed: Of the choice of donors.
        batch_size: Rows in one forward.
        pool: Where donors come from: examples whose images may stand in for others'.
        count: Rows that went through the model.
    """

    model: LVLM
    seed: int = 0
    batch_size: int = 16
    pool: Sequence[Example] = ()
    count: Counter = field(default_factory=Counter)

    def on(self, examples: Sequence[Example], replies: Sequence[str]) -> list[Tensor]:
        """With the image."""
        self.count.rows += len(examples)
        return token_logprobs(self.model, examples, replies, batch_size=self.batch_size)

    def off(self, name: str, examples: Sequence[Example], replies: Sequence[str]) -> Off:
        """Without it.

        Args:
            name: One of `BASELINES`.
            examples: One question each.
            replies: The reply to each.

        Raises:
            UsageError: There is no such baseline.
        """
        if name == "balanced":
            return self._balanced(examples, replies)
        if name not in BASELINES:
            raise UsageError(f"image_off={name!r}: expected one of {', '.join(BASELINES)}.")
        logprobs = _WAYS[name](self, examples, replies)
        return Off(logprobs, [name] * len(examples))

    def _balanced(self, examples: Sequence[Example], replies: Sequence[str]) -> Off:
        by_question: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for index, (example, reply) in enumerate(zip(examples, replies, strict=True)):
            by_question[example.prompt, example.reply, reply].append(index)
        found: list[Tensor | None] = [None] * len(examples)
        names = ["balanced"] * len(examples)
        alone: list[int] = []
        for (_, _, reply), members in by_question.items():
            first = examples[members[0]]
            donors = self._donors(first)
            if donors is None:
                alone += members
                continue
            rows = [replace(first, image=donor.image) for donor in donors]
            runs = self.on(rows, [reply] * len(rows))
            for index in members:
                found[index] = _mean_over_others(runs, donors, examples[index])
        alone += [i for i, value in enumerate(found) if value is None and i not in alone]
        if alone:
            rest = self.off(FALLBACK, [examples[i] for i in alone], [replies[i] for i in alone])
            for index, value in zip(alone, rest.logprobs, strict=True):
                found[index], names[index] = value, FALLBACK
        return Off([value for value in found if value is not None], names)

    def _donors(self, example: Example) -> list[Example] | None:
        """Other examples of the same question, as many for each right answer; None if too few."""
        asked = question_of(example)
        classes: dict[str, list[Example]] = defaultdict(list)
        for other in self.pool:
            same = question_of(other) == asked and other.image is not None
            if same and other.answer is not None and _same_size(other, example):
                classes[other.answer].append(other)
        if len(classes) < 2:
            return None
        each = min(MOST_DONORS // len(classes), min(map(len, classes.values())))
        if each * len(classes) < LEAST_DONORS:
            return None
        chosen: list[Example] = []
        for answer in sorted(classes):
            rng = random.Random(f"{self.seed}/{asked}/{answer}")
            chosen += rng.sample(classes[answer], each)
        return chosen


def question_of(example: Example) -> str:
    """The bare question of an example; its prompt where it names none."""
    return example.question or example.prompt


def _same_size(first: Example, second: Example) -> bool:
    return [i.size for i in first.open_images()] == [i.size for i in second.open_images()]


def _mean_over_others(
    runs: Sequence[Tensor], donors: Sequence[Example], example: Example
) -> Tensor | None:
    """Log of the mean probability over donors of other groups, each right answer alike.

    Tokens are the increments of the log of the mean probability of the reply up to them, so that
    they add up to that of the whole reply. None where too few donors are of another group.
    """
    classes: dict[str, list[Tensor]] = defaultdict(list)
    for run, donor in zip(runs, donors, strict=True):
        own = donor.id == example.id or (donor.group is not None and donor.group == example.group)
        if not own:
            classes[donor.answer or ""].append(run.double().cumsum(0))
    if len({donor.answer for donor in donors}) != len(classes):
        return None
    means = [torch.stack(part).logsumexp(0) - np.log(len(part)) for part in classes.values()]
    upto = torch.stack(means).logsumexp(0) - np.log(len(means))
    return torch.diff(upto, prepend=torch.zeros(1, dtype=upto.dtype)).float()


def _with_images(
    change: Callable[[Sequence[Image.Image], tuple[int, int]], Image.Image],
) -> Callable[[Runner, Sequence[Example], Sequence[str]], list[Tensor]]:
    def run(runner: Runner, examples: Sequence[Example], replies: Sequence[str]) -> list[Tensor]:
        same = _by_size([*runner.pool, *examples])
        rows = []
        for example in examples:
            images = [change(same[image.size], image.size) for image in example.open_images()]
            rows.append(replace(example, image=images if len(images) > 1 else images[0]))
        return runner.on(rows, replies)

    return run


def _by_size(examples: Sequence[Example]) -> Mapping[tuple[int, int], list[Image.Image]]:
    found: dict[tuple[int, int], list[Image.Image]] = defaultdict(list)
    for example in examples:
        for image in example.open_images():
            found[image.size].append(image)
    return found


def _mean_image(images: Sequence[Image.Image], _size: tuple[int, int]) -> Image.Image:
    total = np.zeros((*np.asarray(images[0].convert("RGB")).shape,), dtype=np.float64)
    for image in images:
        total += np.asarray(image.convert("RGB"))
    return Image.fromarray((total / len(images)).round().astype(np.uint8))


def _grey(_images: Sequence[Image.Image], size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (128, 128, 128))


def _text_only(runner: Runner, examples: Sequence[Example], replies: Sequence[str]) -> list[Tensor]:
    return runner.on([replace(e, image=None, boxes={}) for e in examples], replies)


def _knockout(runner: Runner, examples: Sequence[Example], replies: Sequence[str]) -> list[Tensor]:
    found: list[Tensor] = []
    for example, reply in zip(examples, replies, strict=True):
        with image_unread(runner.model, example, reply):
            found += runner.on([example], [reply])
    return found


@contextmanager
def image_unread(model: LVLM, example: Example, reply: str) -> Iterator[None]:
    """No text position reads the image while the context is open, for runs of one example.

    Raises:
        SiteError: The model's attention cannot be edited.
    """
    begun = f"{example.reply} {reply}" if example.reply else reply
    tokens = model.prepare(replace(example, reply=begun)).tokens[0]
    image = torch.tensor(tokens.image)

    def cut(scores: Tensor) -> Tensor:
        new = scores.clone()
        readers = torch.ones(new.shape[-2], dtype=torch.bool)
        readers[image] = False
        rows = readers.nonzero()[:, 0].to(new.device)
        lowest = torch.finfo(new.dtype).min
        new[:, :, rows[:, None], image.to(new.device)[None, :]] = lowest
        return new

    text = [site for site in model.sites() if site.tower == "text"]
    crossing = [site for site in text if site.name == "cross_attn_out"]
    edits: dict[str | Site, Edit] = {site: torch.zeros_like for site in crossing}
    if not crossing:
        edits = {site: cut for site in text if site.name == "scores"}
    with model.edit(edits):
        yield


_WAYS: dict[str, Callable[[Runner, Sequence[Example], Sequence[str]], list[Tensor]]] = {
    "text_only": _text_only,
    "mean": _with_images(_mean_image),
    "grey": _with_images(_grey),
    "knockout": _knockout,
}
