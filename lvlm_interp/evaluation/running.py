"""`run`: questions through a model into a table of answers, in shards that survive being killed."""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from lvlm_interp import jobs
from lvlm_interp.data.examples import Example
from lvlm_interp.data.sources import data_hash, example_hash
from lvlm_interp.errors import DataError, ModelError, StoreError, UsageError
from lvlm_interp.evaluation.answers import Answers
from lvlm_interp.evaluation.asking import Asking, ask, task_of
from lvlm_interp.evaluation.judging import Reader, Reply
from lvlm_interp.files import atomic_write
from lvlm_interp.models.identity import processor_hash, weight_hash
from lvlm_interp.models.loading import load_model
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.provenance import provenance

__all__ = ["CONTROLS", "as_control", "check_images", "run"]

CONTROLS = ("text_only", "shuffled_image")
"""Runs of the same questions that show what an answer owes to its image."""

RUN, SHARDS = "run.json", "shards"
_BATCHES_IN_A_SHARD = 4


class Evaluation(jobs.Job):
    """Questions that are being asked; a shard is some batches of like length and one task.

    Attributes:
        folder: Where the shards go.
        model: The model, or None where the engine's workers load it.
        about: What identifies the run: model, questions, how they are asked.
    """

    label = "evaluate"

    def __init__(
        self,
        folder: Path | None,
        examples: Sequence[Example],
        how: Asking,
        model: LVLM | None,
        about: Mapping[str, Any],
    ) -> None:
        self.folder, self.how, self.model, self.about = folder, how, model, dict(about)
        self.shards = _shards(examples, how, self.about)
        self.replies: dict[str, list[Reply]] = {}

    @property
    def undone(self) -> list[str]:
        """Keys of the shards whose replies are not there whole."""
        return [key for key in self.shards if self._read(key) is None]

    def payload(self, key: str) -> list[Example]:
        """Questions of a shard."""
        return self.shards[key]

    def start(self, threads: int | None = None) -> None:
        """Load the model where there is none.

        Raises:
            ModelError: It has other weights than those the run began with.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        if self.model is None:
            model = load_model(self.about["model"], dtype=self.about["dtype"], selfcheck=False)
            if weight_hash(model) != self.about["weight_hash"]:
                raise ModelError(
                    f"A worker loaded {self.about['model']!r} and got other weights: give a path "
                    "that is the same on all machines."
                )
            self.model = model

    def compute(self, key: str, payload: Sequence[Example]) -> list[Reply]:
        """Replies to the questions of a shard."""
        assert self.model is not None, "the engine starts the job"
        size, found = self.how.batch_size, []
        for start in range(0, len(payload), size):
            found += ask(self.model, payload[start : start + size], self.how)
        return found

    def write(self, key: str, result: Sequence[Reply]) -> None:
        """Keep the replies of a shard, on disk where there is a folder."""
        if self.folder is None:
            self.replies[key] = list(result)
            return
        rows = [
            [r.text, _null(r.p_yes), _null(r.p_no), r.said, _null(r.conviction)] for r in result
        ]
        content = {"n": len(rows), "replies": rows}
        atomic_write(self._path(key), json.dumps(content, ensure_ascii=False))

    def bare(self) -> Evaluation:
        """The job as workers elsewhere get it."""
        folder = None if self.folder is None else self.folder.resolve()
        return Evaluation(folder, (), self.how, None, self.about)

    def answered(self) -> dict[str, Reply]:
        """Every reply by the id of its question.

        Raises:
            StoreError: A shard is missing.
        """
        found: dict[str, Reply] = {}
        for key, examples in self.shards.items():
            replies = self._read(key)
            if replies is None:
                raise StoreError(f"{self.folder}: shard {key} is not finished; resume the run.")
            found |= {e.id: reply for e, reply in zip(examples, replies, strict=True)}
        return found

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / SHARDS / f"{key}.json"

    def _read(self, key: str) -> list[Reply] | None:
        if self.folder is None:
            return self.replies.get(key)
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["replies"]
            replies = [
                Reply(text, _nan(yes), _nan(no), word, _nan(sure))
                for text, yes, no, word, sure in rows
            ]
        except (ValueError, KeyError, TypeError):
            return None  # not ours or damaged: asked again
        return replies if len(replies) == len(self.shards[key]) else None


def run(
    model: LVLM,
    rows: Sequence[Example],
    *,
    reader: Reader | None = None,
    how: Asking | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    engine: jobs.Engine | None = None,
    progress: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Answers:
    """Ask a model questions.

    Args:
        model: Runs them, with whatever edits are open.
        rows: Questions; label `task` (poll, open, describe, pair), or told by the answer.
        reader: Makes rows of replies; needed for descriptions of the unified benchmark.
        how: Suffix, lengths of replies, by logits or generation, batch size.
        out: Folder that keeps every reply, so that a killed run can be resumed.
        resume: Go on with what the folder holds; starts afresh where nothing is.
        engine: Does the shards; here and now by default, see `jobs.on_ray`.
        progress: Show a bar.
        about: What else the provenance shall say, such as the benchmark and its vintage.

    Returns:
        The table, in the order of the questions; the same however often the run was killed.

    Raises:
        DataError: Two questions have one id, or images are missing (all are named).
        StoreError: The folder holds another run.
    """
    how = how or Asking()
    twice = [name for name, n in Counter(row.id for row in rows).items() if n > 1]
    if twice:
        raise DataError(f"{len(twice)} ids occur more than once, the first {twice[0]!r}.")
    known = _provenance(model, rows, how, about)
    folder = None if out is None else _folder(Path(out), known, resume)
    job = Evaluation(folder, rows, how, model, known)
    (engine or jobs.here(progress=progress))(job, job.undone)
    if folder is not None:
        jobs.sweep_up(folder, [f"{SHARDS}/.*-*.json"])
    replies = job.answered()
    reading = reader or Reader()
    table = [row for example in rows for row in reading.rows(example, replies[example.id])]
    return Answers.of(table, known)


def check_images(rows: Sequence[Example]) -> None:
    """Refuse questions whose image is not there, all named in one message.

    Raises:
        DataError: Images are missing.
    """
    lost = {str(row.labels.get("image", row.group)) for row in rows if row.image is None}
    if lost:
        names = ", ".join(sorted(lost)[:20]) + (", ..." if len(lost) > 20 else "")
        raise DataError(
            f"{len(lost)} images are missing, namely {names}: put them beside the benchmark's "
            "files, or into images/ there."
        )


def as_control(rows: Sequence[Example], control: str, seed: int = 0) -> list[Example]:
    """The same questions without their image, or with another question's.

    Raises:
        UsageError: No such control, or one image alone to shuffle.
    """
    if control == "text_only":
        return [replace(row, image=None) for row in rows]
    if control != "shuffled_image":
        raise UsageError(f"no control {control!r}; there are {', '.join(CONTROLS)}")
    groups = list(dict.fromkeys(row.group or row.id for row in rows))
    if len(groups) < 2:
        raise UsageError("shuffled images need at least two images")
    images = {row.group or row.id: row.image for row in rows}
    order = random.Random(seed).sample(groups, len(groups))
    other = dict(zip(order, [*order[1:], order[0]], strict=True))  # a cycle: no image is its own
    return [replace(row, image=images[other[row.group or row.id]]) for row in rows]


def _shards(
    examples: Sequence[Example], how: Asking, about: Mapping[str, Any]
) -> dict[str, list[Example]]:
    """Batches of like length of one task, keyed by the content of their questions and the run."""
    order = sorted(examples, key=lambda row: (task_of(row), len(row.prompt), row.id))
    size, found = how.batch_size * _BATCHES_IN_A_SHARD, {}
    tasks: dict[str, list[Example]] = {}
    for row in order:
        tasks.setdefault(task_of(row), []).append(row)
    salt = json.dumps([about.get("weight_hash"), how.to_dict()], sort_keys=True)
    for some in tasks.values():
        for start in range(0, len(some), size):
            part = some[start : start + size]
            digest = sha256(salt.encode())
            for row in part:
                digest.update(example_hash(row).encode())
            found[digest.hexdigest()[:24]] = part
    return found


def _provenance(
    model: LVLM, rows: Sequence[Example], how: Asking, about: Mapping[str, Any] | None
) -> dict[str, Any]:
    images = sorted({str(row.group or row.id) for row in rows})
    return provenance(
        model=model.name,
        weight_hash=weight_hash(model),
        data_hash=data_hash(rows),
        dtype=str(model.dtype).removeprefix("torch."),
        decoding={"do_sample": False, **how.to_dict()},
        processor_hash=processor_hash(model),
        images_hash=sha256("\n".join(images).encode()).hexdigest(),
        n_images=len(images),
        n_questions=len(rows),
        **dict(about or {}),
    )


_SAME = ("weight_hash", "data_hash", "dtype", "decoding", "processor_hash")
"""What must agree before a run is gone on with."""


def _folder(folder: Path, known: Mapping[str, Any], resume: bool) -> Path:
    path = folder / RUN
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        differ = [name for name in _SAME if old.get(name) != known[name]]
        if not resume:
            raise StoreError(f"{folder} holds a run already: resume it, or give another folder.")
        if differ:
            raise StoreError(
                f"{folder} holds a run with another {differ[0]}: give another folder."
                + (f" They also differ in {', '.join(differ[1:])}." if differ[1:] else "")
            )
        return folder
    if folder.exists() and any(not each.name.startswith(".run-") for each in folder.iterdir()):
        raise StoreError(f"{folder} is not empty and holds no run: give another folder.")
    atomic_write(path, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return folder


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
