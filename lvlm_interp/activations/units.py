"""Units of work: some examples, computed and written together, with a marker when all is on disk.

A unit is idempotent: written again it gives the same bytes, and without its marker it counts as not
written. So a run can be killed at any moment, and units can be done in any order, on any machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lvlm_interp.activations.arrays import SiteGroup, create, shard_files
from lvlm_interp.activations.forward import Chunk
from lvlm_interp.activations.manifest import Part
from lvlm_interp.errors import StoreError
from lvlm_interp.files import atomic_path, atomic_write
from lvlm_interp.jobs import markers

__all__ = ["is_done", "is_whole", "marker_of", "read_marker", "read_rows", "write_unit"]

_UNITS = "units"


def is_done(folder: Path, part: Part, unit: int) -> bool:
    """Whether a unit has its marker."""
    return marker_of(folder, part, unit).is_file()


def is_whole(folder: Path, part: Part, unit: int) -> bool:
    """Whether a unit has its marker and all its files, of the right size."""
    return markers.is_whole(marker_of(folder, part, unit), folder)


def marker_of(folder: Path, part: Part, unit: int) -> Path:
    """Path of a unit's marker."""
    return folder / part.name / _UNITS / f"{unit:06d}.json"


def read_marker(folder: Path, part: Part, unit: int) -> dict[str, Any]:
    """What a finished unit wrote: `files` (size and SHA-256 by path) and `counts` of tokens.

    Raises:
        StoreError: The unit is not finished, or its marker is damaged.
    """
    try:
        return markers.read_marker(marker_of(folder, part, unit))
    except StoreError as error:
        raise StoreError(
            f"{folder}: unit {unit} of part {part.name} cannot be read ({error}); finish the store "
            "with resume."
        ) from error


def read_rows(folder: Path, part: Part, unit: int) -> list[dict[str, Any]]:
    """Labels of a unit's examples.

    Raises:
        StoreError: The file is missing or damaged.
    """
    path = _rows_path(folder, part, unit)
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is missing or damaged; see store verify.") from error


def write_unit(
    folder: Path, part: Part, unit: int, chunk: Chunk, groups: tuple[SiteGroup, ...], dtype: str
) -> None:
    """Write everything of a unit, then its marker."""
    rows, files = part.examples(unit), []
    root = folder / part.name
    for group in groups:
        files += _write_pooled(root, group, chunk, rows, part.n, dtype)
        files += _write_every(root, group, chunk, unit, dtype)
    text = "".join(f"{json.dumps(_json_row(row))}\n" for row in chunk.rows)
    files.append(atomic_write(_rows_path(folder, part, unit), text))
    maps = root / _UNITS / f"{unit:06d}.tokens.parquet"
    with atomic_path(maps) as temporary:
        pq.write_table(_token_table(chunk.token_maps), temporary)
    files.append(maps)
    counts = {f"{tower}/{role}": n.tolist() for (tower, role), n in chunk.counts.items()}
    markers.write_marker(marker_of(folder, part, unit), folder, files, {"counts": counts})


def _token_table(maps: Sequence[Mapping[str, np.ndarray]]) -> pa.Table:
    """One row per example, a list over positions in each column; made of whole columns at once."""
    ends = np.cumsum([0, *(len(each["ids"]) for each in maps)])
    columns = {}
    for name in maps[0] if maps else ():
        flat = np.concatenate([each[name] for each in maps])
        values = pa.array(flat.ravel())
        if flat.ndim == 2:
            width = flat.shape[1]
            values = pa.ListArray.from_arrays(
                pa.array(np.arange(0, flat.size + 1, width), pa.int32()), values
            )
        columns[name] = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values)
    return pa.table(columns)


def every_path(root: Path, group: SiteGroup, role: str, unit: int) -> Path:
    """Array of one unit for a role that keeps every token."""
    return root / "tokens" / group.name / role.replace(":", "_") / f"{unit:06d}"


def _write_pooled(
    root: Path, group: SiteGroup, chunk: Chunk, rows: range, n: int, dtype: str
) -> list[Path]:
    values = np.stack([chunk.pooled[site] for site in group.sites], axis=1)
    if not values.shape[2]:
        return []
    path = root / group.name
    array = create(path, (n, *values.shape[1:]), dtype)
    files = shard_files(path, values.ndim, rows)
    _remove(files)
    array[rows.start : rows.stop].write(np.ascontiguousarray(values)).result()
    return [path / "zarr.json", *files]


def _write_every(
    root: Path, group: SiteGroup, chunk: Chunk, unit: int, dtype: str
) -> Iterator[Path]:
    for site, role in chunk.every:
        if site != group.sites[0]:
            continue
        values = np.stack([chunk.every[each, role] for each in group.sites], axis=1)
        if not len(values):
            continue
        path = every_path(root, group, role, unit)
        array = create(path, values.shape, dtype, shard=len(values))
        file = path / "c" / "/".join(["0"] * values.ndim)
        _remove([file])
        array.write(np.ascontiguousarray(values)).result()
        yield path / "zarr.json"
        yield file


def _remove(files: list[Path]) -> None:
    # What a killed run left is written anew, not merged with.
    for path in files:
        path.unlink(missing_ok=True)


def _rows_path(folder: Path, part: Part, unit: int) -> Path:
    return folder / part.name / _UNITS / f"{unit:06d}.jsonl"


def _json_row(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in row.items()
    }
