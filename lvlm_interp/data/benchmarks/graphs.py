"""What is in an image, from annotations one has: COCO instances, Visual Genome, GQA, rows of JSON.

All become `SceneGraph`: things with attributes and boxes, and relations between them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvlm_interp.data.benchmarks.records import Record, read_json, read_records
from lvlm_interp.data.examples import Annotated, Box, Relation
from lvlm_interp.errors import DataError

__all__ = ["SceneGraph", "read_graphs"]

_ENDS = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class SceneGraph:
    """What one image holds.

    Attributes:
        id: Of the image.
        image: The image or its path; None where it was not found.
        objects: The things in it.
        relations: (index of a thing, what it is to another, index of that one).
        kinds: Supercategory of a name, where the source has them.
        labels: Anything else that is known of the image.
    """

    id: str
    image: Any
    objects: tuple[Annotated, ...]
    relations: tuple[Relation, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for first, predicate, second in self.relations:
            if not (0 <= first < len(self.objects) and 0 <= second < len(self.objects)):
                raise DataError(
                    f"image {self.id}: the relation {predicate!r} is of objects {first} and "
                    f"{second}, and there are {len(self.objects)}, counted from 0."
                )


def read_graphs(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None
) -> list[SceneGraph]:
    """Scene graphs from a file.

    The form is told by what the file holds: COCO's `instances_*.json` (an object with `categories`
    and `annotations`), GQA's scene graphs (an object of images with `objects` by id), Visual
    Genome's `scene_graphs.json` (an array with `objects` and `relationships`), or JSON lines with
    `image` and `objects` (`name`, `attributes`, `box`) and `relations` ([from, what, to]).

    Args:
        path: The file.
        images: Folder of the images; beside the file by default.

    Raises:
        DataError: No such file, none of these forms, or a record that is wrong.
    """
    path = Path(path)
    folder = Path(images) if images is not None else path.parent
    if path.suffix == ".jsonl":
        return [_from_row(record, folder) for record in read_records(path)]
    content = read_json(path)
    if isinstance(content, dict) and "annotations" in content and "categories" in content:
        return _from_coco(content, folder, path)
    if isinstance(content, dict) and all(isinstance(each, dict) for each in content.values()):
        return [_from_gqa(str(name), each, folder) for name, each in content.items()]
    if isinstance(content, list) and all(isinstance(each, dict) for each in content):
        records = [Record(each, f"{path}, record {at}") for at, each in enumerate(content, 1)]
        visual_genome = any("relationships" in record.fields for record in records)
        return [(_from_genome if visual_genome else _from_row)(r, folder) for r in records]
    raise DataError(
        f"{path}: expected COCO instances, scene graphs of Visual Genome or GQA, or rows with "
        "'image' and 'objects'."
    )


def _from_coco(content: Mapping[str, Any], folder: Path, path: Path) -> list[SceneGraph]:
    try:
        names = {each["id"]: str(each["name"]) for each in content["categories"]}
        kinds = {
            str(each["name"]): str(each["supercategory"])
            for each in content["categories"]
            if each.get("supercategory")
        }
        files = {each["id"]: str(each.get("file_name", each["id"])) for each in content["images"]}
        things: dict[Any, list[Annotated]] = {name: [] for name in files}
        for each in content["annotations"]:
            if each.get("iscrowd"):
                continue
            x, y, width, height = each["bbox"]
            box = _box(x, y, width, height)
            things[each["image_id"]].append(Annotated(names[each["category_id"]], box=box))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: an annotation lacks or has a wrong {error}.") from error
    return [
        SceneGraph(str(name), _picture(folder, files[name]), tuple(found), kinds=kinds)
        for name, found in things.items()
    ]


def _from_gqa(name: str, fields: Mapping[str, Any], folder: Path) -> SceneGraph:
    objects = fields.get("objects")
    if not isinstance(objects, dict):
        raise DataError(f"image {name}: expected GQA's 'objects' by id.")
    at = {key: index for index, key in enumerate(objects)}
    try:
        things = tuple(
            Annotated(
                str(each["name"]),
                tuple(map(str, each.get("attributes", ()))),
                _box(each["x"], each["y"], each["w"], each["h"]),
            )
            for each in objects.values()
        )
        relations = tuple(
            (at[key], _predicate(relation["name"]), at[relation["object"]])
            for key, each in objects.items()
            for relation in each.get("relations", ())
            if relation["object"] in at
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"image {name}: an object lacks or has a wrong {error}.") from error
    return SceneGraph(name, _picture(folder, name), things, relations)


def _from_genome(record: Record, folder: Path) -> SceneGraph:
    name = record.text("image_id", "id")
    try:
        objects = record.fields["objects"]
        at = {each["object_id"]: index for index, each in enumerate(objects)}
        things = tuple(
            Annotated(
                str(each["names"][0] if "names" in each else each["name"]),
                tuple(map(str, each.get("attributes", ()))),
                _box(each["x"], each["y"], each["w"], each["h"]),
            )
            for each in objects
        )
        relations = tuple(
            (at[each["subject_id"]], _predicate(each["predicate"]), at[each["object_id"]])
            for each in record.fields.get("relationships", ())
            if each["subject_id"] in at and each["object_id"] in at
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{record.where}: an object lacks or has a wrong {error}.") from error
    return SceneGraph(name, _picture(folder, name), things, relations)


def _from_row(record: Record, folder: Path) -> SceneGraph:
    image = record.text("image", "image_id")
    try:
        things = tuple(
            Annotated(
                str(each["name"]),
                tuple(map(str, each.get("attributes", ()))),
                None if each.get("box") is None else _corners(each["box"]),
            )
            for each in record.fields.get("objects", ())
        )
        relations = tuple(
            (int(first), _predicate(what), int(second))
            for first, what, second in record.fields.get("relations", ())
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{record.where}: an object or relation is wrong ({error}).") from error
    name = str(record.fields.get("id", Path(image).stem))
    kinds = record.fields.get("kinds", {})
    return SceneGraph(name, _picture(folder, image), things, relations, kinds)


def _predicate(name: Any) -> str:
    words = str(name).strip().lower().replace("_", " ")
    return {
        "to the left of": "left", "left of": "left", "to the right of": "right",
        "right of": "right", "over": "above", "under": "below", "beneath": "below",
    }.get(words, words)  # fmt: skip


def _box(x: float, y: float, width: float, height: float) -> Box | None:
    return _corners((x, y, x + width, y + height))


def _corners(box: Any) -> Box | None:
    left, top, right, bottom = (round(float(side)) for side in box)
    left, top = max(left, 0), max(top, 0)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _picture(folder: Path, name: str) -> Path | None:
    names = [name] if Path(name).suffix.lower() in _ENDS else [f"{name}{end}" for end in _ENDS]
    return next((folder / each for each in names if (folder / each).is_file()), None)
