"""The zarr v3 arrays of a store: how they are laid out, written and read.

One array per tower and site name, all layers together: shard `(16 examples, layers, positions,
...)`, inner chunk `(16, 1, positions, ...)`, uncompressed, with a checksum per chunk. The layout
was measured to read one layer fast; the fill value is NaN, so that nothing absent reads as zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorstore as ts

from lvlm_interp.errors import StoreError
from lvlm_interp.sites import Site

__all__ = ["SHARD", "SiteGroup", "create", "open_array", "shard_files"]

SHARD = 16
"""Examples in one file."""


@dataclass(frozen=True)
class SiteGroup:
    """Sites of one tower and name, which share an array with an axis of layers.

    Attributes:
        name: `tower.name`, the array's name.
        sites: In the order of the axis.
    """

    name: str
    sites: tuple[Site, ...]

    @classmethod
    def of(cls, sites: Sequence[Site]) -> tuple[SiteGroup, ...]:
        """Sites grouped by tower and name, in order of first appearance."""
        found: dict[str, list[Site]] = {}
        for site in sites:
            found.setdefault(f"{site.tower}.{site.name}", []).append(site)
        return tuple(cls(name, tuple(each)) for name, each in found.items())


def create(path: Path, shape: Sequence[int], dtype: str, *, shard: int = SHARD) -> Any:
    """Open an array, made first where it is not there."""
    outer = [shard, *shape[1:]]
    return ts.open(_spec(path, shape, dtype, outer), open=True, create=True).result()


def open_array(path: Path) -> Any:
    """Open an array for reading.

    Raises:
        StoreError: It is missing or damaged.
    """
    try:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}}
        return ts.open(spec, open=True, read=True).result()
    except (ValueError, OSError) as error:
        raise StoreError(
            f"{path}: this array of the store is missing or damaged; extract it again with resume."
        ) from error


def shard_files(path: Path, ndim: int, rows: range) -> list[Path]:
    """Files that hold some rows of an array."""
    first, last = rows.start // SHARD, -(-rows.stop // SHARD)
    tail = "/".join(["0"] * (ndim - 1))
    return [path / "c" / str(index) / tail for index in range(first, last)]


def _spec(path: Path, shape: Sequence[int], dtype: str, outer: Sequence[int]) -> dict[str, Any]:
    checked = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    inner = [outer[0], 1, *outer[2:]]
    return {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        # A chunk of NaN (a position that no example has) must exist like any other.
        "store_data_equal_to_fill_value": True,
        "metadata": {
            "shape": list(shape),
            "data_type": dtype,
            "fill_value": "NaN",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(outer)}},
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": inner,
                        "codecs": checked,
                        "index_codecs": checked,
                    },
                }
            ],
        },
    }
