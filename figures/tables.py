"""Reading the tables behind the figures, and writing the figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import lvlm_interp as li

HERE = Path(__file__).parent


def read(name: str) -> pd.DataFrame:
    """A table of `figures/data`, without the columns that are empty."""
    frame = li.ResultTable.read_parquet(HERE / "data" / f"{name}.parquet").frame
    return frame.dropna(axis="columns", how="all").drop(columns="value")


def write(figure: Figure, name: str) -> None:
    """Pdf and png beside each other in `figures/out`."""
    for path in li.plotting.save(figure, HERE / "out" / name, formats=("pdf", "svg", "png")):
        print(path.relative_to(HERE.parent))
