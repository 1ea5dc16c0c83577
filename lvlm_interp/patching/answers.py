"""Metrics of an answer that has several spellings: they count together.

A model that says "Yes" or " yes" has said yes. The logit of a set of words is logsumexp of theirs,
the logit of the event that one of them comes next: softmax of it beside all other logits is the sum
of their probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.data.checks import id_in_reply
from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.patching.metrics import Metric

Spellings = Callable[[str], Sequence[str]]
"""Other words that mean the same, the word itself among them."""


def spellings(word: str) -> tuple[str, ...]:
    """A word as it is, in small letters, with a capital and in capitals."""
    return tuple(dict.fromkeys((word, word.lower(), word.capitalize(), word.upper())))


def answer_set_metric(model: LVLM, *, against: str = "foil", same: Spellings = spellings) -> Metric:
    """A metric for any method here: the answer in all its spellings.

    Args:
        model: Whose tokenizer says which token each spelling begins with: in the reply, behind a
            blank, and at the start of a text.
        against: `foil` gives logsumexp(answer) - logsumexp(foil) in logits, tokens that begin
            both left out; `all` the log-probability of the set, in nats.
        same: Spellings of a word.

    Returns:
        A function of (logits at the answer, pairs), as `metric=` takes.

    Raises:
        UsageError: An unknown `against`.
    """
    if against not in ("foil", "all"):
        raise UsageError(f"against={against!r}: expected 'foil' or 'all'.")

    @cache
    def ids(word: str, reply: str) -> tuple[int, ...]:
        return token_ids(model, word, reply, same)

    def apart(pair: ContrastPair) -> tuple[list[int], list[int]]:
        first, second = (set(ids(word, pair.clean.reply)) for word in (pair.answer, pair.foil))
        if first <= second or second <= first:
            raise UsageError(
                f"Pair {pair.id!r}: spellings of the answer {pair.answer!r} and of the foil "
                f"{pair.foil!r} begin with the same tokens: choose words that can be told apart."
            )
        return sorted(first - second), sorted(second - first)

    def metric(
        logits: Float[Tensor, "pair d_vocab"], pairs: Sequence[ContrastPair]
    ) -> Float[Tensor, " pair"]:
        values = []
        for row, pair in zip(logits, pairs, strict=True):
            if against == "foil":
                answer, foil = apart(pair)
                values.append(row[answer].logsumexp(-1) - row[foil].logsumexp(-1))
            else:
                mine = list(ids(pair.answer, pair.clean.reply))
                values.append(row[mine].logsumexp(-1) - row.logsumexp(-1))
        return torch.stack(values)

    metric.__name__ = "answer_set_" + ("logit_diff" if against == "foil" else "logprob")
    return metric


def token_ids(
    model: LVLM, word: str, reply: str = "", same: Spellings = spellings
) -> tuple[int, ...]:
    """First tokens of every spelling of a word, sorted.

    Raises:
        InputError: The tokenizer knows none of them.
    """
    found = set()
    for each in same(word):
        try:
            found.add(int(id_in_reply(model, each, reply)))
        except InputError:
            pass  # a vocabulary need not have every spelling
        for text in (each, f" {each}"):
            found |= _first_token(model, text)
    if not found:
        raise InputError(f"The model's tokenizer knows no spelling of {word!r}.")
    return tuple(sorted(found))


def _first_token(model: LVLM, text: str) -> set[int]:
    tokenizer = model.tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    # A blank of its own stands for every word, and the unknown token for every unknown one.
    ids = [i for i in ids if tokenizer.decode([i]).strip()]
    return {int(i) for i in ids[:1] if i != tokenizer.unk_token_id}
