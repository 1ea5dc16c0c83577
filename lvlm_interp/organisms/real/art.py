"""Pictures of the kinds: sheets of shipped art, photo grounds, cut-outs a user has installed."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from lvlm_interp.errors import DataError
from lvlm_interp.organisms.real.kinds import BY_NAME, KINDS, NAMES, PHOTO, STAMPS, STYLES

ART = Path(__file__).parent / "art"
TILE = 64
_COLUMNS = 8
_STAMP_FOLDERS = ("/usr/share/tuxpaint/stamps", "/usr/local/share/tuxpaint/stamps")

TINTS = {
    "red": (214, 40, 40),
    "green": (40, 150, 60),
    "blue": (45, 85, 220),
    "yellow": (235, 200, 30),
    "purple": (150, 60, 190),
}
"""Colours that a thing can be dyed in."""


@cache
def sprite(name: str, style: str) -> Image.Image:
    """A kind in one style, cut to what is not transparent.

    Args:
        name: Of the kind.
        style: One of `STYLES`, or `photo`.

    Raises:
        DataError: There is no such picture.
    """
    if style == PHOTO:
        return _trimmed(Image.open(_stamp(name)).convert("RGBA"))
    if style not in STYLES or name not in BY_NAME:
        raise DataError(f"There is no picture of {name!r} in the style {style!r}.")
    index = NAMES.index(name)
    left, top = index % _COLUMNS * TILE, index // _COLUMNS * TILE
    return _trimmed(_sheet(style).crop((left, top, left + TILE, top + TILE)))


@cache
def _sheet(style: str) -> Image.Image:
    with Image.open(ART / f"{style}.png") as sheet:
        return sheet.convert("RGBA")


def _stamp(name: str) -> Path:
    for folder in _stamp_folders():
        if (path := folder / f"{STAMPS[name]}.png").is_file():
            return path
    raise DataError(
        f"There is no photo of {name!r}: install the stamps of Tux Paint "
        "(Debian: tuxpaint-stamps-default), or use the shipped styles."
    )


def _stamp_folders() -> list[Path]:
    """Where the stamps may be; `$LVLM_INTERP_STAMPS` first."""
    own = os.environ.get("LVLM_INTERP_STAMPS")
    return [Path(each) for each in (*((own,) if own else ()), *_STAMP_FOLDERS)]


def has_photos() -> bool:
    """Whether the stamps of Tux Paint are installed."""
    return any((folder / "animals").is_dir() for folder in _stamp_folders())


def _trimmed(image: Image.Image) -> Image.Image:
    box = image.getchannel("A").point([255 * (a > 16) for a in range(256)]).getbbox()
    return image.crop(box)


@cache
def scaled(name: str, style: str, tint: str | None, side: int, mirrored: bool) -> Image.Image:
    """A kind with its longer side of so many pixels, dyed and mirrored where asked."""
    image = sprite(name, style)
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image if tint is None else dyed(image, TINTS[tint])


def dyed(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """The picture in shades of one colour; its light and dark stay, its own colours go."""
    pixels = np.asarray(image, dtype=np.float32)
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    shade = (0.45 + 0.65 * light)[..., None] * np.array(color, dtype=np.float32)
    out = np.concatenate([shade.clip(0, 255), pixels[..., 3:]], -1)
    return Image.fromarray(out.round().astype(np.uint8))


@cache
def grounds() -> tuple[Image.Image, ...]:
    """The photographs that things are put on."""
    found = []
    for path in sorted(ART.glob("ground_*.jpg")):
        with Image.open(path) as image:
            found.append(image.convert("RGB"))
    return tuple(found)


def make_sheet(files: dict[str, Path]) -> Image.Image:
    """One sheet from a file for each kind, as the shipped ones were made.

    Args:
        files: Kind to the picture of one style.
    """
    rows = -(-len(KINDS) // _COLUMNS)
    sheet = Image.new("RGBA", (_COLUMNS * TILE, rows * TILE))
    for index, name in enumerate(NAMES):
        with Image.open(files[name]) as opened:
            image = _trimmed(opened.convert("RGBA"))
        image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        left = index % _COLUMNS * TILE + (TILE - image.width) // 2
        top = index // _COLUMNS * TILE + (TILE - image.height) // 2
        sheet.paste(image, (left, top))
    return sheet
