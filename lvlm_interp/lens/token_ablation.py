"""Ablating image tokens: which of them does an answer need?

Neo et al. 2024, "Towards Interpreting Visual Information Processing in Vision-Language Models",
section 3: the image features that enter the language model are replaced at the tokens of the
object, of the object and its neighbours, of registers (tokens of outlying norm), and of as many
random tokens, and the answer is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lvlm_interp.errors import UsageError
from lvlm_interp.lens.positions import in_batches
from lvlm_interp.lens.readout import contrast_ids
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.provenance import provenance
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.tokens import TokenMap

KINDS = ("zero", "mean", "noise")
GROUPS = ("object", "object+neighbours", "registers", "random")
SITE = "text.embed"


@dataclass(frozen=True, repr=False)
class TokenAblation(Result):
    """What the answer loses without some image tokens.

    `table` has a row per example x token group (column `position`) x draw x metric: `logit_diff`
    (answer minus foil), `change` (of it, against the intact run), `correct` (the answer's logit is
    above the foil's); the intact run is the group `none`; `n_tokens` says how many were ablated,
    `level` and `group` are the example's.
    """


def token_ablation(
    model: LVLM,
    examples: Sequence[Any],
    *,
    kind: str = "mean",
    groups: Sequence[str] = GROUPS,
    n_random: int = 5,
    register_sigmas: float = 2.0,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> TokenAblation:
    """Ablate groups of image tokens where they enter the language model.

    Args:
        model: The model.
        examples: Examples with `answer`, `foil`, an image and a box `object`.
        kind: `zero`; `mean`, of all image tokens of these examples; or `noise`, normal with the
            mean and standard deviation of each dimension over them.
        groups: Of `object`, `object+neighbours` (and tokens that touch it), `registers` (norm more
            than `register_sigmas` standard deviations above the image's mean), `random` (as many
            tokens as the object has, drawn outside of it).
        n_random: Draws of `random` and of noise.
        register_sigmas: Where a norm begins to be an outlier.
        seed: Of draws and noise.
        batch_size: Examples at once.
        progress: Show a bar.

    Raises:
        UsageError: An unknown kind or group, an example without answer and foil, or with both
            beginning with the same token.
        InputError: The model's image tokens have no place in the image.
    """
    _check(kind, groups, examples)
    _answer_ids(model, examples)
    # An architecture whose tokens have no place is refused before anything is run.
    first = model.prepare([examples[0]])
    first.tokens[0].positions("object", examples[0].boxes)
    mean, spread = _statistics(model, examples, batch_size)
    fill = _Fill(kind, mean, spread, torch.Generator().manual_seed(seed))
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for span in in_batches(examples, batch_size, "token ablation", progress):
        some = [examples[i] for i in span]
        inputs = model.prepare(some)
        ids = _answer_ids(model, some)
        norms = _norms(model, inputs)
        intact = _difference(model, inputs, ids)
        rows += _rows_of(some, "none", 0, intact, intact, [np.array([], int)] * len(some))
        for group in groups:
            draws = n_random if group == "random" or kind == "noise" else 1
            for draw in range(draws):
                at = [
                    _positions(group, tokens, example, norm, register_sigmas, rng)
                    for tokens, example, norm in zip(inputs.tokens, some, norms, strict=True)
                ]
                with model.edit({SITE: fill.edit(at)}):
                    ablated = _difference(model, inputs, ids)
                rows += _rows_of(some, group, draw, ablated, intact, at)
    notes = provenance(model=model.name, dtype=str(model.dtype), seed=seed, ablation=kind)
    return TokenAblation(ResultTable(pd.DataFrame(rows), notes))


@dataclass
class _Fill:
    """What ablated tokens are replaced with."""

    kind: str
    mean: Tensor
    spread: Tensor
    generator: torch.Generator

    def edit(self, at: Sequence[np.ndarray]) -> Any:
        rows = np.concatenate([np.full(len(where), row) for row, where in enumerate(at)]).astype(
            int
        )
        positions = np.concatenate(at).astype(int)

        def apply(value: Tensor) -> Tensor:
            new = value.clone()
            index = (torch.from_numpy(rows), torch.from_numpy(positions))
            new[index] = self._values(len(rows)).to(value)
            return new

        return apply

    def _values(self, n: int) -> Tensor:
        if self.kind == "zero":
            return torch.zeros(n, len(self.mean))
        if self.kind == "mean":
            return self.mean.expand(n, -1)
        noise = torch.randn(n, len(self.mean), generator=self.generator)
        return self.mean + self.spread * noise


def _check(kind: str, groups: Sequence[str], examples: Sequence[Any]) -> None:
    if kind not in KINDS:
        raise UsageError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    if unknown := [group for group in groups if group not in GROUPS]:
        raise UsageError(f"groups are {', '.join(GROUPS)}, got {unknown[0]!r}.")
    if not examples:
        raise UsageError("token_ablation got no examples.")
    for example in examples:
        missing = [name for name in ("answer", "foil") if not getattr(example, name, None)]
        if missing or "object" not in example.boxes:
            what = missing[0] if missing else "box 'object'"
            raise UsageError(
                f"token_ablation needs answer, foil and a box 'object'; example "
                f"{getattr(example, 'id', '?')} has no {what}."
            )


def _statistics(model: LVLM, examples: Sequence[Any], batch_size: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each dimension over all image tokens, in one pass."""
    total = square = torch.zeros(model.d_model, dtype=torch.float64)
    n = 0
    for span in in_batches(examples, batch_size, "", False):
        inputs = model.prepare([examples[i] for i in span])
        for states in _image_states(model, inputs):
            states = states.double()
            total, square = total + states.sum(0), square + states.pow(2).sum(0)
            n += len(states)
    mean = total / n
    return mean.float(), (square / n - mean**2).clamp_min(0).sqrt().float()


def _image_states(model: LVLM, inputs: Inputs) -> list[Tensor]:
    with model.record(SITE) as cache:
        model(inputs, logits_to_keep=1)
    return [cache[SITE][row][tokens.image].cpu() for row, tokens in enumerate(inputs.tokens)]


def _norms(model: LVLM, inputs: Inputs) -> list[np.ndarray]:
    return [states.float().norm(dim=-1).numpy() for states in _image_states(model, inputs)]


def _positions(
    group: str,
    tokens: TokenMap,
    example: Any,
    norm: np.ndarray,
    sigmas: float,
    rng: np.random.Generator,
) -> np.ndarray:
    mine = tokens.positions("object", example.boxes)
    if group == "object":
        return mine
    if group == "registers":
        return tokens.image[norm > norm.mean() + sigmas * norm.std()]
    if group == "random":
        others = np.setdiff1d(tokens.image, mine)
        return rng.choice(others, min(len(mine), len(others)), replace=False)
    return _with_neighbours(tokens, mine)


def _with_neighbours(tokens: TokenMap, mine: np.ndarray) -> np.ndarray:
    """The tokens and the eight around each, in the same tile."""
    image = tokens.image
    found = [
        at
        for at in image
        if any(
            tokens.tile[at] == tokens.tile[one]
            and abs(tokens.row[at] - tokens.row[one]) <= 1
            and abs(tokens.col[at] - tokens.col[one]) <= 1
            for one in mine
        )
    ]
    return np.array(found, dtype=int)


def _answer_ids(model: LVLM, examples: Sequence[Any]) -> Tensor:
    return contrast_ids(model, [one.answer for one in examples], [one.foil for one in examples])


def _difference(model: LVLM, inputs: Inputs, ids: Tensor) -> np.ndarray:
    logits = model.last_logits(inputs).float().gather(1, ids)
    return (logits[:, 0] - logits[:, 1]).cpu().numpy()


def _rows_of(
    examples: Sequence[Any],
    group: str,
    draw: int,
    values: np.ndarray,
    intact: np.ndarray,
    at: Sequence[np.ndarray],
) -> list[dict[str, Any]]:
    rows = []
    for example, value, before, where in zip(examples, values, intact, at, strict=True):
        if group != "none" and len(where) == 0:
            continue  # an image without registers has nothing to ablate
        common: Mapping[str, Any] = {
            "example": example.id,
            "group": example.group or example.id,
            "level": example.level,
            "tower": "text",
            "site": SITE,
            "position": group,
            "draw": draw,
            "n_tokens": len(where),
        }
        rows += [
            {**common, "metric": "logit_diff", "value": float(value), "unit": "logits"},
            {**common, "metric": "change", "value": float(value - before), "unit": "logits"},
            {**common, "metric": "correct", "value": float(value > 0), "unit": "fraction"},
        ]
    return rows
