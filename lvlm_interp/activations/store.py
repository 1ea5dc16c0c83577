"""Store: activations on disk, read lazily; and the check that every byte is as it was written."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lvlm_interp.activations.arrays import SHARD, SiteGroup, open_array, shard_files
from lvlm_interp.activations.base import Activations, Rows, label_frame
from lvlm_interp.activations.manifest import Manifest, Part
from lvlm_interp.activations.roles import Role, parse_roles
from lvlm_interp.activations.units import every_path, is_done, marker_of, read_marker, read_rows
from lvlm_interp.errors import StoreError
from lvlm_interp.files import sha256_file
from lvlm_interp.sites import Site

__all__ = ["Store", "open_store", "verify_store"]


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a finished store; nothing but its manifest is read.

    Raises:
        StoreError: No store is there, or it is not finished.
    """
    folder = Path(path)
    manifest = Manifest.read(folder)
    for part in manifest.parts:
        undone = [unit for unit in part.units if not is_done(folder, part, unit)]
        if undone:
            raise StoreError(
                f"{folder} is not finished: {len(undone)} of {len(part.units)} units of part "
                f"{part.name} are missing; finish it with resume."
            )
    return Store(folder, manifest)


class Store(Activations):
    """Activations on disk; see `Activations`. A slice reads only the files that it touches.

    Attributes:
        folder: Where it is.
        manifest: What it holds.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        sites = [Site.parse(name) for name in manifest.sites]
        about = {
            "versions": dict(manifest.versions),
            "model": manifest.model["name"],
            "weight_hash": manifest.model["weight_hash"],
            "data_hash": [part.data_hash for part in manifest.parts],
            "dtype": manifest.model["dtype"],
        }
        super().__init__(sites, parse_roles(manifest.positions), about)
        self.folder, self.manifest = folder, manifest
        self._places = {
            site: (group, index)
            for group in SiteGroup.of(sites)
            for index, site in enumerate(group.sites)
        }
        self._arrays: dict[tuple[str, str], Any] = {}
        self._seen: set[Path] = set()

    def __len__(self) -> int:
        return sum(part.n for part in self.manifest.parts)

    @cached_property
    def labels(self) -> pd.DataFrame:
        """One row per example, read once."""
        rows = [
            row
            for part in self.manifest.parts
            for unit in part.units
            for row in read_rows(self.folder, part, unit)
        ]
        return label_frame(rows)

    def token_maps(self, part: int = 0, unit: int = 0) -> pd.DataFrame:
        """Ids, kinds, grid cells and boxes of the positions of a unit's examples."""
        name = self.manifest.parts[part].name
        return pd.read_parquet(self.folder / name / "units" / f"{unit:06d}.tokens.parquet")

    def _shape(self, site: Site) -> tuple[tuple[int, ...], np.dtype]:
        group, _ = self._places[site]
        array = self._array(self.manifest.parts[0], group)
        return (len(self), *array.shape[2:]), array.dtype.numpy_dtype

    def _read(self, site: Site, rows: Rows, rest: tuple[Any, ...]) -> np.ndarray:
        group, layer = self._places[site]
        if isinstance(rows, slice) and rows.step not in (None, 1):
            rows = np.arange(len(self))[rows]
        wanted = np.arange(len(self))[rows] if isinstance(rows, slice) else rows
        shape, dtype = self._shape(site)
        pieces, order, start = [], [], 0
        for part in self.manifest.parts:
            here = np.flatnonzero((wanted >= start) & (wanted < start + part.n))
            if len(here):
                values = self._read_part(part, group, layer, wanted[here] - start, rest)
                pieces.append(values)
                order.append(here)
            start += part.n
        if not pieces:
            return np.empty((0, *shape[1:]), dtype)[(slice(None), *rest)]
        if len(pieces) == 1:
            return pieces[0]
        out = np.empty((len(wanted), *pieces[0].shape[1:]), dtype)
        for at, values in zip(order, pieces, strict=True):
            out[at] = values
        return out

    def _read_part(
        self, part: Part, group: SiteGroup, layer: int, rows: np.ndarray, rest: tuple[Any, ...]
    ) -> np.ndarray:
        array = self._array(part, group)
        path = self.folder / part.name / group.name
        self._check_files(path, array.ndim, rows)
        first, last = int(rows.min()), int(rows.max()) + 1
        whole = last - first == len(rows) and bool((np.diff(rows) == 1).all())
        view = array[first:last, layer] if whole else array.oindex[rows, layer]
        # Basic indices go to the store, so that only what is asked for is copied; lists come after.
        basic = all(isinstance(each, int | np.integer | slice) for each in rest)
        try:
            if basic and rest:
                values = view[(slice(None), *(_plain(each) for each in rest))].read().result()
            else:
                values = view.read().result()[(slice(None), *rest)]
        except (ValueError, OSError) as error:
            raise StoreError(
                f"{path}: a chunk of rows {first} to {last - 1} is damaged ({_first(error)}); run "
                "store verify with repair, and extract with resume."
            ) from error
        return np.asarray(values)

    def _read_tokens(self, site: Site, role: Role) -> tuple[np.ndarray, np.ndarray]:
        group, layer = self._places[site]
        pieces, counts = [], []
        for part in self.manifest.parts:
            for unit in part.units:
                here = read_marker(self.folder, part, unit)["counts"][f"{site.tower}/{role.name}"]
                counts += here
                if sum(here):
                    path = every_path(self.folder / part.name, group, role.name, unit)
                    pieces.append(open_array(path)[:, layer].read().result())
        return np.concatenate(pieces), np.repeat(np.arange(len(counts)), counts)

    def _array(self, part: Part, group: SiteGroup) -> Any:
        key = (part.name, group.name)
        if key not in self._arrays:
            self._arrays[key] = open_array(self.folder / part.name / group.name)
        return self._arrays[key]

    def _check_files(self, path: Path, ndim: int, rows: np.ndarray) -> None:
        """An absent file would read as the fill value: refuse it by name."""
        for shard in np.unique(rows // SHARD):
            (file,) = shard_files(path, ndim, range(shard * SHARD, shard * SHARD + 1))
            if file not in self._seen:
                if not file.is_file():
                    raise StoreError(
                        f"{file} is missing from the store; run store verify, and extract again "
                        "with resume."
                    )
                self._seen.add(file)


def verify_store(path: str | os.PathLike[str], *, repair: bool = False) -> list[str]:
    """What is wrong with a store: every file that is unfinished, missing or not as it was written.

    Args:
        path: Folder of the store.
        repair: Delete what is damaged, so that `extract(..., resume=True)` makes it anew.

    Returns:
        One sentence per problem, naming the file; empty when all is well.

    Raises:
        StoreError: No store is there.
    """
    folder = Path(path)
    manifest = Manifest.read(folder)
    found = []
    for part in manifest.parts:
        for unit in part.units:
            try:
                files = read_marker(folder, part, unit)["files"]
            except StoreError as error:
                found.append(str(error))
                continue
            wrong = _wrong_files(folder, files)
            found += [f"{name}: {what}" for name, what in wrong]
            if repair and wrong:
                marker_of(folder, part, unit).unlink()
                for name, _ in wrong:
                    (folder / name).unlink(missing_ok=True)
    return list(dict.fromkeys(found))


def _wrong_files(folder: Path, files: dict[str, list[Any]]) -> list[tuple[str, str]]:
    wrong = []
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            wrong.append((name, "it is missing"))
        elif path.stat().st_size != size:
            wrong.append((name, f"it has {path.stat().st_size} bytes, {size} were written"))
        elif sha256_file(path) != digest:
            wrong.append((name, "its content is not what was written"))
    return wrong


def _plain(index: Any) -> Any:
    return int(index) if isinstance(index, np.integer) else index


def _first(error: Exception) -> str:
    return str(error).split("\n")[0][:120]
