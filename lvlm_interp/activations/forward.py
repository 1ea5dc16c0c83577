"""Runs examples in batches of like length: one path for memory and for disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from lvlm_interp.activations.captions import Taken, split_roles, with_captions
from lvlm_interp.activations.gather import Gather, Missing
from lvlm_interp.activations.roles import Role, roles_of
from lvlm_interp.data.examples import Example
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.images import image_size
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.sites import Site

__all__ = ["Chunk", "Runner", "to_numpy"]

OWN_COLUMNS = tuple("example group level prompt answer foil said wrong margin n_tokens".split())
"""Columns of the label frame that every data set has; an example's labels follow."""

TOKEN_COLUMNS = ("ids", "kind", "row", "col", "tile", "box")
"""What is kept of the token map of each example."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """Activations and labels of some examples, in their order.

    Attributes:
        pooled: By site; shape `example position ...`, positions in the order of the roles that
            are averaged and exist in the site's tower.
        every: By site and role name, for roles that keep every token; shape `token ...`, the
            examples' tokens one after the other.
        counts: Tokens of each example, by tower and role name, for the same roles.
        rows: One record per example: see `OWN_COLUMNS`, then the example's labels.
        token_maps: One record per example, of `TOKEN_COLUMNS`: arrays over its positions.
    """

    pooled: dict[Site, np.ndarray]
    every: dict[tuple[Site, str], np.ndarray]
    counts: dict[tuple[str, str], np.ndarray]
    rows: list[dict[str, Any]]
    token_maps: list[dict[str, np.ndarray]]


class Runner:
    """Takes activations of lists of examples, always in the same way for the same list.

    Attributes:
        model: The model.
        sites: What to record.
        roles: Where.
        batch_size: Examples per forward; halves itself when memory runs out.
        dtype: Of what is kept; None keeps the model's.
        missing: What a role does that an example lacks.
    """

    def __init__(
        self,
        model: LVLM,
        sites: Sequence[Site],
        roles: Sequence[Role],
        *,
        batch_size: int,
        dtype: torch.dtype | None = None,
        missing: Missing = "raise",
    ) -> None:
        self.model, self.sites, self.roles = model, tuple(sites), tuple(roles)
        self.batch_size = batch_size
        self.missing: Missing = missing
        self.dtype = dtype or model.dtype
        self._answers: dict[str, int] = {}
        self._words: dict[int, str] = {}

    def run(self, examples: Sequence[Example]) -> Chunk:
        """Activations and labels of the examples.

        Raises:
            InputError: An example lacks a role, or does not fit the model.
        """
        parts: list[tuple[list[int], Chunk]] = []
        waiting = _by_length(self.model, examples)
        while waiting:
            now, waiting = waiting[: self.batch_size], waiting[self.batch_size :]
            try:
                parts.append((now, self._batch([examples[index] for index in now])))
            except RuntimeError as error:
                if not _out_of_memory(error) or self.batch_size == 1:
                    raise
                waiting = now + waiting
                self.batch_size = (len(now) + 1) // 2
                _log.warning("memory ran out: the batch size is now %d", self.batch_size)
        return _joined(parts)

    def _batch(self, examples: Sequence[Example]) -> Chunk:
        inputs = self.model.prepare(list(examples))
        prompted, described = split_roles(self.roles)
        here = self.sites if prompted == self.roles else _with_roles(self.sites, prompted)
        taken, logits = self._gathered(inputs, here, prompted)
        if described:
            taken = with_captions(
                taken, self._described, examples, self.sites, self.roles, self.missing
            )
        rows = self._rows(examples, inputs, logits.float())
        return Chunk(*taken, rows, [_token_map(inputs, i) for i in range(len(rows))])

    def _described(
        self, texts: list[Example], sites: Sequence[Site], roles: Sequence[Role]
    ) -> Taken:
        return self._gathered(self.model.prepare(texts), sites, roles)[0]

    def _gathered(
        self, inputs: Inputs, sites: Sequence[Site], roles: Sequence[Role]
    ) -> tuple[Taken, Tensor]:
        """What the roles have at the sites in one forward, and its last logits."""
        if not sites:
            return ({}, {}, {}), self.model.last_logits(inputs)
        gather = Gather(inputs, roles, self.missing)
        with self.model.record(sites, keep=gather) as cache:
            logits = self.model.last_logits(inputs)
        pooled, every, counts = {}, {}, {}
        for site in sites:
            values = to_numpy(cache[site], self.dtype)
            picked = gather.of(site)
            split = picked.n_pooled * inputs.batch_size
            shape = (inputs.batch_size, picked.n_pooled, *values.shape[1:])
            pooled[site] = values[:split].reshape(shape)
            start = split
            for role in roles_of(site, roles, pooled=False):
                n = int(picked.counts[role.name].sum())
                every[site, role.name] = values[start : start + n]
                counts[site.tower, role.name] = picked.counts[role.name]
                start += n
        return (pooled, every, counts), logits

    def _rows(
        self, examples: Sequence[Example], inputs: Inputs, logits: Tensor
    ) -> list[dict[str, Any]]:
        said, values = logits.argmax(-1).tolist(), logits.cpu().numpy()
        rows = []
        for index, (example, token) in enumerate(zip(examples, said, strict=True)):
            answer, foil = (self._answer(word) for word in (example.answer, example.foil))
            both = answer is not None and foil is not None
            row = {
                "example": example.id,
                "group": example.group,
                "level": example.level,
                "prompt": example.prompt,
                "answer": example.answer,
                "foil": example.foil,
                "said": self._word(token),
                "wrong": None if answer is None else token != answer,
                "margin": float(values[index, answer] - values[index, foil]) if both else np.nan,
                "n_tokens": len(inputs.tokens[index].real),
            }
            for name, value in example.labels.items():
                row[f"label_{name}" if name in OWN_COLUMNS else str(name)] = _plain(value)
            rows.append(row)
        return rows

    def _word(self, token: int) -> str:
        if token not in self._words:
            self._words[token] = self.model.tokenizer.decode([token]).strip()
        return self._words[token]

    def _answer(self, word: str | None) -> int | None:
        if word is None:
            return None
        if word not in self._answers:
            self._answers[word] = self.model.answer_id(word)
        return self._answers[word]


def _with_roles(sites: Sequence[Site], roles: Sequence[Role]) -> tuple[Site, ...]:
    return tuple(site for site in sites if any(role.applies_to(site.tower) for role in roles))


def to_numpy(value: Tensor, dtype: torch.dtype) -> np.ndarray:
    """A tensor as an array of a dtype, bfloat16 too."""
    value = value.to("cpu", dtype).contiguous()
    if dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def _by_length(model: LVLM, examples: Sequence[Example]) -> list[int]:
    """Indices ordered by length, so that a batch pads little: by prompt, then by image size."""
    lengths: dict[str, int] = {}
    for example in examples:
        if example.prompt not in lengths:
            lengths[example.prompt] = len(model.tokenizer(example.prompt).input_ids)
    keys = [(_area(example), lengths[example.prompt], i) for i, example in enumerate(examples)]
    return [index for _, _, index in sorted(keys)]


def _area(example: Example) -> int:
    sizes = [image_size(image) for image in example.images]
    return sum(width * height for width, height in sizes)


def _out_of_memory(error: RuntimeError) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    words = str(error).lower()
    return "can't allocate memory" in words or "not enough memory" in words


def _joined(parts: Sequence[tuple[list[int], Chunk]]) -> Chunk:
    """The batches' chunks as one, back in the order of the examples."""
    order = np.argsort(np.concatenate([index for index, _ in parts]))
    chunks = [chunk for _, chunk in parts]
    first = chunks[0]
    counts = {key: np.concatenate([c.counts[key] for c in chunks]) for key in first.counts}
    every = {}
    for site, role in first.every:
        rows = np.repeat(np.arange(len(order)), counts[site.tower, role])
        values = np.concatenate([chunk.every[site, role] for chunk in chunks])
        every[site, role] = values[np.argsort(np.argsort(order)[rows], kind="stable")]
    maps = [record for chunk in chunks for record in chunk.token_maps]
    records = [row for chunk in chunks for row in chunk.rows]
    return Chunk(
        pooled={
            site: np.concatenate([chunk.pooled[site] for chunk in chunks])[order]
            for site in first.pooled
        },
        every=every,
        counts={key: value[order] for key, value in counts.items()},
        rows=[records[index] for index in order],
        token_maps=[maps[index] for index in order],
    )


def _token_map(inputs: Inputs, row: int) -> dict[str, np.ndarray]:
    tokens = inputs.tokens[row]
    real = tokens.real
    return {name: getattr(tokens, name)[real] for name in TOKEN_COLUMNS}


def _plain(value: Any) -> Any:
    """A label that a table can hold."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    return json.dumps(value, sort_keys=True, default=str)
