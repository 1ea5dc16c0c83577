"""Tidy result tables with provenance: one row per example x site x position x metric.

Nothing is averaged early: averages, intervals and figures are made from the table. What a result
shows in Jupyter comes from a registry that `plotting` fills (`displays`); this module imports no
plotting.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lvlm_interp.displays import display_of
from lvlm_interp.errors import StoreError, UsageError
from lvlm_interp.files import atomic_path
from lvlm_interp.provenance import provenance
from lvlm_interp.stats import Estimate, cluster_bootstrap, is_binary, rate

__all__ = ["COLUMNS", "Result", "ResultTable", "provenance"]

COLUMNS = (
    "example",
    "pair",
    "tower",
    "layer",
    "site",
    "head",
    "position",
    "metric",
    "value",
    "unit",
)
_INTEGER_COLUMNS = ("layer", "head")
_DTYPES = {"value": "float64", **dict.fromkeys(_INTEGER_COLUMNS, "Int64")}
"""Types of the columns above that are no strings."""

_SHARES = {"area", "fraction", "hit", "probability", "share"}
"""Units in which 0 and 1 are what a share or an area can be, and not amounts of something."""

_METADATA_KEY = b"lvlm_interp"
_SHOWN_ROWS = 10


class ResultTable:
    """A pandas frame in tidy long form, and where its numbers come from.

    The columns `example, pair, tower, layer, site, head, position, metric, value, unit` always
    exist; what does not apply is missing (NaN, or <NA>). `layer` and `head` are integers, `value`
    is a float, the others are strings, identifiers included, so that a table reads back from disk
    as it was. Further columns may follow and keep their type.

    Attributes:
        provenance: What `provenance(...)` collects: versions, seed, hashes, command.
    """

    def __init__(
        self,
        rows: pd.DataFrame
        | Iterable[Mapping[str, Any]]
        | Mapping[str, Any]
        | Callable[[], pd.DataFrame],
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a table.

        Args:
            rows: A frame, a list of rows, or a mapping from column to values; `metric` and `value`
                are needed. Or a function that makes the frame, called when it is first asked for:
                for tables of millions of rows that not everyone reads.
            provenance: Anything JSON can hold.

        Raises:
            UsageError: `metric` or `value` is missing, or a column cannot take its type.
        """
        self.provenance: dict[str, Any] = dict(provenance or {})
        if callable(rows):
            self._later = rows
            return
        if not isinstance(rows, pd.DataFrame):
            rows = pd.DataFrame(dict(rows) if isinstance(rows, Mapping) else list(rows))
        self.frame = _tidy(rows)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The table; treat it as read-only."""
        made = _tidy(self._later())
        del self._later  # and with it what it was made of
        return made

    def __len__(self) -> int:
        return len(self.frame)

    def select(self, **columns: Any) -> ResultTable:
        """The rows whose columns equal the given values; a list, tuple or set means any of them.

        A number may be given as text.

        Raises:
            UsageError: No such column, or a value that the column cannot hold.
        """
        keep = np.ones(len(self.frame), dtype=bool)
        for name, wanted in columns.items():
            column = self._column(name)
            options = (
                list(wanted) if isinstance(wanted, (list, tuple, set, frozenset)) else [wanted]
            )
            if name in COLUMNS and name not in (*_INTEGER_COLUMNS, "value"):
                options = [option if option is None else str(option) for option in options]
            elif pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
                options = [_number(name, option) for option in options]
            keep &= column.isin(options).to_numpy()
        return ResultTable(self.frame[keep], self.provenance)

    def estimate(
        self, *, cluster: str = "example", seed: int = 0, n_resamples: int = 2000
    ) -> Estimate:
        """Mean of all values with a 95% interval that takes whole clusters as its unit.

        Where all values are 0 or 1 and have no unit, or that of a share, it is `stats.rate`: its
        interval has a width also where all are alike. Else whole clusters are resampled.

        Missing values are left out and do not count in `n`.

        Args:
            cluster: Column whose equal values vary together, such as `example`, `pair` or a `group`
                column.
            seed: Of the bootstrap.
            n_resamples: Of the bootstrap.

        Raises:
            UsageError: Several metrics or units are in the table, the cluster column is missing in
                some rows only, or a value is infinite.
        """
        return _estimate(self.frame, self._cluster_column(cluster), seed, n_resamples)

    def mean(
        self,
        by: str | Sequence[str] = ("site", "metric"),
        *,
        cluster: str = "example",
        seed: int = 0,
        n_resamples: int = 2000,
    ) -> pd.DataFrame:
        """Mean per group with 95% intervals.

        Args:
            by: One column or several; a missing value is a group of its own.
            cluster: As in `estimate`.
            seed: Of the bootstrap.
            n_resamples: Of the bootstrap.

        Returns:
            One row per group, in order of first appearance: the `by` columns, then `estimate, low,
            high, n`.

        Raises:
            UsageError: As in `estimate`, and an unknown column.
        """
        columns = [by] if isinstance(by, str) else list(by)
        for name in columns:
            self._column(name)
        column = self._cluster_column(cluster)
        groups = self.frame.groupby(columns, dropna=False, sort=False, observed=True)
        rows = []
        for key, group in groups:
            estimate = _estimate(group, column, seed, n_resamples)
            fields = {
                "estimate": estimate.estimate,
                "low": estimate.low,
                "high": estimate.high,
                "n": estimate.n,
            }
            rows.append(dict(zip(columns, cast(tuple[Any, ...], key), strict=True)) | fields)
        table = pd.DataFrame(rows, columns=[*columns, "estimate", "low", "high", "n"])
        return table.astype({name: self.frame[name].dtype for name in columns})

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write the table, its provenance in the file's metadata; the file is whole or absent."""
        table = pa.Table.from_pandas(self.frame, preserve_index=False)
        text = json.dumps(self.provenance, sort_keys=True)
        table = table.replace_schema_metadata(
            {**(table.schema.metadata or {}), _METADATA_KEY: text.encode()}
        )
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary)
        return Path(path)

    @classmethod
    def read_parquet(cls, path: str | os.PathLike[str]) -> ResultTable:
        """Read what `to_parquet` wrote.

        Raises:
            StoreError: No such file, not parquet, or without our columns.
        """
        try:
            table = pq.read_table(path)
            text = (table.schema.metadata or {}).get(_METADATA_KEY, b"{}")
            return cls(table.to_pandas(), json.loads(text))
        except FileNotFoundError:
            raise StoreError(f"{path}: expected a result table, found no file") from None
        except (pa.ArrowInvalid, UsageError, json.JSONDecodeError) as error:
            raise StoreError(
                f"{path}: expected a result table in parquet, could not read it ({error})"
            ) from error

    @classmethod
    def concat(cls, tables: Iterable[ResultTable]) -> ResultTable:
        """One table after another; where their provenance differs, a list of the values.

        Raises:
            UsageError: No table was given.
        """
        tables = list(tables)
        if not tables:
            raise UsageError("expected at least one table to concatenate, got none")
        frames = [table.frame for table in tables if len(table)] or [tables[0].frame]
        return cls(
            pd.concat(frames, ignore_index=True), _merge([table.provenance for table in tables])
        )

    def __repr__(self) -> str:
        rows = self._shown().head(_SHOWN_ROWS).to_string(index=False)
        return f"ResultTable: {self._summary()}\n{rows}"

    def _repr_html_(self) -> str:
        shown = self._shown().head(_SHOWN_ROWS).to_html(index=False, border=0, escape=True)
        return f"<p>ResultTable: {html.escape(self._summary())}</p>{shown}"

    def _summary(self) -> str:
        metrics = ", ".join(self.frame["metric"].dropna().unique()) or "no metric"
        return f"{len(self)} rows, {self.frame['example'].nunique()} examples, metrics: {metrics}"

    def _shown(self) -> pd.DataFrame:
        return self.frame.dropna(axis="columns", how="all") if len(self) else self.frame

    def _column(self, name: str) -> pd.Series:
        if name not in self.frame:
            raise UsageError(
                f"no column {name!r} in this table; it has {', '.join(self.frame.columns)}"
            )
        return cast(pd.Series, self.frame[name])

    def _cluster_column(self, name: str) -> str | None:
        column = self._column(name)
        if column.isna().all():
            return None
        if column.isna().any():
            raise UsageError(
                f"cluster column {name!r} is missing in {column.isna().sum()} of {len(column)} rows"
            )
        return name


