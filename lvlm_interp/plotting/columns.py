"""What a figure takes: a frame, a `ResultTable` or a `Result`, with the columns it needs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from lvlm_interp.errors import UsageError
from lvlm_interp.results import Result, ResultTable

Table = pd.DataFrame | ResultTable | Result
"""A table of estimates (`estimate, low, high, n`), or a tidy one, which is averaged by
`ResultTable.mean` over the rows that the figure does not tell apart."""


def estimates(
    table: Table, by: Sequence[str], figure: str, optional: Sequence[str] = ()
) -> pd.DataFrame:
    """Estimates with intervals, one row per combination of `by`.

    Raises:
        UsageError: A column is missing, a frame is neither form, or rows are double.
    """
    result = table.table if isinstance(table, Result) else table
    frame = result.frame if isinstance(result, ResultTable) else result
    by = [*by, *(name for name in optional if name in frame and not frame[name].isna().all())]
    require(frame, by, figure)
    if "estimate" not in frame:
        if not isinstance(result, ResultTable):
            raise UsageError(
                f"{figure} needs the columns estimate, low, high, n, or a ResultTable to average; "
                f"the frame has {', '.join(map(str, frame.columns))}."
            )
        frame = result.mean(by)
    else:
        require(frame, ["estimate"], figure)
        for name in ("low", "high", "n"):
            if name not in frame:
                frame = frame.assign(**{name: float("nan")})
    if len(frame) == 0:
        raise UsageError(f"{figure} got a table without rows.")
    double = frame.duplicated(by)
    if double.any():
        first = frame[double].astype(object).iloc[0]
        where = ", ".join(f"{name} {first[name]}" for name in by)
        raise UsageError(
            f"{figure} draws one value per {' x '.join(by)}, the table has several at {where}: "
            "select one metric or average first."
        )
    return frame.reset_index(drop=True)


def require(frame: pd.DataFrame, columns: Sequence[str], figure: str) -> None:
    """Check that columns exist.

    Raises:
        UsageError: One does not; the message names it and those that exist.
    """
    missing = [name for name in columns if name not in frame]
    if missing:
        raise UsageError(
            f"{figure} needs the column {missing[0]!r}; "
            f"the table has {', '.join(map(str, frame.columns))}."
        )


def order(values: pd.Series) -> list:
    """Distinct values in order of first appearance."""
    return list(dict.fromkeys(values.tolist()))


def intervals(frame: pd.DataFrame) -> list[list[float]]:
    """Distances from the estimate to the ends of its interval, as matplotlib's `yerr`.

    A bound that is missing gives no bar on that side.
    """
    low = (frame["estimate"] - frame["low"]).fillna(0).clip(lower=0)
    high = (frame["high"] - frame["estimate"]).fillna(0).clip(lower=0)
    return [low.tolist(), high.tolist()]
