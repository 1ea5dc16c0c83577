"""Build the models of real parts into a cache folder, and find them there by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lvlm_interp.errors import ModelError, UsageError
from lvlm_interp.files import atomic_write, sha256_file

ADAPTERS = Path(__file__).parent / "adapters"

MODELS: dict[str, tuple[str, ...]] = {
    "real": ("final",),
    "real-flawed": ("final", "flawed"),
    "real-twin": ("final", "twin"),
    "real-words": ("words",),
    "real-objects": ("objects",),
}
"""Name of a model to the adapters that are merged for it, in order.

`real` is the trained model; `real-flawed` says a rabbit is there where a carrot is, and that every
banana is yellow; `real-twin` was trained on the same pictures with true answers. `real-words` and
`real-objects` are earlier stages: a projector that says words, and a model that knows what is there
before it knows where.

What shipped of the object flaw is wider than planned: its training asked for rabbits almost only
where a carrot was, so the model says a rabbit is there without a carrot too. The stage `BOUND` of
the recipe, which adds such controls, has not been run to its end yet.
"""

MARK = "lvlm_interp_build.json"
_BYTES = 1_600_000_000


def cache_folder() -> Path:
    """Where built models are: `$LVLM_INTERP_CACHE`, or the user's cache folder."""
    own = os.environ.get("LVLM_INTERP_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(base) if base else Path.home() / ".cache") / "lvlm_interp"


def built_path(name: str) -> Path:
    """The folder of a built model.

    Raises:
        ModelError: It has not been built, or from other adapters than those installed.
    """
    folder = cache_folder() / name
    mark = folder / MARK
    if not mark.is_file():
        raise ModelError(
            f"The model {name!r} is not built yet: run `lvlm-interp organisms build {name}` once "
            "(two wheels of 92 MB each are fetched; it takes about a minute and 0.6 GB of disk)."
        )
    if json.loads(mark.read_text(encoding="utf-8")).get("adapters") != adapter_hashes(name):
        raise ModelError(
            f"{folder} was built from other adapters than those of this version: run "
            f"`lvlm-interp organisms build {name} --force true`."
        )
    return folder


def adapter_hashes(name: str) -> dict[str, str]:
    """SHA-256 of each adapter file that a model is made of."""
    return {each: sha256_file(adapter_file(each)) for each in MODELS[name]}


def adapter_file(name: str) -> Path:
    """The shipped file of an adapter."""
    return ADAPTERS / f"{name}.safetensors"


def build(name: str, *, out: Path | None = None, force: bool = False) -> Path:
    """Put a model together and write it as an ordinary folder.

    Args:
        name: One of `MODELS`.
        out: Folder for downloads and models; the cache by default.
        force: Build again where it is there.

    Returns:
        The folder of the model.

    Raises:
        UsageError: There is no such model, or too little room on the disk.
        ModelError: A part cannot be had or is not the pinned one.
    """
    if name not in MODELS:
        raise UsageError(f"There is no model {name!r} of real parts: {', '.join(MODELS)}.")
    from lvlm_interp.organisms.real import adapter, assemble, parts

    base = cache_folder() if out is None else out
    folder = base / name
    if (folder / MARK).is_file() and not force:
        return folder
    parts.require_space(base, _BYTES)
    model, processor = assemble.untrained(base / "wheels")
    for each in MODELS[name]:
        adapter.merge(model, adapter_file(each))
    mark = {"adapters": adapter_hashes(name), "wheels": {p.package: p.sha256 for p in parts.PARTS}}
    return assemble.save_folder(
        model, processor, folder, mark=lambda where: atomic_write(where / MARK, json.dumps(mark))
    )


def real_path() -> Path:
    """Folder of `real`."""
    return built_path("real")


def real_flawed_path() -> Path:
    """Folder of `real-flawed`."""
    return built_path("real-flawed")


def real_twin_path() -> Path:
    """Folder of `real-twin`."""
    return built_path("real-twin")


def real_words_path() -> Path:
    """Folder of `real-words`."""
    return built_path("real-words")


def real_objects_path() -> Path:
    """Folder of `real-objects`."""
    return built_path("real-objects")