@dataclass(frozen=True, repr=False)
class Result:
    """Base of what methods return: a table, and how it shows itself in Jupyter.

    Subclass it as a frozen dataclass and add what the table cannot hold.

    Attributes:
        table: Every number, tidy.
    """

    table: ResultTable

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.table!r}"

    def _repr_html_(self) -> str:
        display = display_of(type(self))
        return display(self) if display else self.table._repr_html_()


def _number(name: str, value: Any) -> Any:
    """A value of a column of numbers, also where it was given as text."""
    if value is None or not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError as error:
        raise UsageError(f"The column {name!r} holds numbers, not {value!r}.") from error


def _tidy(frame: pd.DataFrame) -> pd.DataFrame:
    if _is_tidy(frame):
        return frame.copy(deep=False)
    missing = [name for name in ("metric", "value") if name not in frame]
    if missing and len(frame):
        raise UsageError(
            f"expected a column {missing[0]!r} in a result table, "
            f"got {', '.join(map(str, frame.columns))}"
        )
    columns: dict[str, pd.Series] = {}
    for name in COLUMNS:
        raw = (
            frame[name]
            if name in frame
            else pd.Series([None] * len(frame), index=frame.index, dtype=object)
        )
        try:
            columns[name] = _typed(name, cast(pd.Series, raw))
        except (TypeError, ValueError) as error:
            raise UsageError(f"column {name!r} cannot take its type: {error}") from error
    extra = {str(name): frame[name] for name in frame.columns if name not in COLUMNS}
    return pd.DataFrame({**columns, **extra}).reset_index(drop=True)


