"""Reading the tables behind the figures, and writing the figures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import lvlm_interp as li
from lvlm_interp.files import atomic_write
from lvlm_interp.plotting.style import to_png

HERE = Path(__file__).parent
GALLERY = HERE.parent / "docs" / "images" / "figures"


def read(name: str) -> pd.DataFrame:
    """A table of `figures/data`, without the columns that are empty."""
    frame = li.ResultTable.read_parquet(HERE / "data" / f"{name}.parquet").frame
    return frame.dropna(axis="columns", how="all").drop(columns="value")


def write(figure: Figure, name: str) -> None:
    """Pdf, svg and png in `figures/out`, and a small png for the gallery of the documentation."""
    atomic_write(GALLERY / f"{name}.png", to_png(figure, dpi=110))
    for path in li.plotting.save(figure, HERE / "out" / name, formats=("pdf", "svg", "png")):
        print(path.relative_to(HERE.parent))
