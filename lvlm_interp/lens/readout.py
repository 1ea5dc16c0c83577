"""From a residual stream to words: final norm, unembedding, top words, ranks, entropy.

Everything that a lens needs of the vocabulary-sized logits is taken while a chunk of them is in
memory, so that the memory is bounded whatever the number of tokens and layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.models.maps import BlockMaps
from lvlm_interp.sites import Site

NORMS = ("final", "none")
CHUNK_BYTES = 64 * 2**20
"""Bytes of logits, exponentials and their copy that one chunk may take."""

Translator = Callable[[Float[Tensor, "token d_model"]], Float[Tensor, "token d_model"]]


@dataclass(frozen=True)
class Readout:
    """What is kept of the logits of many tokens.

    Attributes:
        top_ids: Most probable tokens, best first; shape `token k`.
        top_probs: Their probabilities; shape `token k`.
        word_probs: Probability of each chosen word; shape `token word`.
        word_ranks: How many tokens are more probable than the word, so 0 is the top; `token word`.
        entropy: Of the distribution, in nats; shape `token`.
    """

    top_ids: Int[np.ndarray, "token k"]
    top_probs: Float[np.ndarray, "token k"]
    word_probs: Float[np.ndarray, "token word"]
    word_ranks: Int[np.ndarray, "token word"]
    entropy: Float[np.ndarray, " token"]


class Decoder:
    """Final norm and unembedding of a model, as its own forward applies them.

    Attributes:
        model: The model.
        norm: `final` applies the model's final norm once; `none` leaves the vector as it is.
    """

    def __init__(self, model: LVLM, norm: str = "final") -> None:
        if norm not in NORMS:
            raise UsageError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}.")
        self.model = model
        self.norm = norm

    def logits(self, hidden: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_vocab"]:
        """Logits in float32; the gradient flows if `hidden` has one."""
        return self.model.unembed(hidden, norm=self.norm == "final").float()

    def chunks(
        self, hidden: Float[Tensor, "token d_model"], chunk_bytes: int = CHUNK_BYTES
    ) -> Iterator[Float[Tensor, "chunk d_model"]]:
        """The tokens in parts whose logits fit into `chunk_bytes`."""
        size = max(1, chunk_bytes // (3 * 4 * self.model.d_vocab))
        yield from hidden.split(size)


def read(
    decoder: Decoder,
    hidden: Float[Tensor, "token d_model"],
    *,
    top_k: int,
    word_ids: Sequence[Sequence[int]] = (),
    translator: Translator | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Readout:
    """Decode tokens chunk by chunk.

    Args:
        decoder: Of the model.
        hidden: States to decode.
        top_k: How many words to keep.
        word_ids: Token ids that stand for each chosen word; their probabilities are summed and the
            best of their ranks is kept.
        translator: Applied to the states first (tuned lens).
        chunk_bytes: Bound of the memory.
    """
    parts = []
    with torch.no_grad():
        for chunk in decoder.chunks(hidden, chunk_bytes):
            states = chunk if translator is None else translator(chunk)
            parts.append(_read_chunk(decoder.logits(states), top_k, word_ids))
    return Readout(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))


def _read_chunk(
    logits: Tensor, top_k: int, word_ids: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    top, top_ids = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    peak = top[:, :1]
    # Every rank needs the logits as they are; they are turned into weights in place afterwards.
    ranks = [
        (logits > logits[:, list(ids)].max(dim=-1, keepdim=True).values).sum(dim=-1)
        for ids in word_ids
    ]
    chosen = [logits[:, list(ids)] - peak for ids in word_ids]
    shifted = logits.sub_(peak) if not logits.requires_grad else logits - peak
    weights = shifted.exp()
    total = weights.sum(dim=-1, keepdim=True)
    # H = log Z - E[logit]
    entropy = total.log()[:, 0] - torch.linalg.vecdot(weights, shifted) / total[:, 0]
    empty = logits.new_zeros(len(logits), 0)
    probs = [values.exp().sum(dim=-1) / total[:, 0] for values in chosen]
    return (
        top_ids,
        (top - peak).exp() / total,
        torch.stack(probs, dim=1) if probs else empty,
        torch.stack(ranks, dim=1) if ranks else empty.long(),
        entropy.clamp_min(0),
    )


_BLANK = "\u2423"
"""How a blank is shown where it tells two tokens apart."""


def word_token_ids(model: LVLM, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Token ids that stand for each word.

    The rule: a word is its first piece, as it stands at the start of a text, behind a space, and
    as the first word of an answer under the model's chat template. These spellings (often one id)
    count together.

    Raises:
        InputError: The tokenizer does not know a word, or two words share their first piece and so
            cannot be told apart.
    """
    ids = tuple(_first_pieces(model, word) for word in words)
    for i, mine in enumerate(ids):
        for j in range(i):
            if set(mine) & set(ids[j]):
                raise InputError(
                    f"The words {words[j]!r} and {words[i]!r} begin with the same token, so a lens "
                    "cannot tell them apart: choose words with different first pieces."
                )
    return ids


