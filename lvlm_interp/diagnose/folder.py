"""The output folder of a run: steps that are done stay done, and two runs never mix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_interp.errors import UsageError
from lvlm_interp.files import atomic_write
from lvlm_interp.results import ResultTable

RUN_FILE = "run.json"


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
        atomic_write(folder / RUN_FILE, json.dumps(dict(key), indent=2, sort_keys=True) + "\n")
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
    run = folder / RUN_FILE
    if force:
        if not run.is_file():
            raise UsageError(
                f"--out {folder} holds files but no run of diagnose: --force would delete them; "
                "name another folder."
            )
        shutil.rmtree(folder)
        return
    if not run.is_file():
        raise UsageError(f"--out {folder} is not empty and holds no run: name another folder.")
    if not resume:
        raise UsageError(
            f"--out {folder} holds another run: add --resume to go on with it, or --force to "
            "replace it."
        )
    there = json.loads(run.read_text(encoding="utf-8"))
    differs = [name for name in key if name != "command" and there.get(name) != key[name]]
    if differs:
        raise UsageError(
            f"--out {folder} holds a run that differs in {', '.join(differs)}: use --force to "
            "replace it, or name another folder."
        )
