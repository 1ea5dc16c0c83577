"""Pairs from users' rows: images, questions and boxes in, minimal pairs out.

Users have an image, a question, an answer and perhaps a box, not a second image that differs in one
place. Each way of corrupting a row is named, and each pair says in its labels how it was made
(`made`, `corruption`, `control`). Whether an edit did anything is a question for the model:
`answers_changed` counts it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from lvlm_interp.data.checks import id_in_reply
from lvlm_interp.data.examples import Box, ContrastPair, Example
from lvlm_interp.data.pair_rows import read_row, read_rows
from lvlm_interp.errors import DataError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.results import ResultTable, provenance

Corruption = Literal["mask", "blur", "mean", "exchange", "noise", "image", "prompt"]
_BOXED = ("mask", "blur", "mean", "exchange")
_DRAWS = 200


def build_pairs(
    rows: Sequence[Example | Mapping[str, Any]] | str | os.PathLike[str],
    corrupt: Corruption = "mask",
    *,
    control: bool = False,
    words: Mapping[str, str] | None = None,
    noise: float = 0.5,
    box: str = "object",
    candidates: Sequence[str] = (),
    seed: int = 0,
) -> list[ContrastPair]:
    """Make one pair of each row.

    A row with a `caption` is asked at the hallucinated `word` in it: the caption up to that word is
    the begun reply, the word is the foil (what the flaw says), and the answer is the first of the
    `candidates` that is not that word and is not named before it.

    Args:
        rows: Examples with `answer` (and `foil`, which yes/no answers do not need); or mappings in
            the manner of POPE, or the path of a JSONL file of them: `image`, `text` or `question`,
            `label` or `answer`, and `box` as left, top, right, bottom in pixels; `question_id` or
            `id`, `level` and `foil` if known. In place of `label`: `caption`, `word`, and perhaps
            `candidates`.
        corrupt: `mask` (black), `blur`, `mean` (the image's mean colour) or `exchange` (what stands
            there in the next row's image) inside the box; `noise` on the whole image; `image`, the
            next row's image of the same size; `prompt`, words exchanged for each other.
        control: Edit a random box of the same size that does not meet the named one instead.
        words: For `prompt`: each word and what it is exchanged with, both ways.
        noise: Standard deviation of the noise, in units of the full range of a pixel.
        box: Name of the box in `Example.boxes`.
        candidates: Words that could stand in place of a caption's wrong one, for rows that name
            none.
        seed: Of noise and of random boxes.

    Returns:
        Pairs of kind `evidence`: the corrupt side lacks what the answer is about.

    Raises:
        DataError: An unknown way, or a row that lacks what it needs; the row is named.
    """
    if corrupt not in get_args(Corruption):
        raise DataError(f"corrupt={corrupt!r}: expected one of {', '.join(get_args(Corruption))}.")
    if corrupt == "prompt" and not words:
        raise DataError("corrupt='prompt' needs words={'left': 'right'}: which words to exchange.")
    if control and corrupt not in _BOXED:
        raise DataError(f"control=True is for the edits of a box, not for {corrupt!r}.")
    if isinstance(rows, str | os.PathLike):
        rows = read_rows(rows)
    examples = [read_row(row, i, box, candidates) for i, row in enumerate(rows)]
    _check_ids(examples)
    rng = np.random.default_rng(seed)
    pairs = []
    for index, example in enumerate(examples):
        where = _box(example, box, control, rng) if corrupt in _BOXED else None
        edited = _corrupt(examples, index, corrupt, where, words or {}, noise, rng)
        pairs.append(_pair(example, edited, corrupt, where, control))
    return pairs


def answers_changed(
    model: LVLM, pairs: Sequence[ContrastPair], *, batch_size: int = 32
) -> ResultTable:
    """Whether each edit changed the answer, and whether the clean one was right.

    Returns:
        Two rows per pair: `answer changed` and `clean answer right`, both 0 or 1; `made` and
        `control` say how the pair was made, so that edits and their controls can be compared by
        `table.mean(by=["metric", "made", "control"], cluster="group")`.
    """
    rows: list[dict[str, Any]] = []
    for start in range(0, len(pairs), batch_size):
        chunk = pairs[start : start + batch_size]
        first, second = (
            model.last_logits(model.prepare([getattr(pair, side) for pair in chunk])).argmax(-1)
            for side in ("clean", "corrupt")
        )
        for pair, clean, corrupt in zip(chunk, first.tolist(), second.tolist(), strict=True):
            fixed = {
                "example": pair.clean.id,
                "pair": pair.id,
                "unit": "share",
                "made": pair.labels.get("made"),
                "control": bool(pair.labels.get("control", False)),
                "group": pair.group if pair.group is not None else pair.id,
            }
            right = clean == id_in_reply(model, pair.answer, pair.clean.reply)
            rows.append({**fixed, "metric": "answer changed", "value": float(clean != corrupt)})
            rows.append({**fixed, "metric": "clean answer right", "value": float(right)})
    return ResultTable(pd.DataFrame(rows), provenance(model=model.name, method="build_pairs"))


def _check_ids(examples: Sequence[Example]) -> None:
    first: dict[str, int] = {}
    for index, example in enumerate(examples):
        if first.setdefault(example.id, index) != index:
            raise DataError(
                f"Rows {first[example.id]} and {index} (from 0) have the same id {example.id!r}; "
                "ids must be unique, since tables join on them."
            )


def _box(example: Example, name: str, control: bool, rng: np.random.Generator) -> Box:
    if name not in example.boxes:
        raise DataError(
            f"Row {example.id!r}: expected a box named {name!r}, it has "
            f"{', '.join(example.boxes) or 'none'}."
        )
    left, top, right, bottom = example.boxes[name]
    if not control:
        return left, top, right, bottom
    width, height = _open(example).size
    for _ in range(_DRAWS):
        x = int(rng.integers(0, max(1, width - (right - left) + 1)))
        y = int(rng.integers(0, max(1, height - (bottom - top) + 1)))
        other = (x, y, x + right - left, y + bottom - top)
        if other[0] >= right or other[2] <= left or other[1] >= bottom or other[3] <= top:
            return other
    raise DataError(
        f"Row {example.id!r}: no box of that size fits beside {name!r}: it is too large."
    )


def _corrupt(
    examples: Sequence[Example],
    index: int,
    corrupt: str,
    where: Box | None,
    words: Mapping[str, str],
    noise: float,
    rng: np.random.Generator,
) -> tuple[Image.Image, str]:
    """The corrupt side's image and prompt."""
    example = examples[index]
    image = _open(example)
    if corrupt == "prompt":
        return image, _exchange_words(example, words)
    if corrupt == "noise":
        pixels = np.asarray(image, float) + rng.normal(0, 255 * noise, (*image.size[::-1], 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), example.prompt
    if corrupt == "image":
        return _another(examples, index, image.size), example.prompt
    assert where is not None
    edited = image.copy()
    if corrupt == "exchange":
        other = _another(examples, index, image.size).crop(where)
        edited.paste(other, where[:2])
    elif corrupt == "blur":
        radius = max(where[2] - where[0], where[3] - where[1]) / 4
        edited.paste(image.filter(ImageFilter.GaussianBlur(radius)).crop(where), where[:2])
    else:
        mean = np.asarray(image, float).reshape(-1, 3).mean(0)
        color = (0, 0, 0) if corrupt == "mask" else tuple(int(c) for c in mean)
        edited.paste(color, where)
    return edited, example.prompt


def _another(examples: Sequence[Example], index: int, size: tuple[int, int]) -> Image.Image:
    """The next other image of the same size."""
    own = examples[index]
    for step in range(1, len(examples)):
        other = examples[(index + step) % len(examples)]
        if other.group is not None and other.group == own.group:
            continue
        image = _open(other)
        if image.size == size:
            return image
    raise DataError(
        f"Row {own.id!r}: no other row has an image of its size, {size[0]} x {size[1]}."
    )


def _exchange_words(example: Example, words: Mapping[str, str]) -> str:
    both = {**{b: a for a, b in words.items()}, **words}
    pattern = "|".join(sorted(map(re.escape, both), key=len, reverse=True))
    new = re.sub(rf"(?<!\w)({pattern})(?!\w)", lambda found: both[found.group(1)], example.prompt)
    if new == example.prompt:
        raise DataError(
            f"Row {example.id!r}: its prompt holds none of the words {', '.join(both)}."
        )
    return new


def _open(example: Example) -> Image.Image:
    image = (
        example.open_image() if not isinstance(example.image, str) else Image.open(example.image)
    )
    assert image is not None
    return image.convert("RGB")


def _pair(
    example: Example,
    edited: tuple[Image.Image, str],
    corrupt: str,
    where: Box | None,
    control: bool,
) -> ContrastPair:
    image, prompt = edited
    made = f"{corrupt} of a random box" if control else corrupt
    kind = {"prompt": "prompt", "noise": "noise"}.get(corrupt, "image")
    fields = {**vars(example), "id": f"{example.id}/{made}", "image": image, "prompt": prompt}
    fields |= {"answer": None, "labels": {**example.labels, "made": made}}
    answer, foil = example.answer, example.foil
    assert answer is not None and foil is not None
    return ContrastPair(
        id=f"{example.id}/{made}",
        clean=example,
        corrupt=Example(**fields),
        answer=answer,
        foil=foil,
        level=example.level or "object",
        kind="evidence",
        edit=made,
        box=where,
        group=example.group or example.id,
        labels={"made": made, "corruption": kind, "control": control},
    )
