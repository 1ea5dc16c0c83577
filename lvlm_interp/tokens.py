"""TokenMap: what each position of a sequence is, and where in the image it comes from.

One map per row of a batch, so that padding on either side, rows of different length, several
images or none are answered the same way. Positions are indices into that row, padding included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from lvlm_interp.errors import InputError
from lvlm_interp.spans import Spans, Written, spans_of, words_pattern

KINDS = ("pad", "special", "text", "image", "separator", "query")
"""`separator`: a row or tile mark inside an image span; `query`: a learned query, class or register
token, which stands for the whole image and for no place in it."""

ROLES = (
    "object",
    "other_object",
    "other_image",
    "background",
    "image",
    "image_all",
    "image_mean",
    "question",
    "answer",
    "last",
    "all",
    "text:WORD",
)

PixelBox = Sequence[float]
"""Left, top, right, bottom in pixels, and the index of the image where a row has several."""

NONE = -1
"""A position that a token does not have in a tower."""


@dataclass(frozen=True)
class ImageLayout:
    """Where the tokens of one image come from, in the order in which they stand in the sequence.

    Attributes:
        kind: Kind of each token, of `KINDS`; shape `token`.
        row, col: Place in the token grid of its tile, -1 where it has none; shape `token`.
        tile: Index of the tile (0 is the whole image where there is a base view); shape `token`.
        box: Left, top, right, bottom in pixels of the image as the user gave it, NaN where a token
            has no box; shape `token 4`.
        note: What holds where there is no grid, in words; empty otherwise.
        behind: By tower, the positions there that a token is made of, counted within the image (its
            tiles one behind the other); `NONE` where there are no more; shape `token part`.
        lengths: By tower, how many positions the image has there.
    """

    kind: np.ndarray
    row: np.ndarray
    col: np.ndarray
    tile: np.ndarray
    box: np.ndarray
    note: str = ""
    behind: Mapping[str, np.ndarray] = field(default_factory=dict)
    lengths: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Positions of one sequence by kind, image, grid cell, pixel box and word.

    Attributes:
        ids: Token ids; shape `pos`.
        kind: Kind of each position, of `KINDS`; shape `pos`.
        image_index: Which image of the row a position belongs to, -1 for none; shape `pos`.
        row, col, tile: Grid cell and tile of an image position, -1 for none; shape `pos`.
        box: Pixel box of an image position, NaN for none; shape `pos 4`.
        notes: One note per image that has no plain grid.
        towers: By tower, the positions of this row there that are behind each position of the
            prompt, `NONE` where there are no more; shape `pos part`.
        lengths: By tower, how many positions the row's images have there.
        written: The text that the row was made of, where that is known.
    """

    ids: np.ndarray
    kind: np.ndarray
    image_index: np.ndarray
    row: np.ndarray
    col: np.ndarray
    tile: np.ndarray
    box: np.ndarray
    tokenizer: object | None = field(default=None, repr=False)
    prompt: str | None = None
    notes: tuple[str, ...] = ()
    towers: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    lengths: Mapping[str, int] = field(default_factory=dict, repr=False)
    written: Written | None = None

    @classmethod
    def build(
        cls,
        ids: Int[np.ndarray, " pos"],
        *,
        image_token: int | None,
        layouts: Sequence[ImageLayout],
        attention_mask: Int[np.ndarray, " pos"] | None = None,
        special_ids: Sequence[int] = (),
        tokenizer: object | None = None,
        prompt: str | None = None,
        written: Written | None = None,
    ) -> TokenMap:
        """Lay the images' tokens over the placeholders of one sequence.

        Raises:
            InputError: The number of placeholders is not the number of image tokens.
        """
        n = len(ids)
        kind = np.full(n, "text", dtype=object)
        kind[np.isin(ids, list(special_ids))] = "special"
        if attention_mask is not None:
            kind[attention_mask == 0] = "pad"
        slots = np.flatnonzero(ids == image_token) if image_token is not None else np.array([], int)
        expected = sum(len(layout) for layout in layouts)
        if len(slots) != expected:
            raise InputError(
                f"The prompt holds {len(slots)} image placeholders, but its {len(layouts)} "
                f"image(s) give {expected} tokens: let the model's processor build prompt and "
                "image together."
            )
        image_index, row, col, tile = (np.full(n, -1) for _ in range(4))
        box = np.full((n, 4), np.nan)
        places, start = [], 0
        for index, layout in enumerate(layouts):
            at = slots[start : start + len(layout)]
            places.append(at)
            start += len(layout)
            kind[at], image_index[at] = layout.kind, index
            row[at], col[at], tile[at], box[at] = layout.row, layout.col, layout.tile, layout.box
        notes = tuple(layout.note for layout in layouts if layout.note)
        behind = _behind(n, layouts, places)
        lengths = {name: sum(layout.lengths[name] for layout in layouts) for name in behind}
        about = (tokenizer, prompt, notes, behind, lengths, written)
        return cls(ids, kind, image_index, row, col, tile, box, *about)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def image(self) -> np.ndarray:
        """Positions of the image's tokens (patches and queries, not separators)."""
        return self._image.copy()

    @cached_property
    def _image(self) -> np.ndarray:
        return np.flatnonzero((self.kind == "image") | (self.kind == "query"))

    @property
    def special(self) -> np.ndarray:
        """Positions of special tokens."""
        return np.flatnonzero(self.kind == "special")

    @property
    def real(self) -> np.ndarray:
        """Positions that are not padding."""
        return self._real.copy()

    @cached_property
    def _real(self) -> np.ndarray:
        return np.flatnonzero(self.kind != "pad")

    @property
    def last(self) -> int:
        """The last position that is not padding, where the answer is predicted."""
        return int(self._real[-1])

    @property
    def n_images(self) -> int:
        """Number of images in the row."""
        return int(self.image_index.max(initial=-1)) + 1

    def text(self, word: str | None = None, occurrence: int | None = None) -> np.ndarray:
        """Positions of the text tokens, or of each occurrence of a word with all its pieces.

        Args:
            word: A word or phrase; matched as whole words, without regard to case.
            occurrence: Which occurrence, from 0 (negative from the end); None for all.

        Raises:
            InputError: The word, or that occurrence of it, is not in the prompt.
        """
        if word is None:
            return np.flatnonzero(self.kind == "text")
        found = self._spans(word)
        if not found:
            raise InputError(f"The word {word!r} is not in the prompt {self.decoded!r}.")
        if occurrence is None:
            return np.unique(np.concatenate(found))
        if not -len(found) <= occurrence < len(found):
            raise InputError(
                f"The word {word!r} occurs {len(found)} time(s); occurrence {occurrence} was asked."
            )
        return found[occurrence]

    def within(self, box: PixelBox, image: int | None = None) -> np.ndarray:
        """Positions of the image tokens whose pixel box overlaps `box` (left, top, right, bottom).

        Args:
            box: In pixels; a fifth number names the image.
            image: Index of the image in the row; needed (here or in the box) where it has several.

        Raises:
            InputError: The image's tokens stand for no place in it, or it is not said which image.
        """
        image = self._image_of(box, image)
        boxes = self.box
        mine = (self.image_index == image) & ~np.isnan(boxes[:, 0])
        if not mine.any():
            why = self.notes[0] if self.notes else "the row has no such image"
            raise InputError(f"Image {image} has no token with a place in the image: {why}.")
        left, top, right, bottom = box[:4]
        with np.errstate(invalid="ignore"):
            meets = (boxes[:, 0] < right) & (boxes[:, 2] > left)
            meets &= (boxes[:, 1] < bottom) & (boxes[:, 3] > top)
        return np.flatnonzero(mine & meets)

    def _image_of(self, box: PixelBox, image: int | None) -> int:
        if image is not None:
            return image
        if len(box) > 4:
            return int(box[4])
        if self.n_images > 1:
            raise InputError(
                f"The row has {self.n_images} images and the box {tuple(box)} does not say in "
                "which it lies: give (left, top, right, bottom, image), images counted from 0."
            )
        return 0

    def grid(self, image: int = 0, tile: int = 0) -> Int[np.ndarray, "row col"]:
        """Positions of one tile's tokens as they lie in the image, -1 where there is none."""
        at = np.flatnonzero((self.image_index == image) & (self.tile == tile) & (self.row >= 0))
        if len(at) == 0:
            why = self.notes[0] if self.notes else "no such tile"
            raise InputError(f"Image {image}, tile {tile} has no token grid: {why}.")
        out = np.full((self.row[at].max() + 1, self.col[at].max() + 1), -1)
        out[self.row[at], self.col[at]] = at
        return out

    def to_grid(
        self, values: Float[np.ndarray, "pos ..."], image: int = 0, tile: int = 0
    ) -> Float[np.ndarray, "row col ..."]:
        """Lay one value per position over the image grid; NaN where the grid has no token."""
        values = np.asarray(values)
        if len(values) != len(self):
            raise InputError(f"Expected one value per position ({len(self)}), got {len(values)}.")
        grid = self.grid(image, tile)
        out = values[grid].astype(float)
        out[grid < 0] = np.nan
        return out

    def positions(self, role: str, boxes: Mapping[str, PixelBox] | None = None) -> np.ndarray:
        """Positions that play a role.

        Args:
            role: `object`, `other_object` (tokens meeting that box of `boxes`), `background` (image
                tokens that meet no box), `other_image` (image tokens outside the object),
                `image` or `image_all`, `question` (the user's words), `answer` and `last` (where
                the answer is predicted), `all`, or `text:WORD`.
            boxes: Pixel boxes by name, as in `Example.boxes`.

        Raises:
            InputError: Unknown role, or the example lacks what the role needs.
        """
        boxes = boxes or {}
        if role in ("object", "other_object"):
            return self.within(self._box(role, boxes))
        if role == "other_image":
            return np.setdiff1d(self.image, self.within(self._box("object", boxes)))
        if role == "background":
            hit = [self.within(box) for box in boxes.values()]
            return np.setdiff1d(self.image, np.concatenate(hit) if hit else [])
        if role in ("image", "image_all", "image_mean"):
            return self.image
        if role == "question":
            return self.question
        if role in ("last", "answer"):
            return np.array([self.last])
        if role == "all":
            return self.real
        if role.startswith("text:"):
            return self.text(role.removeprefix("text:"))
        raise InputError(f"Unknown position role {role!r}: expected one of {', '.join(ROLES)}.")

    def _box(self, role: str, boxes: Mapping[str, PixelBox]) -> PixelBox:
        if role not in boxes:
            has = ", ".join(boxes) or "none"
            raise InputError(f"The role {role!r} needs a box of that name; the example has: {has}.")
        return boxes[role]

    @property
    def question(self) -> np.ndarray:
        """Positions of the user's prompt, without template and special tokens.

        Raises:
            InputError: The prompt is not known, or the template changed its words.
        """
        if self.written is not None and self.written.start >= 0:
            _, at, spans = self._spelled[0]
            found = at[spans.meet(self.written.start, self.written.end)]
        elif self.prompt:
            stretches = self._spans(self.prompt)
            found = stretches[-1] if stretches else np.array([], int)
        else:
            raise InputError(
                "Which words are the question is not known, since the inputs were given as "
                "tensors: use model.prepare(), or the role 'text:WORD'."
            )
        if len(found) == 0:
            raise InputError(
                f"The words of the prompt {self.prompt!r} cannot be found in what the model reads, "
                f"{self.decoded!r}: its template changes them."
            )
        return found

    @cached_property
    def _spelled(self) -> list[tuple[str, np.ndarray, Spans]]:
        """Texts with the positions of their tokens, and the characters of each.

        The whole row is one text where it is known what was written; else each run of tokens is.
        """
        keep = np.flatnonzero(self.kind == "text")
        if self.tokenizer is None and len(keep):
            raise InputError("Words need a tokenizer: wrap the model with its processor.")
        if self.written is not None:
            runs, text = [keep], self.written.text
        else:
            runs, text = np.split(keep, np.flatnonzero(np.diff(keep) > 1) + 1), None
        found = []
        for at in runs:
            if len(at):
                spans = spans_of(self.tokenizer, tuple(self.ids[at].tolist()), text)
                found.append((spans.text, at, spans))
        return found

    @property
    def decoded(self) -> str:
        """The text of the row as the model sees it, its runs joined by the mark of an image."""
        parts = []
        for text, at, spans in self._spelled:
            for run in np.split(np.arange(len(at)), np.flatnonzero(np.diff(at) > 1) + 1):
                if len(run):
                    parts.append(text[spans.starts[run].min() : spans.ends[run].max()].strip())
        return " <image> ".join(parts)

    def _spans(self, words: str) -> list[np.ndarray]:
        if not words.strip():
            return []
        pattern, found = words_pattern(words), []
        for text, at, spans in self._spelled:
            for match in pattern.finditer(text):
                hit = at[spans.meet(*match.span())]
                # What only marks of images or of turns spell is no word of the text.
                if len(hit):
                    found.append(hit)
        return found

    def __repr__(self) -> str:
        counts = {kind: int((self.kind == kind).sum()) for kind in KINDS}
        listed = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
        return f"TokenMap({len(self)} positions: {listed})"


def _behind(
    n: int, layouts: Sequence[ImageLayout], places: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """By tower that all images know, the positions behind each of `n` positions."""
    known = set.intersection(*({*layout.behind} for layout in layouts)) if layouts else set()
    towers = {}
    for tower in sorted(known):
        width = max(layout.behind[tower].shape[1] for layout in layouts)
        towers[tower], first = np.full((n, width), NONE), 0
        for layout, at in zip(layouts, places, strict=True):
            part = layout.behind[tower]
            towers[tower][at, : part.shape[1]] = np.where(part == NONE, NONE, part + first)
            first += layout.lengths[tower]
    return towers