def _first_pieces(model: LVLM, word: str) -> tuple[int, ...]:
    tokenizer: Any = model.tokenizer
    found = []
    for text in (word, f" {word}"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        # Some tokenizers give the space a piece of its own.
        ids = [i for i in ids if tokenizer.decode([i]).strip()]
        if ids and ids[0] != tokenizer.unk_token_id:
            found.append(int(ids[0]))
    try:
        answer = int(model.answer_id(word))
    except InputError:
        if not found:
            raise InputError(
                f"The model's tokenizer has no token for the word {word!r}: choose a word that it "
                "knows."
            ) from None
    else:
        # A template may continue with a lone space, which stands for every word.
        found += [answer] if tokenizer.decode([answer]).strip() else []
    return tuple(dict.fromkeys(found))


def contrast_ids(model: LVLM, answers: Sequence[str], foils: Sequence[str]) -> Int[Tensor, "row 2"]:
    """First token of each row's answer and foil.

    Raises:
        UsageError: They are the same token, so no logit tells them apart.
        InputError: The tokenizer does not know one of them.
    """
    ids = [[model.answer_id(a), model.answer_id(f)] for a, f in zip(answers, foils, strict=True)]
    for (first, second), answer, foil in zip(ids, answers, foils, strict=True):
        if first == second:
            raise UsageError(
                f"The answer {answer!r} and the foil {foil!r} begin with the same token: choose "
                "words whose first tokens differ."
            )
    return torch.tensor(ids, device=model.device)


def apart(model: LVLM, words: Sequence[str]) -> list[list[str]]:
    """Words in as few lists as they come in order, of which none holds two that share a piece."""
    lists: list[tuple[set[int], list[str]]] = []
    for word in dict.fromkeys(words):
        ids = set(_first_pieces(model, word))
        fitting = next((each for each in lists if not each[0] & ids), None)
        if fitting is None:
            lists.append((ids, [word]))
        else:
            fitting[0].update(ids)
            fitting[1].append(word)
    return [found for _, found in lists]


def decode_ids(model: LVLM, ids: Int[np.ndarray, ...]) -> dict[int, str]:
    """The text of each token id that occurs in `ids`, no text twice.

    Texts are bare where that tells them apart; else the blanks around them are shown, then the
    piece as the tokenizer spells it (parts of a character decode to the same mark).
    """
    tokenizer: Any = model.tokenizer
    names: dict[int, str] = {}
    left = [int(i) for i in np.unique(ids)]
    raw = {i: tokenizer.decode([i]) for i in left}
    for spell in (
        lambda i: raw[i].strip() or repr(raw[i]),
        lambda i: raw[i].replace(" ", _BLANK) if raw[i].strip() else repr(raw[i]),
        lambda i: str(tokenizer.convert_ids_to_tokens(i)),
        lambda i: f"{raw[i].strip()} ({i})",
    ):
        found = {i: spell(i) for i in left}
        counts = Counter(found.values())
        taken = set(names.values())
        names |= {i: text for i, text in found.items() if counts[text] == 1 and text not in taken}
        left = [i for i in left if i not in names]
    return names


def head_outputs(
    model: LVLM, site: Site, z: Float[Tensor, "token head d_head"]
) -> Float[Tensor, "head token d_model"]:
    """What each head alone adds to the residual stream: z_h W_O^h, without the bias.

    A norm behind the output projection (Gemma-2 and -3) keeps the scale that it has in this run;
    LayerScale and gates are in it.
    """
    assert site.layer is not None
    maps = BlockMaps(model, site.tower, site.layer, crossed=site.name.startswith("cross_"))
    return maps.writes(z).heads.to(z.dtype)
