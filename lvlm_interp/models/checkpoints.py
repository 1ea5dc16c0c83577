"""Files of a checkpoint: whole or not, an adapter or a model, before anything is read from them."""

from __future__ import annotations

import json
from pathlib import Path

from lvlm_interp.errors import ModelError

POINTER = b"version https://git-lfs"
_HEADER_BYTES = 8


def check_files(folder: Path) -> None:
    """Refuse a folder whose files are no weights yet, or not all of them.

    Raises:
        ModelError: A file is a pointer of git-lfs, or a weight file ends before its last tensor.
    """
    for path in sorted(folder.iterdir()):
        if path.is_file() and _begin(path).startswith(POINTER):
            raise ModelError(
                f"{path} is a pointer of git-lfs and not the file itself: download it again "
                "(`git lfs pull` in its folder)."
            )
    for path in sorted(folder.glob("*.safetensors")):
        expected, found = _expected_size(path), path.stat().st_size
        if expected is None or found < expected:
            wanted = "a header" if expected is None else f"{expected} bytes"
            raise ModelError(
                f"{path} is cut short: expected {wanted}, it has {found} bytes; download it again."
            )


def _begin(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(POINTER))


def _expected_size(path: Path) -> int | None:
    """Size that a safetensors file says it has; None without a whole header.

    The file begins with the length of its JSON header, which gives the bytes of every tensor.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_BYTES), "little")
        if not 0 < length <= path.stat().st_size - _HEADER_BYTES:
            return None
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return None
    ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
    return _HEADER_BYTES + length + max(ends, default=0)


def base_of(folder: Path) -> str | None:
    """What an adapter folder names as its model; None where the folder is no adapter.

    Raises:
        ModelError: It names none.
    """
    path = folder / "adapter_config.json"
    if not path.is_file() or (folder / "config.json").is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{path} is no JSON object: {error}.") from error
    if not base:
        raise ModelError(f"{path} names no base model: write its path to base_model_name_or_path.")
    return str(base)