def _is_tidy(frame: pd.DataFrame) -> bool:
    names, index = list(frame.columns), frame.index
    if tuple(names[: len(COLUMNS)]) != COLUMNS or not all(isinstance(name, str) for name in names):
        return False
    counted = isinstance(index, pd.RangeIndex) and index.equals(pd.RangeIndex(len(frame)))
    if not counted or index.name is not None:
        return False
    return all(
        dtype == _DTYPES.get(name, "str")
        for name, dtype in zip(COLUMNS, frame.dtypes, strict=False)
    )


def _typed(name: str, column: pd.Series) -> pd.Series:
    if name == "value":
        return column.astype("float64")
    if name in _INTEGER_COLUMNS:
        return column.astype("Int64")
    if column.dtype == "str":
        return column
    if pd.api.types.is_float_dtype(
        column.dtype
    ):  # integer ids that pandas widened to make room for NaN
        column = column.astype("Int64")
    return column.astype(object).where(column.notna(), None).astype("str")


def _estimate(frame: pd.DataFrame, cluster: str | None, seed: int, n_resamples: int) -> Estimate:
    for name in ("metric", "unit"):
        kinds = frame[name].dropna().unique()
        if len(kinds) > 1:
            raise UsageError(
                f"a mean over several {name}s ({', '.join(kinds[:3])}) means nothing: "
                "select one or group by it"
            )
    kept = frame[frame["value"].notna()]
    labels = None if cluster is None else np.asarray(kept[cluster])
    values, units = np.asarray(kept["value"]), set(kept["unit"].dropna())
    if is_binary(values) and units <= _SHARES:
        return rate(values, labels)
    return cluster_bootstrap(values, labels, seed=seed, n_resamples=n_resamples)


def _merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for part in parts for key in part):
        values: list[Any] = []
        for part in parts:
            if part.get(key) not in values:
                values.append(part.get(key))
        merged[key] = values[0] if len(values) == 1 else values
    return merged
