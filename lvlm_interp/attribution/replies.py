"""How probable a model finds a reply: teacher-forced, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.data.examples import Example
from lvlm_interp.errors import InputError
from lvlm_interp.models.inputs.prompts import render_begun
from lvlm_interp.models.lvlm import LVLM


def reply_tokens(model: LVLM, example: Example, reply: str) -> tuple[int, ...]:
    """Token ids with which the model's template says a reply behind what has been said.

    Args:
        model: The model, with its processor.
        example: Its prompt, and its `reply` as what has been said before.
        reply: The words.

    Raises:
        InputError: The reply has no token of its own.
    """
    processor = model.processor
    begun = f"{example.reply} {reply}" if example.reply else reply
    before = render_begun(processor, example.prompt, 0, example.reply)
    after = render_begun(processor, example.prompt, 0, begun)
    first, second = (
        processor.tokenizer(text, add_special_tokens=False).input_ids for text in (before, after)
    )
    same = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first)
    )
    if same >= len(second):
        raise InputError(f"{example.id}: the reply {reply!r} has no token of its own.")
    return tuple(second[same:])


@torch.no_grad()
def token_logprobs(
    model: LVLM, examples: Sequence[Example], replies: Sequence[str], *, batch_size: int = 16
) -> list[Float[Tensor, " token"]]:
    """Log-probability of each token of a reply to each example, in nats.

    Whatever edits are open on the model take part.

    Args:
        model: The model.
        examples: One question each; `reply` is taken as said already.
        replies: The reply to each.
        batch_size: Rows in one forward.
    """
    ids = [reply_tokens(model, e, reply) for e, reply in zip(examples, replies, strict=True)]
    found: list[Tensor] = []
    for start in range(0, len(examples), batch_size):
        chunk = slice(start, start + batch_size)
        rows = [
            replace(e, reply=f"{e.reply} {reply}" if e.reply else reply)
            for e, reply in zip(examples[chunk], replies[chunk], strict=True)
        ]
        found += _one_batch(model, rows, ids[chunk])
    return found


def _one_batch(
    model: LVLM, rows: Sequence[Example], ids: Sequence[tuple[int, ...]]
) -> list[Tensor]:
    inputs = model.prepare(list(rows))
    longest = max(map(len, ids))
    logits = model(inputs, logits_to_keep=longest + 1).float().log_softmax(-1).cpu()
    given = inputs["input_ids"].cpu()
    found = []
    for row, tokens in enumerate(ids):
        n = len(tokens)
        if tuple(given[row, -n:].tolist()) != tuple(tokens):
            raise InputError(
                f"{rows[row].id}: the processor writes the reply {rows[row].reply!r} with other "
                "tokens than the tokenizer; score a reply that begins with a word of its own."
            )
        found.append(logits[row, -n - 1 : -1].gather(-1, torch.tensor(tokens)[:, None])[:, 0])
    return found
