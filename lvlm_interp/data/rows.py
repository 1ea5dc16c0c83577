"""What a line of a user's file means: a question about an image, or a pair of them.

A row is `image`, `prompt` and what is known of the answer; POPE's names for these (`text`, `label`,
`question_id`) mean the same. A pair is a row with two images, or two prompts.
"""

from __future__ import annotations

import re

from lvlm_interp.data.answers import negation, same_answer
from lvlm_interp.data.examples import KINDS, LEVELS, ContrastPair, Example
from lvlm_interp.data.lines import Line

__all__ = ["EXAMPLE_FIELDS", "PAIR_FIELDS", "parse_example", "parse_pair"]

PAIR_FIELDS: dict[str, bool] = {
    **dict.fromkeys(("clean", "corrupt", "prompt", "answer", "foil", "level"), True),
    **dict.fromkeys(
        ("corrupt_prompt", "box", "group", "kind", "id", "edit", "labels", "reply", "boxes"), False
    ),
}
"""Fields of a line of `pairs.jsonl`, and whether each is needed."""

EXAMPLE_FIELDS: dict[str, bool] = {
    "image": True,
    **dict.fromkeys(("prompt", "text", "question", "answer", "label"), False),
    **dict.fromkeys(("id", "question_id", "foil", "level", "group", "reply"), False),
    **dict.fromkeys(("objects", "relations", "boxes", "box", "labels"), False),
}
"""Fields of a line of rows, and whether each is needed; `text` is `prompt`, `label` is `answer`,
`question_id` is `id` where there is none, and `box` is the box named `object`. `question` beside a
`prompt` is the bare question inside it, alone it is the `prompt`."""

_IMAGE_MARK = re.compile(r"<image>|<\|image_pad\|>|<\|image\|>|<image_placeholder>|<img>")


def parse_pair(line: Line) -> ContrastPair:
    """One line of a pairs file.

    Raises:
        DataError: A field is unknown, missing or wrong.
    """
    line.check_names(PAIR_FIELDS)
    answer, foil = line.words("answer"), line.words("foil")
    _check_differ(line, answer, foil)
    level, kind = line.member("level", LEVELS), line.member("kind", KINDS, "evidence")
    assert level is not None and kind is not None
    name, group = line.name("id", line.number), line.name("group", None)
    prompt, reply = question(line, "prompt"), line.text("reply") or ""
    other = line.text("corrupt_prompt") and question(line, "corrupt_prompt")
    images = {side: line.image(side) for side in ("clean", "corrupt")}
    box = line.box("box")
    boxes = line.boxes("boxes")
    if box is not None:
        boxes.setdefault("object", box)
    labels = line.mapping("labels")
    truth = foil if kind == "evidence" else answer
    sides = {
        "clean": (prompt, answer, foil),
        "corrupt": (other or prompt, truth, answer if truth == foil else foil),
    }
    examples = {
        side: Example(
            id=f"{name}/{side}",
            image=images[side],
            prompt=words,
            answer=right,
            foil=wrong,
            level=level,
            group=group,
            boxes=boxes,
            labels=labels | {"truth": right},
            reply=reply,
        )
        for side, (words, right, wrong) in sides.items()
    }
    return ContrastPair(
        str(name), **examples, answer=answer, foil=foil, level=level, kind=kind,
        edit=line.text("edit") or "", box=box, group=group, labels=labels,
    )  # fmt: skip


def parse_example(line: Line) -> Example:
    """One row: a question about an image (or several), and what is known of it.

    Without `foil`, yes and no give each other. Without `group` it is None, for `with_groups` to
    fill.

    Raises:
        DataError: A field is unknown, missing or wrong.
    """
    line.check_names(EXAMPLE_FIELDS)
    bare = None
    if line.fields.get("prompt") is not None and line.fields.get("question") is not None:
        prompt, bare = question(line, "prompt"), line.text("question")
        if bare is not None and bare not in prompt:
            raise line.error("question", f"{bare!r} does not stand inside 'prompt' {prompt!r}.")
    else:
        prompt = question(line, line.one_of("prompt", "text", "question"))
    answer, foil = line.text(line.one_of("answer", "label")), line.text("foil")
    if answer is not None:
        foil = negation(answer) if foil is None else foil
        _check_differ(line, answer, foil)
    image = line.image("image")
    boxes = line.boxes("boxes")
    if line.fields.get("box") is not None:
        if "object" in boxes:
            raise line.error("box", "'boxes' holds a box named 'object' already; keep one.")
        box = line.box("box")
        assert box is not None
        boxes["object"] = box
    objects, labels = line.objects("objects"), line.mapping("labels")
    return Example(
        id=str(line.name("id", line.name("question_id", line.number))),
        image=image,
        prompt=prompt,
        answer=answer,
        foil=foil,
        level=line.member("level", LEVELS),
        group=line.name("group", None),
        boxes=boxes,
        labels=labels if answer is None else {"truth": answer} | labels,
        question=bare,
        reply=line.text("reply") or "",
        objects=objects,
        relations=line.relations("relations", len(objects)),
    )


def question(line: Line, name: str) -> str:
    """The words of a prompt.

    Raises:
        DataError: It is missing, or the mark of an image stands in it, as LLaVA's data has it.
    """
    words = line.words(name)
    mark = _IMAGE_MARK.search(words)
    if mark is not None:
        raise line.error(
            name,
            f"it holds the mark of an image, {mark.group()!r}: the model's own template puts the "
            "image in; take the mark out.",
        )
    return words


def _check_differ(line: Line, answer: str, foil: str | None) -> None:
    if foil is not None and same_answer(answer, foil):
        raise line.error("foil", f"it must differ from the answer; both are {answer.strip()!r}.")
