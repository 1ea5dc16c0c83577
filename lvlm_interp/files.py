"""Files that are either whole or absent, and the hashes that identify them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_path", "atomic_write", "sha256_bytes", "sha256_file", "sha256_folder"]

_CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`, and move it there when the block ends well.

    A killed or failing block leaves `path` as it was. Missing parent folders are made.

    Args:
        path: Where the finished file shall be.

    Yields:
        The path to write to, with the same suffix as `path`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike[str], data: str | bytes) -> Path:
    """Write `data` (text as UTF-8) to `path` so that no reader ever sees half of it.

    Returns:
        `path`, as a `Path`.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return Path(path)


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content in hexadecimal; reads 1 MiB at a time."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_folder(folder: str | os.PathLike[str], pattern: str = "**/*") -> str:
    """SHA-256 over the names and contents of the files of a folder.

    Args:
        folder: Where to look.
        pattern: Glob of the files that count, for example `"*.safetensors"` for weights alone.

    Returns:
        One hexadecimal hash; the same wherever the folder lies and in whatever order it is listed.
    """
    root = Path(folder)
    digest = hashlib.sha256()
    for path in sorted(root.glob(pattern), key=lambda found: found.relative_to(root).as_posix()):
        if path.is_file():
            digest.update(f"{path.relative_to(root).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    # The mask can only be read by setting it; mkstemp makes 0600 files whatever it says.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
