"""A unified benchmark on disk: questions as rows of JSON, what reads the replies beside them.

`rows.jsonl` is a data file like any other (`li.load_examples` reads it); `bench.json` holds the
wording, the names that a description can claim, their supercategories, and where all came from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lvlm_interp.data.benchmarks.graphs import SceneGraph, read_graphs
from lvlm_interp.data.benchmarks.records import read_json
from lvlm_interp.data.examples import Annotated, Example
from lvlm_interp.data.sources import load_examples
from lvlm_interp.errors import DataError, UsageError
from lvlm_interp.evaluation.build import Knowledge, build
from lvlm_interp.evaluation.judging import Reader
from lvlm_interp.evaluation.organism_graphs import SCENES, is_planted, scene_graphs
from lvlm_interp.evaluation.wording import ENGLISH, Wording
from lvlm_interp.files import atomic_path, atomic_write, sha256_file
from lvlm_interp.provenance import provenance

__all__ = ["build_bench", "load_bench", "unified_bench"]

ROWS, ABOUT = "rows.jsonl", "bench.json"
_WORDINGS = {"english": ENGLISH, "scenes": SCENES}
_GENERATED = "scenes:"


def unified_bench(
    graphs: str | os.PathLike[str], images: str | os.PathLike[str] | None = None, *, seed: int = 0
) -> tuple[list[Example], Reader]:
    """Questions from annotations or from scenes, in memory, and what reads the replies.

    Args:
        graphs: A file of `read_graphs`, or `scenes:LEVEL:N:SEED`.
        images: Folder of the images.
        seed: Of the choices.

    Raises:
        DataError: A file is missing or wrong, or images are missing (all are named).
        UsageError: `scenes:` of another form.
    """
    found, wording, _ = _graphs(graphs, images)
    return build(found, wording=wording, seed=seed, flaw=_flaw(wording)), _reader(found, wording)


def build_bench(
    graphs: str | os.PathLike[str],
    images: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
) -> Path:
    """Build a unified benchmark and write it to a folder.

    Args:
        graphs: As in `unified_bench`.
        images: As in `unified_bench`.
        out: A folder that is not there, or empty.
        seed: Of the choices.

    Raises:
        UsageError: The folder holds something.
        DataError: As in `unified_bench`.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: give another folder for the benchmark.")
    found, wording, name = _graphs(graphs, images)
    examples = build(found, wording=wording, seed=seed, flaw=_flaw(wording))
    places = {graph.id: _place(graph, folder) for graph in found}
    lines = [json.dumps(_row(example, places), ensure_ascii=False) for example in examples]
    atomic_write(folder / ROWS, "".join(f"{line}\n" for line in lines))
    known = Knowledge.of(found)
    about = {
        "bench": "unified",
        "wording": name,
        "names": list(known.names),
        "kinds": dict(known.kinds),
        "n_images": len(found),
        "n_questions": len(examples),
        "rows_hash": sha256_file(folder / ROWS),
        "provenance": provenance(seed=seed, graphs=str(graphs), images=str(images)),
    }
    atomic_write(folder / ABOUT, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    return folder


def load_bench(folder: str | os.PathLike[str]) -> tuple[list[Example], Reader]:
    """Questions of a folder that `build_bench` wrote, and what reads the replies.

    Raises:
        DataError: No such folder, or the questions are not those that were written.
    """
    root = Path(folder)
    about = read_json(root / ABOUT)
    if not isinstance(about, dict) or about.get("wording") not in _WORDINGS:
        raise DataError(f"{root / ABOUT}: it is no unified benchmark of build-bench.")
    if sha256_file(root / ROWS) != about["rows_hash"]:
        raise DataError(f"{root / ROWS} was changed since it was built: build the benchmark anew.")
    reader = Reader(_WORDINGS[about["wording"]], about["names"], about["kinds"])
    return load_examples(root / ROWS), reader


def _graphs(
    graphs: str | os.PathLike[str], images: str | os.PathLike[str] | None
) -> tuple[list[SceneGraph], Wording, str]:
    if str(graphs).startswith(_GENERATED):
        return _scenes(str(graphs)), SCENES, "scenes"
    found = read_graphs(graphs, images)
    lost = [graph.id for graph in found if graph.image is None]
    if lost:
        raise DataError(
            f"{graphs}: {len(lost)} of {len(found)} images are not in the folder, namely "
            f"{', '.join(lost)}."
        )
    return found, ENGLISH, "english"


def _scenes(spec: str) -> list[SceneGraph]:
    parts = spec.split(":")
    if len(parts) != 4 or not (parts[2].isdecimal() and parts[3].isdecimal() and int(parts[2])):
        raise UsageError(f"{spec!r} is not of the form scenes:LEVEL:N:SEED, as scenes:all:300:0")
    return scene_graphs(int(parts[2]), int(parts[3]), parts[1])


def _flaw(wording: Wording) -> Any:
    if wording is not SCENES:
        return None
    return lambda graph, level, parts: is_planted(graph.labels["scene"], level, parts)


def _reader(graphs: Sequence[SceneGraph], wording: Wording) -> Reader:
    known = Knowledge.of(graphs)
    return Reader(wording, known.names, known.kinds)


def _place(graph: SceneGraph, folder: Path) -> str:
    """Where the image is, as seen from the folder; images in memory are written there."""
    if isinstance(graph.image, Image.Image):
        path = folder / "images" / f"{graph.id}.png"
        with atomic_path(path) as temporary:
            graph.image.save(temporary)
        return str(path.relative_to(folder))
    return os.path.relpath(graph.image, folder)


def _row(example: Example, places: dict[str, str]) -> dict[str, Any]:
    assert example.group is not None, "every question has its image"
    row: dict[str, Any] = {
        "id": example.id,
        "image": places[example.group],
        "prompt": example.prompt,
        "answer": example.answer,
        "foil": example.foil,
        "level": example.level,
        "group": example.group,
        "labels": {name: value for name, value in example.labels.items() if value is not None},
        "objects": [_thing(thing) for thing in example.objects],
        "relations": [list(relation) for relation in example.relations],
    }
    return {name: value for name, value in row.items() if value is not None}


def _thing(thing: Annotated) -> dict[str, Any]:
    row: dict[str, Any] = {"name": thing.name, "attributes": list(thing.attributes)}
    return row if thing.box is None else {**row, "box": list(thing.box)}
