"""Where numbers come from: versions, seed, hashes, command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import metadata
from typing import Any

from lvlm_interp import __version__

__all__ = ["provenance"]

_PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "scikit-learn",
    "transformer-lens",
    "nnsight",
)


def provenance(
    *,
    seed: int | None = None,
    model: str | None = None,
    weight_hash: str | None = None,
    data_hash: str | None = None,
    dtype: str | None = None,
    decoding: Mapping[str, Any] | None = None,
    command: Sequence[str] | str | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Where numbers come from, ready for `ResultTable` and `run.json`.

    Versions are read from the installed packages' metadata, so that nothing heavy is imported.
    There is no time in it: the same run gives the same file.

    Args:
        seed: Of everything random.
        model: Name, path or hub id, with its revision.
        weight_hash: SHA-256 of the weights.
        data_hash: SHA-256 of the data.
        dtype: Of the forward passes, for example `"float32"`.
        decoding: Settings of `generate`.
        command: What was typed, quoted so that it can be typed again; None takes `sys.argv`.
        **extra: Anything else JSON can hold.
    """
    words = sys.argv if command is None else command
    return {
        "versions": dict(_versions()),
        "seed": seed,
        "model": model,
        "weight_hash": weight_hash,
        "data_hash": data_hash,
        "dtype": dtype,
        "decoding": None if decoding is None else dict(decoding),
        "command": words if isinstance(words, str) else shlex.join(words),
        **extra,
    }


@lru_cache(maxsize=1)  # the metadata of seven packages takes 20 ms to parse
def _versions() -> dict[str, str]:
    found = {"lvlm_interp": __version__, "python": ".".join(map(str, sys.version_info[:3]))}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
