"""`extract`: a data set through a model into a store, in units that survive being killed."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from lvlm_interp import jobs
from lvlm_interp.activations.arrays import SiteGroup
from lvlm_interp.activations.forward import Chunk, Runner
from lvlm_interp.activations.gather import Missing
from lvlm_interp.activations.manifest import MANIFEST, Manifest, Part
from lvlm_interp.activations.memory import as_examples
from lvlm_interp.activations.roles import check_sites, parse_roles
from lvlm_interp.activations.store import Store, open_store
from lvlm_interp.activations.units import is_whole, write_unit
from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.data.sources import data_hash, load_examples
from lvlm_interp.errors import DataError, ModelError, StoreError, UsageError
from lvlm_interp.models.identity import weight_hash
from lvlm_interp.models.loading import load_model
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.sites import Site

__all__ = ["Extraction", "extract"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_BATCH = 32


class Extraction(jobs.Job):
    """One part of a store that is being written.

    Attributes:
        folder, manifest, part: Where to.
        examples: All of the part.
        model: The model, or None where the engine's workers load it.
    """

    label = "extract"

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        part: Part,
        examples: Sequence[Example],
        model: LVLM | None,
    ) -> None:
        self.folder, self.manifest, self.part = folder, manifest, part
        self.examples, self.model = examples, model
        self._runner: Runner | None = None

    def start(self, threads: int | None = None) -> None:
        """Make ready to run forwards; loads the model where there is none.

        Raises:
            ModelError: The model that is loaded has other weights than the manifest's.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        if self.model is None:
            self.model = self._loaded()
        self._runner = Runner(
            self.model,
            [Site.parse(name) for name in self.manifest.sites],
            parse_roles(self.manifest.positions),
            batch_size=self.manifest.batch_size,
            dtype=_DTYPES[self.manifest.dtype],
            missing="nan" if self.manifest.missing == "nan" else "raise",
        )

    def _loaded(self) -> LVLM:
        name = self.manifest.model["name"]
        model = load_model(name, dtype=self.manifest.model["dtype"], selfcheck=False)
        if weight_hash(model) != self.manifest.model["weight_hash"]:
            raise ModelError(
                f"A worker loaded {name!r} and got other weights than the manifest's: give a path "
                "or revision that is the same on all machines."
            )
        return model

    def payload(self, key: int) -> list[Example]:
        """Examples of a unit."""
        return [self.examples[index] for index in self.part.examples(key)]

    def compute(self, key: int, payload: Sequence[Example]) -> Chunk:
        """Activations of a unit's examples."""
        assert self._runner is not None, "the engine starts the job"
        return self._runner.run(payload)

    def write(self, key: int, result: Chunk) -> None:
        """Write what was computed for one unit."""
        groups = SiteGroup.of([Site.parse(name) for name in self.manifest.sites])
        write_unit(self.folder, self.part, key, result, groups, self.manifest.dtype)

    @property
    def undone(self) -> list[int]:
        """Units without a marker, or with a file that is missing or cut short."""
        return [u for u in self.part.units if not is_whole(self.folder, self.part, u)]

    def bare(self) -> Extraction:
        """The job as workers elsewhere get it."""
        return Extraction(self.folder.resolve(), self.manifest, self.part, (), None)


