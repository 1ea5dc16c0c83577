"""Pairs as files that a user can look at, edit and read again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.errors import DataError
from lvlm_interp.files import atomic_path, atomic_write
from lvlm_interp.models.inputs.images import open_image, pixel_digest

__all__ = ["write_pairs"]


def write_pairs(pairs: Iterable[ContrastPair], folder: str | os.PathLike[str]) -> Path:
    """Write `pairs.jsonl` and its images, each picture once, as PNG.

    `load_pairs` gives the same pairs again: pixels, words, boxes, groups and labels.

    Args:
        pairs: What to write; they are taken one by one.
        folder: Where; it is made. A `pairs.jsonl` that is there is refused.

    Returns:
        Path of `pairs.jsonl`.

    Raises:
        DataError: The file is there already, or a pair cannot be told in its fields: its sides
            differ in more than image and prompt.
    """
    folder = Path(folder)
    target = folder / "pairs.jsonl"
    if target.exists():
        raise DataError(f"{target} is there already: name another folder, or delete it.")
    lines = [json.dumps(_line(pair, folder), ensure_ascii=False) for pair in pairs]
    return atomic_write(target, "".join(f"{line}\n" for line in lines))


def _line(pair: ContrastPair, folder: Path) -> dict[str, Any]:
    clean, corrupt = pair.clean, pair.corrupt
    for name in ("reply", "boxes"):
        if getattr(clean, name) != getattr(corrupt, name):
            raise DataError(
                f"Pair {pair.id!r}: its sides differ in {name!r}, which a pairs file says "
                "once; make both alike."
            )
    boxes = {name: list(box) for name, box in clean.boxes.items()}
    fields = {
        "id": pair.id,
        "clean": _images(clean, folder),
        "corrupt": _images(corrupt, folder),
        "prompt": clean.prompt,
        "corrupt_prompt": corrupt.prompt if corrupt.prompt != clean.prompt else None,
        "answer": pair.answer,
        "foil": pair.foil,
        "level": pair.level,
        "kind": pair.kind,
        "group": pair.group,
        "edit": pair.edit or None,
        "box": None if pair.box is None else list(pair.box),
        "boxes": boxes or None,
        "reply": clean.reply or None,
        "labels": dict(pair.labels) or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _images(example: Example, folder: Path) -> str | list[str]:
    names = []
    for source in example.images:
        image = open_image(source)
        name = f"images/{pixel_digest(image)[:24]}.png"
        if not (folder / name).is_file():
            with atomic_path(folder / name) as temporary:
                image.save(temporary)
        names.append(name)
    return names[0] if len(names) == 1 else names
