"""The centre: one tidy table of answers, of which every score is an aggregate."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lvlm_interp.errors import UsageError
from lvlm_interp.evaluation.replies import NONE
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.stats import Estimate, rate

__all__ = ["ANSWER_COLUMNS", "TASKS", "Answers"]

ANSWER_COLUMNS = (
    "example", "group", "level", "task", "statement", "truth", "reply", "said", "p_yes", "p_no",
)  # fmt: skip
TASKS = ("poll", "open", "describe", "pair")
METRIC = "right"
_TEXT = tuple(name for name in ANSWER_COLUMNS if name not in ("p_yes", "p_no"))


@dataclass(frozen=True, repr=False)
class Answers(Result):
    """What was asked, what is true and what was said.

    The table has a row an answer. `metric` is `right`; `value` is 1 where `said` is the truth, 0
    where it is the other one, and missing where the reply says neither: such an answer counts
    nowhere, and `none_rate` says how many there are. Columns of its own: `group` (the image),
    `level`, `task` (poll, open, describe, pair), `statement`, `truth`, `reply`, `said` (yes, no,
    none; or the word of an open answer), `p_yes` and `p_no` (missing where unknown), and whatever
    else a row was given.
    """

    @classmethod
    def of(
        cls, rows: Iterable[Mapping[str, Any]], provenance: Mapping[str, Any] | None = None
    ) -> Answers:
        """A table from rows; `example`, `truth`, `reply` and `said` are needed.

        Raises:
            UsageError: A needed field is missing, a task is unknown, or two rows are one example
                under one task.
        """
        frame = pd.DataFrame([dict(row) for row in rows])
        if not len(frame):
            frame = pd.DataFrame(columns=list(ANSWER_COLUMNS))
        for name in ("example", "truth", "reply", "said"):
            if name not in frame:
                raise UsageError(f"expected a column {name!r} in a table of answers")
        for name in ANSWER_COLUMNS:
            if name not in frame:
                frame[name] = "poll" if name == "task" else None
        unknown = set(frame["task"].dropna()) - set(TASKS)
        if unknown:
            raise UsageError(f"task must be one of {', '.join(TASKS)}, got {sorted(unknown)[0]!r}")
        frame["metric"] = METRIC
        frame["value"] = [
            math.nan if said in (NONE, None) or truth is None else float(said == truth)
            for said, truth in zip(frame["said"], frame["truth"], strict=True)
        ]
        for name in _TEXT:
            column = frame[name].astype(object)
            frame[name] = column.where(column.notna(), None).astype("str")
        frame = frame.astype({"p_yes": "float64", "p_no": "float64"})
        return cls(ResultTable(frame, provenance))

    @property
    def frame(self) -> pd.DataFrame:
        """The answers alone: the columns of `ANSWER_COLUMNS`, then what else there is."""
        frame = self.table.frame
        others = [
            name
            for name in frame.columns
            if name not in ANSWER_COLUMNS and name not in _OF_THE_TABLE
        ]
        return frame[[*ANSWER_COLUMNS, *others]]

    @property
    def none_rate(self) -> Estimate:
        """Share of answers that say neither, with an interval over images."""
        frame = self.table.frame
        none = (frame["said"] == NONE).to_numpy(dtype=float)
        return rate(none, list(self.groups()))

    def groups(self) -> np.ndarray:
        """Image of each answer; the example itself where no image is known."""
        frame = self.table.frame
        return frame["group"].where(frame["group"].notna(), frame["example"]).to_numpy(dtype=object)

    def select(self, **columns: Any) -> Answers:
        """The answers whose columns equal the given values, see `ResultTable.select`."""
        return Answers(self.table.select(**columns))

    def by_logits(self) -> Answers:
        """The same answers, `said` being what the logits prefer where `p_yes` and `p_no` are known.

        A reply that says neither then has a side, so that both readings can stand beside each
        other; where the two are equal it stays none.
        """
        frame = self.frame.copy()
        known = frame["p_yes"].notna() & frame["p_no"].notna()
        yes, no = frame["p_yes"] > frame["p_no"], frame["p_yes"] < frame["p_no"]
        for word, mask in (("yes", yes), ("no", no), (NONE, ~yes & ~no)):
            frame.loc[known & mask, "said"] = word
        records = [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]
        return Answers.of(records, {**self.table.provenance, "said_by": "logits"})

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the table with its provenance."""
        self.table.to_parquet(path)

    @classmethod
    def read_parquet(cls, path: str | os.PathLike[str]) -> Answers:
        """Read what `to_parquet` wrote.

        Raises:
            StoreError: No such file, or no table.
        """
        return cls(ResultTable.read_parquet(path))


_OF_THE_TABLE = (
    "tower", "layer", "site", "head", "position", "metric", "value", "unit",
)  # fmt: skip
