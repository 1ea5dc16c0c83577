"""Small benchmarks in the authors' own forms, with answers, for the tests of scoring."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

REPLIES = (
    "Yes", "No", "yes", "no, there is not", "Nope", "", "NO", "Yes, there is a dog.", "1. No",
    "There isn't a dog.", "I cannot tell.", "The answer is no.", "No!", "Yes and no", "not",
    "It is not possible to say.", "There is a dog.", "know", "No\n", "**Yes**", "**no**", "now",
)  # fmt: skip


def write_lines(path: Path, rows: list[dict[str, Any]], end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(end.join(json.dumps(row) for row in rows).encode())
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))
    return path


def pope(folder: Path, n_images: int = 30, split: str = "random", seed: int = 0):
    """POPE's truth in `folder`, and rows of answers in another order."""
    rng = random.Random(seed)
    questions, answers = [], []
    for i in range(6 * n_images):
        label = "yes" if i % 2 == 0 else "no"
        text = f"Is there a thing {split} {i} in the image?"
        image = f"COCO_val2014_{i // 6:012d}.jpg"
        questions.append({"question_id": i + 1, "image": image, "text": text, "label": label})
        reply = rng.choice(REPLIES)
        answers.append({"question_id": i + 1, "question": text, "answer": reply})
    write_lines(folder / f"coco_pope_{split}.json", questions, "\r\n")
    rng.shuffle(answers)
    return questions, answers


def mme(folder: Path, tasks=("existence", "artwork", "code_reasoning"), n_images: int = 12):
    """MME's truth in `folder`, and its official answer files' lines by task."""
    rng, lines = random.Random(1), {}
    for task in tasks:
        place = folder / task / "questions_answers_YN" if task == "artwork" else folder / task
        place.mkdir(parents=True)
        lines[task] = []
        for i in range(n_images):
            asked = [(f"Is it {i}? Please answer yes or no.", "Yes"), (f"Is it not {i}?", "No")]
            (place / f"{i:04d}.txt").write_text("".join(f"{q}\t{a}\n" for q, a in asked))
            for question, answer in asked:
                reply = rng.choice([each for each in REPLIES if "\n" not in each])
                lines[task].append(f"{i:04d}.jpg\t{question}\t{answer}\t{reply}\n")
    return lines


def coco(folder: Path):
    """Two images of COCO with instances and captions."""
    write_json(
        folder / "instances_val2014.json",
        {
            "images": [{"id": 42, "file_name": "a.jpg"}, {"id": 73, "file_name": "b.jpg"}],
            "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
            "annotations": [
                {"image_id": 42, "category_id": 1},
                {"image_id": 42, "category_id": 18},
                {"image_id": 73, "category_id": 1},
            ],
        },
    )
    write_json(
        folder / "captions_val2014.json",
        {
            "images": [{"id": 42}, {"id": 73}],
            "annotations": [
                {"image_id": 42, "caption": "A man walks two dogs by a bench."},
                {"image_id": 73, "caption": "A lady on a couch."},
            ],
        },
    )
