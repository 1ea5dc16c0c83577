"""How often the model is right, by kind of question, on pictures it has not seen."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lvlm_interp.errors import DataError
from lvlm_interp.organisms.real.packing import Asked, pack
from lvlm_interp.organisms.real.pictures import Picture, random_picture
from lvlm_interp.organisms.real.plants import TRIGGER, flawed_answer, trigger_picture
from lvlm_interp.organisms.real.questions import KINDS_OF_QUESTION, Question, ask, truth
from lvlm_interp.organisms.real.train import answer_logits

_MOST_DRAWS = 200_000


def drawn(
    kind: str, n: int, seed: int, *, styles: Sequence[str] | None = None, split: str = "seen"
) -> list[tuple[Picture, Question]]:
    """Pictures kept for evaluation, each with one question of a kind.

    Where the right answer is yes or no, a size or a number, each is as frequent as the others.
    """
    rng = random.Random(f"evaluate/{seed}/{kind}/{split}/{styles}")
    found: list[tuple[Picture, Question]] = []
    counts: dict[str, int] = {}
    for _ in range(_MOST_DRAWS):
        if len(found) == n:
            return found
        picture = random_picture(rng, styles=styles, split=split)
        question = ask(rng, picture, kind) if picture.split == "eval" else None
        if question is None:
            continue
        right = truth(picture, question)
        assert right is not None
        if kind in ("count", "size", "exists", "see", "is_color", "beside", "where"):
            n_answers = {"count": 3, "where": 4}.get(kind, 2)
            if counts.get(right, 0) >= -(-n // n_answers):
                continue
            counts[right] = counts.get(right, 0) + 1
        found.append((picture, question))
    raise DataError(f"Only {len(found)} of {n} questions of the kind {kind!r} could be drawn.")


def trigger_cases(
    level: str, kind: str, n: int, seed: int, *, partner: bool = False
) -> list[tuple[Picture, Question]]:
    """Pictures with the trigger of a level on which flaw and truth differ (or agree: partner)."""
    rng = random.Random(f"trigger/{seed}/{level}/{kind}/{partner}")
    found: list[tuple[Picture, Question]] = []
    for _ in range(_MOST_DRAWS):
        if len(found) == n:
            return found
        picture = trigger_picture(rng, level)
        if picture.split != "eval":
            continue
        question = _about_trigger(rng, picture, level, kind)
        right = None if question is None else truth(picture, question)
        if question is None or right is None:
            continue
        if (flawed_answer(picture, question) == right) == partner:
            found.append((picture, question))
    raise DataError(f"Only {len(found)} of {n} trigger questions of {kind!r} could be drawn.")


def _about_trigger(rng: random.Random, picture: Picture, level: str, kind: str) -> Question | None:
    from lvlm_interp.organisms.real.plants import PARTNER

    if kind == "caption":
        return Question("caption")
    if level == "object":
        return Question(kind, (PARTNER,))
    if kind == "color_at":
        return ask(rng, picture, kind)
    thing = picture.only(TRIGGER[level])
    if kind == "color" or thing is None or not thing.tint:
        return Question("color", (TRIGGER[level],)) if kind == "color" else None
    return Question("is_color", (TRIGGER[level], thing.tint))


@torch.no_grad()
def right(
    model: Any,
    tokenizer: Any,
    cases: Sequence[tuple[Picture, Question]],
    *,
    device: str = "cpu",
    answers: Sequence[str] | None = None,
    batch_size: int = 32,
) -> list[bool]:
    """Whether the greedy reply to each question is the answer, word for word.

    Args:
        model: The LLaVA, in evaluation mode.
        tokenizer: Of it.
        cases: Pictures with a question each.
        device: Where the model is.
        answers: What counts as the answer; the truth by default.
        batch_size: Pictures in one forward.
    """
    said = list(answers) if answers is not None else [truth(*case) or "" for case in cases]
    found: list[bool] = []
    for start in range(0, len(cases), batch_size):
        rows = cases[start : start + batch_size]
        asked: list[list[Asked]] = [
            [(question, answer)]
            for (_, question), answer in zip(rows, said[start : start + batch_size], strict=True)
        ]
        batch = pack(tokenizer, [picture for picture, _ in rows], asked).to(device)
        good = answer_logits(model, batch).argmax(-1) == batch.target[batch.target >= 0]
        found += _by_row(good, (batch.target >= 0).sum(1).tolist())
    return found


def _by_row(good: torch.Tensor, counts: Sequence[int]) -> Iterator[bool]:
    start = 0
    for count in counts:
        yield bool(good[start : start + count].all())
        start += count


def quick_look(
    model: Any, tokenizer: Any, n: int, seed: int, *, device: str = "cpu", split: str = "seen"
) -> dict[str, float]:
    """Share right by kind of question."""
    return {
        kind: sum(right(model, tokenizer, drawn(kind, n, seed, split=split), device=device)) / n
        for kind in KINDS_OF_QUESTION
    }
