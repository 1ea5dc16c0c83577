"""Asking a model: one pass gives the words and the probabilities of yes and no."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lvlm_interp.data.examples import Example
from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.evaluation.judging import Reply
from lvlm_interp.models.lvlm import LVLM

__all__ = ["Asking", "ask", "poll_tokens"]

By = Literal["both", "logits", "generation"]

_LENGTHS: Mapping[str, int] = {"poll": 8, "pair": 8, "open": 16, "describe": 512}
_POLLS = ("poll", "pair")


@dataclass(frozen=True)
class Asking:
    """How questions are put and replies are made; every field decides figures, so all are kept.

    Attributes:
        suffix: Put behind every question after a line break, such as "Answer yes or no.".
        max_new_tokens: Tokens of a reply, by task.
        by: Polls by `logits` (one forward: yes or no, whichever is likelier), by `generation` (the
            reply is read), or `both` in one pass: the reply is read, probabilities stand beside.
        batch_size: Questions in a forward.
        prefix: Put before every question.
    """

    suffix: str = ""
    max_new_tokens: Mapping[str, int] = field(default_factory=lambda: dict(_LENGTHS))
    by: By = "both"
    batch_size: int = 32
    prefix: str = ""

    def __post_init__(self) -> None:
        if self.by not in ("both", "logits", "generation"):
            raise UsageError(f"by must be both, logits or generation, got {self.by!r}")
        if self.batch_size < 1 or any(n < 1 for n in self.max_new_tokens.values()):
            raise UsageError("batch_size and max_new_tokens must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def question(self, example: Example) -> str:
        """The words of the prompt."""
        text = f"{self.prefix}{example.prompt}"
        return f"{text}\n{self.suffix}" if self.suffix else text

    def length(self, example: Example) -> int:
        """How many tokens its reply may have."""
        return self.max_new_tokens.get(task_of(example), max(self.max_new_tokens.values()))


def task_of(example: Example) -> str:
    """Its task: the label, or poll for a question whose answer is yes or no, else describe."""
    task = example.labels.get("task")
    if task is not None:
        return str(task)
    return "poll" if example.answer in ("yes", "no") else "describe"


def poll_tokens(model: LVLM) -> dict[str, list[int]]:
    """First tokens of yes and of no, in both spellings, as the model's template continues.

    Raises:
        InputError: The tokenizer has no token for either spelling of a word, or one for both words.
    """
    found: dict[str, list[int]] = {}
    for word in ("yes", "no"):
        ids = set()
        for spelling in (word, word.capitalize(), word.upper()):
            try:
                ids.add(model.answer_id(spelling))
            except InputError:
                continue
        found[word] = sorted(ids)
    if not (found["yes"] and found["no"]) or set(found["yes"]) & set(found["no"]):
        raise InputError("The model's tokenizer does not tell yes from no by a first token.")
    return found


class _Recorder:
    """Keeps what `generate` knows at each step: the first logits, and how sure each choice was."""

    def __init__(self, tokens: Mapping[str, Sequence[int]] | None) -> None:
        self.tokens = tokens
        self.first: Tensor | None = None
        self.chosen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logs = scores.float().log_softmax(-1)
        if self.first is None and self.tokens is not None:
            ids = [token for word in ("yes", "no") for token in self.tokens[word]]
            self.first = logs[:, ids]
        self.chosen.append(logs.max(-1).values)
        return scores


@torch.no_grad()
def ask(model: LVLM, examples: Sequence[Example], how: Asking) -> list[Reply]:
    """Replies to a batch of questions of one task.

    Args:
        model: With whatever edits are open.
        examples: All of one task.
        how: Suffix, lengths, by what.
    """
    rows = [replace(example, prompt=how.question(example)) for example in examples]
    inputs = model.prepare(rows)
    polls = task_of(examples[0]) in _POLLS
    tokens = poll_tokens(model) if polls and how.by != "generation" else None
    if polls and how.by == "logits":
        assert tokens is not None
        logs = model.last_logits(inputs).float().log_softmax(-1)
        ids = [token for word in ("yes", "no") for token in tokens[word]]
        return [_preferred(*pair) for pair in _yes_no(logs[:, ids], tokens)]
    recorder = _Recorder(tokens)
    texts = model.generate(
        inputs, max_new_tokens=how.length(examples[0]), logits_processor=[recorder]
    )
    assert not isinstance(texts, Tensor), "a model that was prepared for has a processor"
    pairs = [(math.nan, math.nan)] * len(texts)
    if recorder.first is not None:
        assert tokens is not None
        pairs = _yes_no(recorder.first, tokens)
    sure = _geometric_means(model, texts, recorder.chosen)
    return [
        Reply(text, *pair, conviction=math.nan if polls else mean)
        for text, pair, mean in zip(texts, pairs, sure, strict=True)
    ]


def _yes_no(logs: Tensor, tokens: Mapping[str, Sequence[int]]) -> list[tuple[float, float]]:
    """Probabilities of yes and of no, over their spellings."""
    n = len(tokens["yes"])
    yes, no = logs[:, :n].exp().sum(-1), logs[:, n:].exp().sum(-1)
    return list(zip(yes.tolist(), no.tolist(), strict=True))


def _preferred(p_yes: float, p_no: float) -> Reply:
    word = "none" if p_yes == p_no else "yes" if p_yes > p_no else "no"
    return Reply(word, p_yes, p_no, said=word)


def _geometric_means(model: LVLM, texts: Sequence[str], chosen: Sequence[Tensor]) -> list[float]:
    """Geometric mean of the probabilities of each reply's tokens, as greedy choices."""
    if not chosen:
        return [math.nan] * len(texts)
    logs = torch.stack(list(chosen), dim=1)
    lengths = [len(model.tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    return [
        math.exp(float(row[: max(1, min(n, len(row)))].mean()))
        for row, n in zip(logs, lengths, strict=True)
    ]
