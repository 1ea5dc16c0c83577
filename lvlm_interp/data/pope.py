"""POPE's folder as its authors give it: files of questions, images beside them or below.

Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models". A file such as
`coco_pope_adversarial.json` has one object a line: `question_id`, `image`, `text` and `label`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lvlm_interp.data.lines import Line, read_lines
from lvlm_interp.errors import DataError

__all__ = ["read"]

_SPLITS = ("random", "popular", "adversarial")


def read(folder: Path, http: bool = False) -> Iterator[tuple[str, Line | DataError]]:
    """Lines of every file of questions in a folder (or of one file), in the order of their names.

    An image is looked for in the folder, then in the folders directly below it. The strategy by
    which the absent objects were chosen becomes the label `split`; where there are several files,
    ids begin with it, since each numbers its questions anew.

    Raises:
        DataError: There is no file of questions.
    """
    files = sorted(_questions(folder)) if folder.is_dir() else [folder]
    if not files:
        raise DataError(
            f"{folder}: expected POPE's files (*.json or *.jsonl, one object a line), found none."
        )
    root = folder if folder.is_dir() else folder.parent
    below = [root, *sorted(each for each in root.iterdir() if each.is_dir())]
    for path in files:
        split = next((name for name in _SPLITS if name in path.stem), path.stem)
        for where, line in read_lines(path, http=http):
            yield (
                where,
                line
                if isinstance(line, DataError)
                else _placed(line, below, split, len(files) > 1),
            )


def _questions(folder: Path) -> Iterator[Path]:
    for pattern in ("*.json", "*.jsonl", "*/*.json", "*/*.jsonl"):
        yield from (path for path in folder.glob(pattern) if "pope" in path.name.lower())


def _placed(line: Line, folders: list[Path], split: str, several: bool) -> Line:
    fields, image = dict(line.fields), line.fields.get("image")
    if isinstance(image, str):
        found = (folder for folder in folders if os.path.isfile(folder / image))
        fields["image"] = str(next(found, line.folder) / image)
    number = fields.get("question_id")
    if several and isinstance(number, int | str) and not isinstance(number, bool):
        fields["question_id"] = f"{split}/{number}"
    labels = fields.get("labels")
    if labels is None or isinstance(labels, dict):
        fields["labels"] = {"split": split, **(labels or {})}
    return Line(fields, line.where, line.folder, http=line.http)
