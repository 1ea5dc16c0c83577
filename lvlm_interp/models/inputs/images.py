"""The one opener of images: whatever holds a picture in, upright RGB pixels out.

The pixels are those that transformers makes of the same picture: turned as its orientation tag
says (`transformers.image_utils.load_image`), transparency laid on white
(`transformers.image_transforms.convert_to_rgb`), and numbers beyond 8 bits scaled by their range,
where Pillow's own conversion would cut them off at 255.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import urllib.request
from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from lvlm_interp.errors import InputError

__all__ = ["ImageSource", "LazyImage", "image_size", "images_of", "open_image", "pixel_digest"]


@runtime_checkable
class LazyImage(Protocol):
    """A picture that is made or fetched when it is opened, so that a data set of them is small."""

    def open_image(self) -> Image.Image:
        """The picture."""
        ...


ImageSource: TypeAlias = (
    Image.Image | Path | str | bytes | np.ndarray | Tensor | Mapping[str, Any] | LazyImage
)
"""A PIL image; a path; the bytes of a file, also as a data URL, base64 text, or a mapping with
`bytes`, `path` or `url` (the images of `datasets`); an array or tensor; or a `LazyImage`."""

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_CHANNELS = (1, 3, 4)
_SHAPES = ((), *((n,) for n in _CHANNELS))
_MOST_BYTES = 64 << 20
_SECONDS = 30
_URL = re.compile(r"https?://", re.IGNORECASE)
_LONG_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{60,}={0,2}\s*\Z")
_POINTER = b"version https://git-lfs"


def open_image(image: Any, *, http: bool = False) -> Image.Image:
    """A picture as upright RGB pixels, in a copy of its own.

    Args:
        image: See `ImageSource`. Arrays are `row column`, `row column channel` or, as tensors
            mostly are, `channel row column`, with 1, 3 or 4 channels. Whole numbers up to 255 (or
            65535) and fractions from 0 to 1 are the full range of a pixel.
        http: Fetch network addresses. Without it nothing is ever fetched.

    Raises:
        InputError: There is no such file, it is no image or a broken one, or it has far too many
            pixels; the file and the reason are named.
    """
    if isinstance(image, Image.Image):
        return _decoded(image, "The image in memory")
    if isinstance(image, np.ndarray | Tensor):
        return _upright(_from_array(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return _decoded(bytes(image), "The bytes given as an image")
    if isinstance(image, Mapping):
        return _from_mapping(image, http)
    if isinstance(image, str) and (data := _inline(image)) is not None:
        return _decoded(data, "The data URL given as an image")
    if isinstance(image, str) and _URL.match(image):
        return _decoded(_fetched(image, http), image)
    if isinstance(image, str | os.PathLike):
        return _from_path(Path(image))
    if isinstance(image, LazyImage):
        return open_image(image.open_image())
    raise InputError(
        "An image must be a PIL image, a path, an array, the bytes of a file or a data URL, got "
        f"{type(image).__name__}."
    )


def image_size(image: Any) -> tuple[int, int]:
    """Width and height of a picture as `open_image` gives it; of a file only its head is read.

    Raises:
        InputError: As `open_image`.
    """
    if isinstance(image, Image.Image):
        return _size(image)
    if isinstance(image, str | os.PathLike) and os.path.isfile(image):
        try:
            with Image.open(image) as opened:
                return _size(opened)
        except Exception as error:  # Pillow's decoders raise a dozen kinds
            raise _broken(error, f"The file {image}", Path(image)) from error
    return open_image(image).size


def images_of(image: Any) -> tuple[ImageSource, ...]:
    """The pictures of one example: none, one, or a list of them."""
    if image is None:
        return ()
    return tuple(image) if isinstance(image, list | tuple) else (image,)


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 of the size and the pixels of an opened picture."""
    digest = sha256(f"{image.size}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _from_path(path: Path) -> Image.Image:
    if not os.path.isfile(path):  # Path.is_file raises on a name that is too long
        if os.path.isdir(path):
            raise InputError(f"{path} is a folder, not an image file.")
        shown = str(path) if len(str(path)) < 300 else f"{str(path)[:300]}..."
        raise InputError(f"There is no image file {shown}.")
    return _decoded(path, f"The file {path}")


def _from_mapping(image: Mapping[str, Any], http: bool) -> Image.Image:
    for name in ("bytes", "path", "url", "image_url", "image", "base64"):
        held = image.get(name)
        if held is not None:
            return open_image(held, http=http)
    raise InputError(
        "An image given as a mapping needs 'bytes', 'path' or 'url' (as datasets and chats write "
        f"them), it has {', '.join(map(str, image)) or 'nothing'}."
    )


def _inline(text: str) -> bytes | None:
    """What a data URL, or a long text in base64 that is no file, holds; None for other texts."""
    if text[:5].lower() == "data:":
        head, comma, body = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InputError("An image's data URL must be data:image/...;base64,... .")
    elif _LONG_BASE64.match(text) and not os.path.isfile(text):
        body = text
    else:
        return None
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        if body is text:
            return None
        raise InputError(f"The data URL of an image is no valid base64 ({error}).") from error


def _fetched(address: str, http: bool) -> bytes:
    if not http:
        raise InputError(
            f"{address} is a network address, which is fetched only on request: pass http=True to "
            "li.open_image or li.load_examples, or download the file."
        )
    try:
        with urllib.request.urlopen(address, timeout=_SECONDS) as answer:
            data = answer.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{address} cannot be fetched ({error}).") from error
    if len(data) > _MOST_BYTES:
        raise InputError(f"{address} is larger than {_MOST_BYTES >> 20} MiB.")
    return data


def _decoded(source: Path | bytes | Image.Image, name: str) -> Image.Image:
    try:
        if isinstance(source, Image.Image):
            return _upright(source)
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as opened:
            return _upright(opened)
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        raise _broken(error, name, b"?" if isinstance(source, Image.Image) else source) from error


def _upright(image: Image.Image) -> Image.Image:
    """The pixels in RGB, turned by the orientation tag, in a copy."""
    image.load()  # before its tags are asked for: a cut file is told as such
    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I") or turned.mode == "F":
        return _from_array(np.asarray(turned)).convert("RGB")
    if {"A", "a"} & set(turned.getbands()) or "transparency" in turned.info:
        clear = turned.convert("RGBA")
        white = Image.new("RGBA", clear.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, clear).convert("RGB")
    return turned if turned.mode == "RGB" else turned.convert("RGB")


def _from_array(values: np.ndarray | Tensor) -> Image.Image:
    first = isinstance(values, Tensor)
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy knows no bfloat16.
        array = (values.float() if values.is_floating_point() else values).numpy()
    else:
        array = values
    if array.ndim == 3:
        last = array.shape[-1] in _CHANNELS and not (first and array.shape[0] in _CHANNELS)
        if not last:
            array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or 0 in array.shape or array.shape[2:] not in _SHAPES:
        raise InputError(
            "An image as an array must be (row, column) or (row, column, channel) with 1, 3 or 4 "
            f"channels, got the shape {tuple(values.shape)}."
        )
    pixels = _eight_bits(array)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    low, high = array.min(), array.max()
    floating = np.issubdtype(array.dtype, np.floating)
    if not (floating or np.issubdtype(array.dtype, np.integer)) or not 0 <= low <= high <= 65535:
        raise InputError(
            "An image's numbers must be whole numbers from 0 to 255 or 65535, or fractions from 0 "
            f"to 1, got {array.dtype} from {low} to {high}."
        )
    if floating and high > 255:
        raise InputError(f"An image of fractions must run from 0 to 1 or 255, it runs to {high}.")
    if floating:
        full = 1.0 if high <= 1 else 255.0
    else:
        full = 65535.0 if array.dtype == np.uint16 or high > 255 else 255.0
    return np.round(array.astype(np.float64) * (255.0 / full)).astype(np.uint8)


def _size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if image.getexif().get(_ORIENTATION) in _SIDEWAYS else (width, height)


def _broken(error: Exception, name: str, source: Path | bytes) -> InputError:
    """Why a picture could not be opened, in words that say what to do."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return InputError(f"{name} has far too many pixels ({error}); shrink it first.")
    if isinstance(error, MemoryError):
        return InputError(f"{name} has more pixels than fit into memory; shrink it first.")
    head = _head(source)
    if not head:
        return InputError(f"{name} is empty; get it again.")
    if head.startswith(_POINTER):
        return InputError(f"{name} is a git-lfs pointer, not the image: run git lfs pull.")
    if head.lstrip()[:1] == b"<" and b"<svg" not in head:
        return InputError(f"{name} is a web page or XML, not an image: download it again.")
    why = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in why or "broken" in why or isinstance(error, EOFError):
        return InputError(f"{name} is an image that was cut short ({why}); get it again.")
    return InputError(f"{name} is not an image that Pillow can read ({why}); replace it.")


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:200]
    try:
        with source.open("rb") as file:
            return file.read(200)
    except OSError:
        return b"?"
