"""Pairs from users' rows: images, questions and boxes in, minimal pairs out.

Users have an image, a question, an answer and perhaps a box, not a second image that differs in one
place. Each way of corrupting a row is named, and each pair says in its labels how it was made
(`made`, `corruption`, `control`). Whether an edit did anything is a question for the model:
`answers_changed` counts it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from lvlm_interp.data.checks import id_in_reply
from lvlm_interp.data.edits import EditedImage
from lvlm_interp.data.examples import KINDS, Box, ContrastPair, Example
from lvlm_interp.data.groups import with_groups
from lvlm_interp.data.lines import Report
from lvlm_interp.data.pair_rows import Row, parse_row, rows_of, with_foil
from lvlm_interp.errors import DataError
from lvlm_interp.models.inputs.images import ImageSource, image_size
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.results import ResultTable, provenance

Corruption = Literal["mask", "blur", "mean", "exchange", "noise", "image", "prompt"]
_BOXED = ("mask", "blur", "mean", "exchange")
_BORROWING = ("exchange", "image")
_DRAWS = 200
_log = logging.getLogger(__name__)


def build_pairs(
    rows: Sequence[Row] | str | os.PathLike[str],
    corrupt: Corruption = "mask",
    *,
    kind: str = "evidence",
    control: bool = False,
    words: Mapping[str, str] | None = None,
    noise: float = 0.5,
    box: str = "object",
    candidates: Sequence[str] = (),
    seed: int = 0,
    skip_bad: bool = False,
    report: Report | None = None,
) -> list[ContrastPair]:
    """Make one pair of each row.

    A row with a `caption` is asked at the hallucinated `word` in it: the caption up to that word is
    the begun reply, the word is the foil (what the flaw says), and the answer is the first of the
    `candidates` that is not that word and is not named before it.

    Args:
        rows: Examples with `answer` (and `foil`, which yes/no answers do not need); or mappings, or
            the path of a JSONL file of them, with the fields of `rows.jsonl` (see `load_examples`)
            and `box` as left, top, right, bottom in pixels. In place of `answer`: `caption`,
            `word`, and perhaps `candidates`.
        corrupt: `mask` (black), `blur`, `mean` (the image's mean colour) or `exchange` (what stands
            there in another row's image) inside the box; `noise` on the whole image; `image`,
            another row's image of the same size (two rows exchange theirs); `prompt`, words
            exchanged for each other. Of several images the first is edited.
        kind: `evidence` edits what is asked about: the corrupt side lacks it. `trigger` takes away
            what misleads (name its box): the clean side lacks it, the corrupt side is the row as it
            is, and the answer is true on both.
        control: Edit a random box of the same size that does not meet the named one instead.
        words: For `prompt`: each word and what it is exchanged with, both ways.
        noise: Standard deviation of the noise, in units of the full range of a pixel.
        box: Name of the box in `Example.boxes`.
        candidates: Words that could stand in place of a caption's wrong one, for rows that name
            none.
        seed: Of noise and of random boxes.
        skip_bad: Leave wrong rows out instead of raising.
        report: Gets the error of each row left out; by default it is logged as a warning.

    Returns:
        One pair per row. Edited images are made when they are opened, so that many pairs need
        little memory.

    Raises:
        DataError: An unknown way, or a row that lacks what it needs; the row is named.
    """
    if corrupt not in get_args(Corruption):
        raise DataError(f"corrupt={corrupt!r}: expected one of {', '.join(get_args(Corruption))}.")
    if corrupt == "prompt" and not words:
        raise DataError("corrupt='prompt' needs words={'left': 'right'}: which words to exchange.")
    if control and corrupt not in _BOXED:
        raise DataError(f"control=True is for the edits of a box, not for {corrupt!r}.")
    if kind not in KINDS:
        raise DataError(f"kind={kind!r}: expected one of {', '.join(KINDS)}.")
    report = (report or _warn) if skip_bad else None
    named = _read(rows, box, candidates, report)
    donors = _Donors([each for _, each in named]) if corrupt in _BORROWING else None
    rng = np.random.default_rng(seed)
    pairs = []
    for index, (where, example) in enumerate(named):
        with _reported(report):
            at = _box(where, example, box, control, rng) if corrupt in _BOXED else None
            donor = None if donors is None else donors.of(where, index)
            prompt = example.prompt
            if corrupt == "prompt":
                image, prompt = example.image, _exchange_words(where, example, words or {})
            elif corrupt == "image":
                image = donor
            else:
                first, *others = example.images
                edited = EditedImage(first, corrupt, at, donor, noise, (seed, index))
                image = [edited, *others] if others else edited
            assert image is not None
            pair = _pair(example, image, prompt, corrupt, at, control)
            pairs.append(pair if kind == "evidence" else _as_trigger(pair, example))
    return with_groups(pairs)


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


def _read(
    rows: Sequence[Row] | str | os.PathLike[str],
    box: str,
    candidates: Sequence[str],
    report: Report | None,
) -> list[tuple[str, Example]]:
    """What to call each row, and the row as an example with both answers."""
    found: list[tuple[str, Example]] = []
    first: dict[str, int] = {}
    for index, (where, row) in enumerate(rows_of(rows)):
        with _reported(report):
            if isinstance(row, DataError):
                raise row
            example = row if isinstance(row, Example) else parse_row(row, box, candidates)
            example = with_foil(example, where)
            if first.setdefault(example.id, index) != index:
                raise DataError(
                    f"Rows {first[example.id]} and {index} (from 0) have the same id "
                    f"{example.id!r}; ids must be unique, since tables join on them."
                )
            found.append((where, example))
    if not found:
        raise DataError(
            f"{rows if isinstance(rows, str | os.PathLike) else 'The list'}: it holds no row."
        )
    return found


def _warn(error: DataError) -> None:
    _log.warning("skipped: %s", error)


@contextmanager
def _reported(report: Report | None) -> Iterator[None]:
    """Give the error of a row to `report`, where there is one."""
    try:
        yield
    except DataError as error:
        if report is None:
            raise
        report(error)


def _box(where: str, example: Example, name: str, control: bool, rng: np.random.Generator) -> Box:
    if name not in example.boxes:
        raise DataError(
            f"{where}: expected a box named {name!r}, it has {', '.join(example.boxes) or 'none'}."
        )
    left, top, right, bottom, *image = example.boxes[name]
    if image and image[0] > 0:
        raise DataError(f"{where}: only the first image is edited, the box {name!r} is in another.")
    width, height = image_size(example.images[0])
    if right > width or bottom > height:
        raise DataError(
            f"{where}: the box {name!r}, {[left, top, right, bottom]}, lies outside of the image "
            f"of {width} x {height} pixels."
        )
    if not control:
        return left, top, right, bottom
    for _ in range(_DRAWS):
        x = int(rng.integers(0, max(1, width - (right - left) + 1)))
        y = int(rng.integers(0, max(1, height - (bottom - top) + 1)))
        other = (x, y, x + right - left, y + bottom - top)
        if other[0] >= right or other[2] <= left or other[1] >= bottom or other[3] <= top:
            return other
    raise DataError(f"{where}: no box of that size fits beside {name!r}: it is too large.")


class _Donors:
    """For each row another row's image of the same size: two rows exchange theirs.

    Were it always the next row's, the pairs would chain all images into one group.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        self.groups = [each.group for each in with_groups(examples)]
        self.sizes = [image_size(each.images[0]) for each in examples]
        self.rows: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(self.sizes):
            self.rows.setdefault(size, []).append(index)

    def of(self, where: str, index: int) -> ImageSource:
        """The image that another row lends.

        Raises:
            DataError: No other row has an image of that size and of another group.
        """
        size = self.sizes[index]
        rows = self.rows[size]
        place = rows.index(index)
        partner = place ^ 1
        order = [partner, *range(place + 1, len(rows)), *range(place - 1, -1, -1)]
        for each in order:
            if each < len(rows) and self.groups[rows[each]] != self.groups[index]:
                return self.examples[rows[each]].images[0]
        raise DataError(
            f"{where}: no other row has an image of its size, {size[0]} x {size[1]}, and another "
            "content."
        )


def _exchange_words(where: str, example: Example, words: Mapping[str, str]) -> str:
    both = {**{b: a for a, b in words.items()}, **words}
    pattern = "|".join(sorted(map(re.escape, both), key=len, reverse=True))
    new = re.sub(rf"(?<!\w)({pattern})(?!\w)", lambda found: both[found.group(1)], example.prompt)
    if new == example.prompt:
        raise DataError(f"{where}: its prompt holds none of the words {', '.join(both)}.")
    return new


def _pair(
    example: Example,
    image: ImageSource | Sequence[ImageSource],
    prompt: str,
    corrupt: str,
    where: Box | None,
    control: bool,
) -> ContrastPair:
    made = f"{corrupt} of a random box" if control else corrupt
    kind = {"prompt": "prompt", "noise": "noise"}.get(corrupt, "image")
    edited = replace(
        example,
        id=f"{example.id}/{made}",
        image=image,
        prompt=prompt,
        answer=None,
        labels={**example.labels, "made": made},
    )
    assert example.answer is not None and example.foil is not None
    return ContrastPair(
        id=f"{example.id}/{made}",
        clean=example,
        corrupt=edited,
        answer=example.answer,
        foil=example.foil,
        level=example.level or "object",
        kind="evidence",
        edit=made,
        box=where,
        group=example.group,
        labels={"made": made, "corruption": kind, "control": control},
    )


def _as_trigger(pair: ContrastPair, example: Example) -> ContrastPair:
    """The pair turned round: without what misleads on the clean side, and with it behind."""
    without = replace(
        pair.corrupt, answer=example.answer, foil=example.foil, labels={**pair.corrupt.labels}
    )
    misled = replace(example, labels={**example.labels, "trigger": True})
    return replace(pair, clean=without, corrupt=misled, kind="trigger")
