"""Yes/no benchmarks: POPE, MME and HallusionBench, as their authors' files have them.

Sources: AoiDragon/POPE (`output/`, MIT), MME (a zip, no licence file), tianyi-lab/HallusionBench
(BSD-3). The files are read from the user's copy; nothing of them is shipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lvlm_interp.data.benchmarks.records import Record, one_file, read_records, read_text
from lvlm_interp.data.examples import Example
from lvlm_interp.errors import DataError

__all__ = ["COGNITION", "PERCEPTION", "hallusionbench", "mme", "pope"]

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
COGNITION = (
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)  # fmt: skip

_POPE_SPLITS = ("random", "popular", "adversarial")
_IMAGES = (".jpg", ".jpeg", ".png")


def pope(folder: Path) -> list[Example]:
    """POPE (Li et al. 2023): one example a question, level object, grouped by image.

    Lines (COCO) and pretty-printed arrays (GQA and A-OKVQA by SEEM) are both read; `image_id`,
    `question` and `answer` (the hub's copies) are read for `image`, `text` and `label`.

    Raises:
        DataError: No file, a record without its fields, or a label that is neither yes nor no.
    """
    root = Path(folder)
    files = [root] if root.is_file() else _pope_files(root)
    found = []
    for path in files:
        split = next((name for name in _POPE_SPLITS if name in path.stem), path.stem)
        for record in read_records(path):
            found.append(_pope_example(record, str(record.fields.get("category", split)), root))
    _check_unique(found, root)
    return found


def _pope_files(root: Path) -> list[Path]:
    found = sorted({*root.rglob("*pope*.json"), *root.rglob("*pope*.jsonl")})
    found = found or sorted({*root.glob("*.json"), *root.glob("*.jsonl")})
    if not found:
        raise DataError(f"{root}: expected POPE's files, such as coco_pope_random.json.")
    return found


def _pope_example(record: Record, split: str, root: Path) -> Example:
    number = record.text("question_id", "id")
    image = record.text("image", "image_source", "image_id")
    label = record.text("label", "answer").strip().lower()
    if label not in ("yes", "no"):
        raise DataError(
            f"{record.where}: question {number} has the label {label!r}; expected yes or no."
        )
    return Example(
        id=f"{split}/{number}",
        image=_image_path(root, image),
        prompt=record.text("text", "question"),
        answer=label,
        foil="no" if label == "yes" else "yes",
        level="object",
        group=image,
        labels={"question_id": number, "category": split, "image": image, "truth": label},
    )


def mme(folder: Path) -> list[Example]:
    """MME (Fu et al. 2023): two questions an image, `question<TAB>Yes|No` in `<stem>.txt`.

    The tasks that keep their texts in `questions_answers_YN/` are found as the others are. The
    task is the label `category`.

    Raises:
        DataError: No text file, a line that is no question with an answer, or an image that has
            not two of them.
    """
    root, found = Path(folder), []
    for task in (*PERCEPTION, *COGNITION):
        places = [root / task / "questions_answers_YN", root / task]
        place = next((each for each in places if each.is_dir()), None)
        for path in sorted(place.glob("*.txt")) if place else ():
            found += _mme_image(path, task, root / task)
    if not found:
        raise DataError(
            f"{root}: expected MME's folders of tasks (existence, count, ...) with one .txt per "
            "image, found none."
        )
    return found


def _mme_image(path: Path, task: str, folder: Path) -> Iterator[Example]:
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if len(lines) != 2:
        raise DataError(f"{path}: expected two questions of one image, got {len(lines)}.")
    for number, line in enumerate(lines, 1):
        question, tab, answer = line.rpartition("\t")
        truth = answer.strip().lower()
        if not tab or truth not in ("yes", "no"):
            raise DataError(
                f"{path}, line {number}: expected 'question<TAB>Yes' or No, got {line!r}."
            )
        yield Example(
            id=f"{task}/{path.stem}/{number}",
            image=_mme_picture(folder, path.stem),
            prompt=question,
            answer=truth,
            foil="no" if truth == "yes" else "yes",
            group=f"{task}/{path.stem}",
            labels={"category": task, "image": path.stem, "truth": truth},
        )


def _mme_picture(folder: Path, stem: str) -> Path | None:
    names = (place / f"{stem}{end}" for place in (folder / "images", folder) for end in _IMAGES)
    return next((path for path in names if path.is_file()), None)


def hallusionbench(folder: Path) -> list[Example]:
    """HallusionBench (Guan et al. 2024): one example a row, keyed as the authors' scorer keys them.

    The id is `category_subcategory_set_figure_question`; the group is the set, since the figures of
    one set are edits of each other. Rows of 178 questions have no image.

    Raises:
        DataError: No file, or a row without its fields.
    """
    path, found = one_file(folder, "HallusionBench.json", "*allusion*.json"), []
    for record in read_records(path):
        kind, sub = record.text("category"), record.text("subcategory")
        names = ("set_id", "figure_id", "question_id")
        numbers = [record.text(name) for name in names]
        truth = {"0": "no", "1": "yes"}.get(record.text("gt_answer"))
        if truth is None:
            raise DataError(f"{record.where}: gt_answer must be 0 or 1.")
        image = record.fields.get("filename")
        found.append(
            Example(
                id="_".join([kind, sub, *numbers]),
                image=None if image is None else (path.parent / str(image)),
                prompt=record.text("question"),
                answer=truth,
                foil="no" if truth == "yes" else "yes",
                group="_".join([kind, sub, numbers[0]]),
                labels={
                    "category": kind,
                    "subcategory": sub,
                    "visual_input": record.text("visual_input"),
                    "gt_answer_details": str(record.fields.get("gt_answer_details", "")),
                    "truth": truth,
                    **dict(zip(names, numbers, strict=True)),
                },
            )
        )
    _check_unique(found, path)
    return found


def _image_path(root: Path, name: str) -> Path | None:
    folder = root if root.is_dir() else root.parent
    names = [name] if Path(name).suffix else [f"{name}{end}" for end in _IMAGES]
    tried = (place / each for each in names for place in (folder, folder / "images"))
    return next((path for path in tried if path.is_file()), None)


def _check_unique(found: list[Example], path: Path) -> None:
    seen: set[str] = set()
    for example in found:
        if example.id in seen:
            raise DataError(
                f"{path}: the question {example.id!r} is there twice; ids must be unique."
            )
        seen.add(example.id)
