"""Benchmarks of free text: CHAIR, AMBER, MMHal-Bench, LLaVA-Bench, GAVIE, CCEval and HaELM.

Sources: COCO 2014 annotations; junyangwang0410/AMBER (Apache-2.0); Shengcao1006/MMHal-Bench;
liuhaotian/llava-bench-in-the-wild; LRV-Instruction (GAVIE, BSD-3); HallE_Control (CCEval, no
licence); HaELM (no licence). All are read from the user's copy; nothing of them is shipped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lvlm_interp.data.benchmarks.records import one_file, read_json, read_records, read_text
from lvlm_interp.data.examples import Example
from lvlm_interp.errors import DataError

__all__ = ["amber", "cceval", "chair", "gavie", "haelm", "llava_bench", "mmhal"]

DESCRIBE = "Please describe this image in detail."
MMHAL_TYPES = (
    "attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic",
    "other",
)  # fmt: skip
"""Question types of MMHal-Bench: number of the question modulo 8."""


def chair(folder: Path, only: Collection[str] | None = None) -> list[Example]:
    """COCO 2014 for CHAIR (Rohrbach et al. 2018): an example an image, asked to be described.

    Args:
        folder: Holds `instances_*.json` and `captions_*.json`, of one split or of both.
        only: Image ids to keep; None keeps all.

    Returns:
        Examples with the labels `objects` (names of COCO's categories with an instance) and
        `captions`.

    Raises:
        DataError: A file is missing or has another form, or an instance has an unknown category.
    """
    root = Path(folder)
    objects: dict[str, set[str]] = defaultdict(set)
    captions: dict[str, list[str]] = defaultdict(list)
    images: dict[str, str] = {}
    for path in _coco_files(root, "instances_*.json"):
        content = read_json(path)
        try:
            names = {each["id"]: each["name"] for each in _part(content, "categories", path)}
            for each in _part(content, "annotations", path):
                objects[str(each["image_id"])].add(names[each["category_id"]])
            _note_images(content, images)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: an annotation lacks or has an unknown {error}.") from error
    for path in _coco_files(root, "captions_*.json"):
        content = read_json(path)
        try:
            for each in _part(content, "annotations", path):
                captions[str(each["image_id"])].append(str(each["caption"]))
            _note_images(content, images)
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: an annotation lacks or has a wrong {error}.") from error
    ids = sorted({*objects, *captions, *images}, key=lambda name: (len(name), name))
    return [
        Example(
            id=name,
            image=_coco_image(root, images.get(name)),
            prompt=DESCRIBE,
            group=name,
            labels={"objects": sorted(objects[name]), "captions": captions[name], "image": name},
        )
        for name in ids
        if only is None or name in only
    ]


def _coco_files(root: Path, pattern: str) -> list[Path]:
    found = sorted(root.rglob(pattern))
    if not found:
        raise DataError(f"{root}: expected COCO's {pattern}, found none.")
    return found


def _part(content: Any, name: str, path: Path) -> list[dict[str, Any]]:
    if not isinstance(content, dict) or not isinstance(content.get(name), list):
        raise DataError(f"{path}: expected COCO annotations with a list {name!r}.")
    return content[name]


def _note_images(content: dict[str, Any], images: dict[str, str]) -> None:
    for each in content.get("images", ()):
        images[str(each["id"])] = str(each.get("file_name", ""))


def _coco_image(root: Path, name: str | None) -> Path | None:
    if not name:
        return None
    tried = [root / name, *(root / part / name for part in ("val2014", "train2014", "images"))]
    return next((path for path in tried if path.is_file()), None)


def amber(folder: Path) -> list[Example]:
    """AMBER (Wang et al. 2023): ids 1 to 15220, generative and discriminative.

    Returns:
        Examples with the labels `type`, and `safe` and `hallu` (word lists) of the generative
        ones; questions and images where a query file is there.

    Raises:
        DataError: `annotations.json` is missing, or a truth is neither yes nor no.
    """
    path = one_file(folder, "annotations.json")
    queries: dict[str, dict[str, Any]] = {}
    for found in sorted(path.parent.rglob("query_*.json")):
        for record in read_records(found):
            queries.setdefault(record.text("id"), dict(record.fields))
    lists = _amber_lists(path.parent)
    examples = []
    for record in read_records(path):
        number, kind = record.text("id"), record.text("type")
        asked = queries.get(number, {})
        image = str(asked.get("image", f"AMBER_{number}.jpg" if kind == "generative" else number))
        labels: dict[str, Any] = {"type": kind, "image": image}
        truth = record.fields.get("truth")
        if kind == "generative":
            hallu = list(record.fields.get("hallu") or ())
            labels |= {"safe": list(truth or ()), "hallu": hallu, **lists}
        elif truth not in ("yes", "no"):
            raise DataError(f"{record.where}: id {number} has the truth {truth!r}, not yes or no.")
        else:
            labels["truth"] = truth
        examples.append(
            Example(
                id=number,
                image=_beside(path, image),
                prompt=str(asked.get("query", _AMBER_ASKED if kind == "generative" else kind)),
                answer=labels.get("truth"),
                level=_AMBER_LEVELS.get(kind),
                group=image,
                labels=labels,
            )
        )
    return examples


def _amber_lists(folder: Path) -> dict[str, Any]:
    """The closed vocabulary with its associates, and the words that never count."""
    relation, safe = folder / "relation.json", folder / "safe_words.txt"
    if not (relation.is_file() and safe.is_file()):
        return {}
    words = [line.strip() for line in read_text(safe).splitlines()]
    return {"association": read_json(relation), "safe_words": [word for word in words if word]}


_AMBER_ASKED = "Describe this image."
_AMBER_LEVELS = {
    "discriminative-hallucination": "object",
    "discriminative-attribute-state": "attribute",
    "discriminative-attribute-number": "attribute",
    "discriminative-attribute-action": "attribute",
    "discriminative-relation": "relation",
    "relation": "relation",
}


def mmhal(folder: Path) -> list[Example]:
    """MMHal-Bench (Sun et al. 2023): 96 questions, their type the number modulo 8.

    Raises:
        DataError: No file, or a record without a question.
    """
    path = one_file(folder, "response_template.json", "*.json", "*.jsonl")
    return [
        Example(
            id=str(number),
            image=_beside(path, Path(str(record.fields.get("image_src", ""))).name),
            prompt=record.text("question"),
            answer=record.text("gt_answer"),
            group=str(record.fields.get("image_id", number)),
            labels={
                "category": MMHAL_TYPES[number % len(MMHAL_TYPES)],
                "image_content": list(record.fields.get("image_content", ())),
                "image": Path(str(record.fields.get("image_src", number))).name,
            },
        )
        for number, record in enumerate(read_records(path))
    ]


def llava_bench(folder: Path) -> list[Example]:
    """LLaVA-Bench, in the wild (`questions.jsonl`) or on COCO (`qa90_questions.jsonl`).

    The reference answer is the label `reference`, the description of the image the label `context`.

    Raises:
        DataError: A file is missing, or a record lacks a field.
    """
    path = one_file(folder, "qa90_questions.jsonl", "questions.jsonl")
    answers = {
        record.text("question_id"): record.text("text")
        for found in sorted(path.parent.glob("*gpt4*.jsonl"))
        for record in read_records(found)
    }
    contexts: dict[str, str] = {}
    for found in sorted(path.parent.glob("context*.jsonl")):
        for record in read_records(found):
            caption = record.fields.get("caption", "")
            text = "\n".join(caption) if isinstance(caption, list) else str(caption)
            contexts[record.text("image")] = text
    return [
        Example(
            id=record.text("question_id"),
            image=_beside(path, record.text("image")),
            prompt=record.text("text"),
            group=record.text("image"),
            labels={
                "category": record.text("category"),
                "reference": answers.get(record.text("question_id")),
                "context": contexts.get(record.text("image")),
            },
        )
        for record in read_records(path)
    ]


def gavie(folder: Path) -> list[Example]:
    """GAVIE (Liu et al. 2023): `image_id` and `question` (its own script reads `instruction`).

    Raises:
        DataError: No file, or a record lacks a field.
    """
    path = one_file(folder, "evaluation_set.json", "*.json", "*.jsonl")
    return [
        Example(
            id=str(number),
            image=_beside(path, f"{record.text('image_id')}.jpg"),
            prompt=record.text("question", "instruction"),
            group=record.text("image_id"),
            labels={"image": record.text("image_id")},
        )
        for number, record in enumerate(read_records(path))
    ]


def cceval(folder: Path) -> list[Example]:
    """CCEval (Zhai et al. 2023): `vg_info_100.json`, key -> `gt_objs`.

    Raises:
        DataError: No file, or an entry without `gt_objs`.
    """
    path = one_file(folder, "vg_info_100.json", "vg_info*.json", "*.json")
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object of images, got a {type(content).__name__}.")
    found = []
    for name, about in content.items():
        if not isinstance(about, dict) or not isinstance(about.get("gt_objs"), list):
            raise DataError(f"{path}: image {name!r} has no list 'gt_objs'.")
        image = str(about.get("image_id", name))
        found.append(
            Example(
                id=str(name),
                image=_beside(path, f"{image}.jpg"),
                prompt=DESCRIBE,
                group=str(name),
                labels={"objects": [str(each) for each in about["gt_objs"]], "image": image},
            )
        )
    return found


def haelm(folder: Path) -> list[Example]:
    """HaELM (Wang et al. 2023): `image` and its reference captions.

    Raises:
        DataError: No file, or a record lacks a field.
    """
    path = one_file(folder, "eval*.json*", "*.json", "*.jsonl")
    found = []
    for number, record in enumerate(read_records(path)):
        captions = record.fields.get("reference caption", record.fields.get("reference_caption"))
        captions = [captions] if isinstance(captions, str) else list(captions or ())
        image = record.text("image", "image_id")
        found.append(
            Example(
                id=str(record.fields.get("id", number)),
                image=_beside(path, image),
                prompt=DESCRIBE,
                group=image,
                labels={"captions": captions, "image": image},
            )
        )
    return found


def _beside(path: Path, name: str) -> Path | None:
    tried = (path.parent / name, path.parent / "images" / name, path.parent / "image" / name)
    return next((each for each in tried if name and each.is_file()), None)
