"""Markers of finished shards, and what killed writers leave behind."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_interp.errors import StoreError
from lvlm_interp.files import atomic_write, sha256_file

__all__ = ["is_whole", "read_marker", "sweep_up", "write_marker"]


def write_marker(
    marker: Path, root: Path, files: Sequence[Path], more: Mapping[str, Any] | None = None
) -> None:
    """Say that a shard is on disk: size and SHA-256 of each of its files, by path within `root`."""
    content = {
        "files": {
            path.relative_to(root).as_posix(): [path.stat().st_size, sha256_file(path)]
            for path in files
        },
        **(more or {}),
    }
    atomic_write(marker, json.dumps(content, sort_keys=True) + "\n")


def read_marker(marker: Path) -> dict[str, Any]:
    """What a marker says.

    Raises:
        StoreError: There is none, or it is damaged.
    """
    try:
        content = json.loads(marker.read_text())
        # Files are checked, and deleted for repair, by these names: none may lead out of the root.
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in content["files"]):
            raise ValueError("a name leads out of the folder")
        return content
    except FileNotFoundError:
        raise StoreError(f"{marker} is missing: the shard is not finished; resume.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{marker} is damaged; delete it and resume.") from error


def is_whole(marker: Path, root: Path) -> bool:
    """Whether a shard has its marker and all its files, of the right size.

    Raises:
        StoreError: The marker is damaged.
    """
    if not marker.is_file():
        return False
    files = read_marker(marker)["files"]
    return all(_size(root / name) == size for name, (size, _) in files.items())


def sweep_up(folder: Path, patterns: Iterable[str]) -> None:
    """Remove what killed writers left: files that fit these globs, and no other."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.is_file():
                path.unlink(missing_ok=True)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