def extract(
    model: LVLM,
    data: str | Iterable[Example | ContrastPair],
    *,
    sites: str | Iterable[str],
    positions: str | Iterable[str] = ("last",),
    out: str | os.PathLike[str],
    dtype: str | torch.dtype | None = None,
    batch_size: int | None = None,
    missing: Missing = "raise",
    resume: bool = False,
    append: bool = False,
    engine: jobs.Engine | None = None,
    name: str | None = None,
    progress: bool = True,
) -> Store:
    """Store the activations of a data set.

    Args:
        model: Runs the examples.
        data: Examples or pairs (both sides are taken), or a source such as `scenes:object:400:3`.
        sites: Names or globs; sites with one axis of positions.
        positions: Roles: `object`, `image_mean`, `question`, `last`, `text:WORD`, `image_all`, ...
        out: Folder of the store.
        dtype: `float32` or `bfloat16`; the model's by default.
        batch_size: Examples per forward, 32 by default; halves itself when memory runs out.
        missing: What a role does that an example lacks: `raise`, or `nan`.
        resume: Finish what is there; starts afresh where nothing is.
        append: Add the examples to a store that is finished.
        engine: Does the units; here and now by default, see `jobs.on_ray`.
        name: What to call the data in the manifest; the source, where one is given.
        progress: Show a bar.

    Raises:
        StoreError: `out` holds something else, or activations of another model, data set or dtype.
        SiteError, UsageError, InputError, DataError: See `collect`.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: expected at least one example per forward.")
    folder = Path(out)
    chosen, roles = model.sites(sites), parse_roles(positions)
    check_sites(chosen, roles)
    examples = as_examples(load_examples(data) if isinstance(data, str) else data)
    _check_ids(examples)
    old = _existing(folder, resume or append)
    wanted = Manifest.of(
        model,
        chosen,
        roles,
        dtype=_dtype_name(dtype or model.dtype),
        missing=missing,
        batch_size=batch_size or (old.batch_size if old else _BATCH),
    )
    name = name or (data if isinstance(data, str) else None)
    manifest, part = _part(old, wanted, folder, examples, name, append)
    job = Extraction(folder, manifest, part, examples, model)
    (engine or jobs.here(progress=progress))(job, job.undone)
    jobs.sweep_up(folder, _leftovers(manifest.parts))
    return open_store(folder)


def _existing(folder: Path, may_exist: bool) -> Manifest | None:
    """The manifest that is there; None where nothing is."""
    if (folder / MANIFEST).is_file():
        if not may_exist:
            raise StoreError(
                f"{folder} holds a store already: resume to finish it, append to add examples, or "
                "give another folder."
            )
        return Manifest.read(folder)
    if folder.exists() and (not folder.is_dir() or any(map(_is_users, folder.iterdir()))):
        raise StoreError(f"{folder} is not empty and no activation store: give another folder.")
    return None


def _is_users(path: Path) -> bool:
    # A run killed while it wrote its first file leaves nothing but that temporary.
    return not path.name.startswith(".manifest-")


def _part(
    old: Manifest | None,
    wanted: Manifest,
    folder: Path,
    examples: Sequence[Example],
    name: str | None,
    append: bool,
) -> tuple[Manifest, Part]:
    """The manifest with the part to be written, on disk."""
    digest = data_hash(examples)
    if old is not None:
        old.check_same(wanted, folder)
        for part in old.parts:
            if part.data_hash == digest and part.n == len(examples):
                return old, part
        if not append:
            parts = ", ".join(f"{p.data or p.data_hash[:12]} ({p.n} examples)" for p in old.parts)
            raise StoreError(
                f"{folder} holds activations of another data set: it has {parts}, this run "
                f"{name or digest[:12]} ({len(examples)} examples). Use append to add them, or "
                "write to another folder."
            )
        _check_new_ids(folder, examples)
    manifest = (old or wanted).with_part(len(examples), digest, name)
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write(folder)
    return manifest, manifest.parts[-1]


def _check_ids(examples: Sequence[Example]) -> None:
    twice = [name for name, n in Counter(example.id for example in examples).items() if n > 1]
    if twice:
        raise DataError(
            f"{len(twice)} ids occur more than once among the {len(examples)} examples, the first "
            f"{twice[0]!r}; ids must be unique, since tables join on them."
        )


def _check_new_ids(folder: Path, examples: Sequence[Example]) -> None:
    known = set(open_store(folder).labels["example"])
    twice = next((example.id for example in examples if example.id in known), None)
    if twice is not None:
        raise StoreError(f"{folder} holds the example {twice!r} already; ids must be unique.")


def _dtype_name(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise UsageError(f"Expected the dtype float32 or bfloat16, got {name!r}.")
    if name == "float16":
        warnings.warn(
            "float16 overflows on residual streams (values above 25,000 are usual): store bfloat16 "
            "or float32",
            stacklevel=3,
        )
    return name


def _leftovers(parts: Iterable[Part]) -> list[str]:
    """Globs of what killed writers leave: temporaries of ours and of tensorstore, no other file."""
    found = [".manifest-*.json"]
    for part in parts:
        units = f"{part.name}/units/.[0-9]*-*"
        found += [f"{units}.json*", f"{units}.parquet", f"{part.name}/**/*.__lock"]
    return found
