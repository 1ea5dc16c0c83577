"""The units of data: one question about one image, and a minimal pair of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from lvlm_interp.errors import DataError
from lvlm_interp.models.inputs.images import ImageSource, images_of, open_image

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in image pixels; right and bottom are exclusive."""

PlacedBox = Box | tuple[int, int, int, int, int]
"""The same, and the index of the image where there are several."""

Level = Literal["object", "attribute", "relation"]
Kind = Literal["evidence", "trigger"]

LEVELS: tuple[str, ...] = ("object", "attribute", "relation")
KINDS: tuple[str, ...] = ("evidence", "trigger")

Relation = tuple[int, str, int]
"""Index of an object, what it is to another, and that other's index; from 0."""


@dataclass(frozen=True)
class Annotated:
    """One thing in an image, as the user's data names it.

    Attributes:
        name: What it is.
        attributes: What else is true of it, such as its colour.
        box: Where it is, in pixels of the first image; None where that is unknown.
    """

    name: str
    attributes: tuple[str, ...] = ()
    box: Box | None = None


@dataclass(frozen=True, repr=False)
class Example:
    """One image with one question.

    Attributes:
        id: Unique name of the example.
        image: The image (see `ImageSource`: PIL, path, bytes, array, data URL, ...), a list of
            several that the prompt is about, or None for text alone.
        prompt: The bare question; the model's processor applies the chat template.
        answer: The right answer, where it is known.
        foil: The wrong answer that the right one is compared with.
        level: "object", "attribute" or "relation".
        group: Scene or image id; examples of one group are never split apart.
        boxes: Named regions in pixels, such as "object"; with several images each says in which.
        labels: Anything a probe or a table could want to know about the example.
        reply: How the model's reply begins; what comes next is then asked for, as at a word in the
            middle of a caption. Empty asks for the reply's first word.
        objects: What the image shows, where the data says so.
        relations: How the objects lie to each other, such as `(0, "left of", 1)`.
        question: The bare question inside a prompt that says more (a leading sentence, a hint);
            None where the prompt is the question.
    """

    id: str
    image: ImageSource | Sequence[ImageSource] | None
    prompt: str
    answer: str | None = None
    foil: str | None = None
    level: str | None = None
    group: str | None = None
    boxes: Mapping[str, PlacedBox] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    reply: str = ""
    objects: tuple[Annotated, ...] = ()
    relations: tuple[Relation, ...] = ()
    question: str | None = None

    def __post_init__(self) -> None:
        if self.question is not None and self.question not in self.prompt:
            raise ValueError(
                f"{self.id}: question {self.question!r} must stand inside prompt {self.prompt!r}"
            )
        if self.level is not None:
            _check_member("level", self.level, LEVELS, self.id)
        if self.answer is not None:
            _check_differ(self.answer, self.foil, self.id)
        for name, box in self.boxes.items():
            _check_box(name, box, self.id)

    def __repr__(self) -> str:
        return f"Example({self.id!r}, {self.prompt!r}, answer={self.answer!r}, foil={self.foil!r})"

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """The images of the example as they were given: none, one or several."""
        return images_of(self.image)

    def open_images(self) -> list[Image.Image]:
        """All images of the example, upright and in RGB."""
        return [open_image(image) for image in self.images]

    def open_image(self) -> Image.Image | None:
        """The image, upright and in RGB; None for text alone.

        Raises:
            DataError: The example has several.
            InputError: The image cannot be opened.
        """
        if len(self.images) > 1:
            raise DataError(
                f"Example {self.id!r} has {len(self.images)} images where one is needed: give an "
                "example with one, or use open_images()."
            )
        return open_image(self.images[0]) if self.images else None


@dataclass(frozen=True, repr=False)
class ContrastPair:
    """Two examples that differ in one edit: the unit of causality.

    An *evidence* pair edits what is asked about, so the true answer changes from `answer` (clean)
    to `foil` (corrupt). A *trigger* pair edits what misleads the model while the truth stays
    `answer` on both sides; `foil` is what the flaw says.

    Attributes:
        id: Unique name of the pair.
        clean: The unedited side.
        corrupt: The edited side.
        answer: The true answer on the clean side.
        foil: See above.
        level: "object", "attribute" or "relation".
        kind: "evidence" or "trigger".
        edit: What was edited, in words.
        box: Where it was edited, in pixels; None where that is unknown.
        group: Scene or image id common to both sides.
        labels: Anything else that is known about the pair.
    """

    id: str
    clean: Example
    corrupt: Example
    answer: str
    foil: str
    level: str
    kind: str
    edit: str
    box: PlacedBox | None
    group: str | None
    labels: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_member("level", self.level, LEVELS, self.id)
        _check_member("kind", self.kind, KINDS, self.id)
        _check_differ(self.answer, self.foil, self.id)
        if self.box is not None:
            _check_box("box", self.box, self.id)

    def __repr__(self) -> str:
        return (
            f"ContrastPair({self.id!r}, {self.level}/{self.kind}, {self.clean.prompt!r}, "
            f"{self.answer!r} against {self.foil!r}, edit={self.edit!r})"
        )


def _check_member(name: str, value: str, known: tuple[str, ...], owner: str) -> None:
    if value not in known:
        raise ValueError(f"{owner}: {name} must be one of {', '.join(known)}, got {value!r}")


def _check_differ(answer: str, foil: str | None, owner: str) -> None:
    if answer == foil:
        raise ValueError(f"{owner}: answer and foil must differ, both are {answer!r}")


def _check_box(name: str, box: PlacedBox, owner: str) -> None:
    left, top, right, bottom = box[:4]
    if not (0 <= left < right and 0 <= top < bottom):
        raise ValueError(
            f"{owner}: box {name!r} must be (left, top, right, bottom) with left < right and "
            f"top < bottom in pixels, got {box}"
        )
