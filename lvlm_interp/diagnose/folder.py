"""The output folder of a run: steps that are done stay done, and two runs never mix."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_interp.errors import UsageError
from lvlm_interp.files import atomic_write
from lvlm_interp.results import ResultTable

RUN_FILE = "run.json"

_MADE_BY = "lvlm-interp diagnose"
"""What tells a run of ours from another tool's, which may call its file the same."""

_OWN = {
    ".": (RUN_FILE, "summary.json", "report.html"),
    "tables": ("*.parquet",),
    "figures": ("*.pdf", "*.png"),
}
"""What a run writes, by folder: all that `--force` may delete. A step that writes more adds it."""


@dataclass(frozen=True)
class RunFolder:
    """Where one run writes.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def open(
        cls, path: str | Path, key: Mapping[str, Any], *, resume: bool = False, force: bool = False
    ) -> RunFolder:
        """Make the folder, or go on in it.

        Args:
            path: The folder.
            key: What makes a run the same run: model, weights, data, seed, settings.
            resume: Go on with an unfinished run of the same key; starts afresh where nothing is.
            force: Throw away what another run left.

        Raises:
            UsageError: The folder holds another run, or something that is no run.
        """
        folder = Path(path)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--out {folder} is a file: name a folder.")
        if folder.exists() and any(folder.iterdir()):
            _settle(folder, key, resume=resume, force=force)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(
            folder / RUN_FILE,
            json.dumps({**key, "made_by": _MADE_BY}, indent=2, sort_keys=True) + "\n",
        )
        return cls(folder)

    def table(self, name: str, make: Callable[[], ResultTable]) -> ResultTable:
        """The table of a step: read where it is there already, else made and written whole."""
        path = self.path / "tables" / f"{name}.parquet"
        if path.is_file():
            return ResultTable.read_parquet(path)
        table = make()
        table.to_parquet(path)
        return ResultTable.read_parquet(path)

    def write(self, name: str, text: str) -> Path:
        """Write a text file whole."""
        return atomic_write(self.path / name, text)


def _settle(folder: Path, key: Mapping[str, Any], *, resume: bool, force: bool) -> None:
    there = _run_of_ours(folder)
    if force:
        if there is None:
            raise UsageError(
                f"--out {folder} holds files but no run of diagnose: --force would delete them; "
                "name another folder."
            )
        _clear(folder)
        return
    if there is None:
        raise UsageError(f"--out {folder} is not empty and holds no run: name another folder.")
    if not resume:
        raise UsageError(
            f"--out {folder} holds another run: add --resume to go on with it, or --force to "
            "replace it."
        )
    differs = [name for name in key if name != "command" and there.get(name) != key[name]]
    if differs:
        raise UsageError(
            f"--out {folder} holds a run that differs in {', '.join(differs)}: use --force to "
            "replace it, or name another folder."
        )


def _run_of_ours(folder: Path) -> dict[str, Any] | None:
    """What `run.json` says where it is one of `diagnose`; None where it is missing or foreign."""
    run = folder / RUN_FILE
    if run.is_symlink() or not run.is_file():
        return None
    try:
        there = json.loads(run.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(there, dict) and there.get("made_by") == _MADE_BY
    return there if ours else None


def _clear(folder: Path) -> None:
    """Delete what a run writes, by its names; whatever else lies there stays.

    Links are never followed: one that has a name of ours stays too.
    """
    for name, patterns in _OWN.items():
        place = folder / name
        if place.is_symlink() or not place.is_dir():
            continue
        for path in list(place.iterdir()):
            own = any(path.match(pattern) for pattern in patterns)
            if own and path.is_file() and not path.is_symlink():
                path.unlink()
        if place != folder and not any(place.iterdir()):
            place.rmdir()
