"""The manifest of a store: what it holds, and what must agree before more is added."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lvlm_interp.activations.roles import Role
from lvlm_interp.errors import StoreError
from lvlm_interp.files import atomic_write
from lvlm_interp.models.identity import processor_hash, weight_hash
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.results import provenance
from lvlm_interp.sites import Site

__all__ = ["FORMAT", "MANIFEST", "UNIT", "Manifest", "Part"]

FORMAT = 1
MANIFEST = "manifest.json"
UNIT = 128
"""Examples that are batched together and finished together; a multiple of a shard."""


@dataclass(frozen=True)
class Part:
    """Examples that were extracted together.

    Attributes:
        name: Its folder in the store.
        n: Number of examples.
        data_hash: Of the examples.
        data: What the data were called, for example `scenes:object:400:3`.
        unit: Examples in a unit of work.
    """

    name: str
    n: int
    data_hash: str
    data: str | None = None
    unit: int = UNIT

    @property
    def units(self) -> range:
        """Numbers of its units of work."""
        return range(-(-self.n // self.unit))

    def examples(self, unit: int) -> range:
        """Examples of a unit, counted within the part."""
        return range(unit * self.unit, min((unit + 1) * self.unit, self.n))


@dataclass(frozen=True)
class Manifest:
    """What a store holds; two runs can share a store only if they agree in all but the parts.

    Attributes:
        model: Name, revision, family, dtype, hashes of weights and processor.
        sites: Names, in the order of the forward.
        positions: Roles as they were asked for.
        dtype: Of what is stored.
        missing: What a role does that an example lacks.
        batch_size: Examples per forward; kept because it decides the last bits.
        versions: Of the packages.
        parts: The data.
    """

    model: Mapping[str, Any]
    sites: tuple[str, ...]
    positions: tuple[str, ...]
    dtype: str
    missing: str
    batch_size: int
    versions: Mapping[str, str]
    parts: tuple[Part, ...] = ()

    @classmethod
    def of(
        cls,
        model: LVLM,
        sites: Sequence[Site],
        roles: Sequence[Role],
        *,
        dtype: str,
        missing: str,
        batch_size: int,
    ) -> Manifest:
        """The manifest of an extraction that is about to start."""
        about = {
            "name": model.name,
            "revision": getattr(model.config, "_commit_hash", None),
            "family": model.family.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "weight_hash": weight_hash(model),
            "processor_hash": processor_hash(model),
        }
        versions = provenance(command="")["versions"]
        names, places = tuple(map(str, sites)), tuple(role.name for role in roles)
        return cls(about, names, places, dtype, missing, batch_size, versions)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a store.

        Raises:
            StoreError: There is none, or it is not one of this format.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise StoreError(f"{folder} is no activation store: it has no {MANIFEST}.")
        try:
            fields = json.loads(path.read_text())
            if fields.pop("format") != FORMAT:
                raise StoreError(f"{path}: this version reads format {FORMAT}: extract again.")
            parts = tuple(Part(**part) for part in fields.pop("parts"))
            sites, positions = tuple(fields.pop("sites")), tuple(fields.pop("positions"))
            return cls(**fields, sites=sites, positions=positions, parts=parts)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} is no manifest of an activation store: {error}") from error

    def write(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        fields = {"format": FORMAT, **asdict(self)}
        atomic_write(folder / MANIFEST, json.dumps(fields, indent=1, sort_keys=True) + "\n")

    def with_part(self, n: int, data_hash: str, data: str | None) -> Manifest:
        """The manifest with one more part."""
        part = Part(f"{len(self.parts):03d}", n, data_hash, data, UNIT)
        return replace(self, parts=(*self.parts, part))

    def check_same(self, other: Manifest, folder: Path) -> None:
        """Refuse to add to this store what `other` would write.

        Raises:
            StoreError: They differ; the message says in what.
        """
        mine = {f"model {key}": value for key, value in self.model.items() if key != "name"}
        theirs = {f"model {key}": value for key, value in other.model.items() if key != "name"}
        for name in ("sites", "positions", "dtype", "missing", "batch_size"):
            mine[name], theirs[name] = getattr(self, name), getattr(other, name)
        differ = [name for name in mine if mine[name] != theirs.get(name)]
        if differ:
            name = differ[0]
            raise StoreError(
                f"{folder} holds activations with another {name}: it has {_short(mine[name])}, "
                f"this run {_short(theirs.get(name))}. Write to another folder."
                + (f" They also differ in {', '.join(differ[1:])}." if differ[1:] else "")
            )


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} ({', '.join(value[:4])}{', ...' if len(value) > 4 else ''})"
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
