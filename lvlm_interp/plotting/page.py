"""One self-contained page: the image, its patches, and what each of them says by layer."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.files import atomic_write
from lvlm_interp.lens import LensResult
from lvlm_interp.models.inputs.images import open_image

_TEMPLATES = files("lvlm_interp.plotting") / "templates"
_LARGEST_SIDE = 1024
_SMALL_SIDE = 200
_PNG_BYTES = 300_000
_SUGGESTED = 400


def lens_page(result: LensResult, *, row: int = 0, model: str = "") -> str:
    """The page as HTML; it loads nothing, and words and prompt are escaped.

    Args:
        result: A lens of one whole-site name (such as resid_post) at some layers.
        row: Row of the batch.
        model: Name of the model, for the heading.

    Raises:
        UsageError: Heads or several sites of one layer, or no such row.
        InputError: The row has no single image, or its tokens have no place in it.
    """
    image = _image(result, row)
    script = (_TEMPLATES / "lens_page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(
        (_TEMPLATES / "lens_page.html.j2").read_text(encoding="utf-8")
    )
    prompt = (result.prompts[row] if row < len(result.prompts) else None) or ""
    names = list(dict.fromkeys(site.name for site in result.sites if site.layer is not None))
    return template.render(
        title=model or "logit lens",
        model=model,
        note=f"{', '.join(names)} decoded at {len(result.sites)} layers, "
        f"top {result.top.shape[-1]} words of each patch",
        prompt=prompt,
        n_layers=len(result.sites),
        image=_data_uri(image),
        small=max(image.size) < _SMALL_SIDE,
        data=Markup(_json(_data(result, row, image))),
        script=Markup(script),
        script_hash=digest,
    )


def write_lens_page(result: LensResult, path: str | Path, *, row: int = 0, model: str = "") -> Path:
    """Write the page of `lens_page` to a file, whole or not at all.

    Raises:
        UsageError: As `lens_page`.
        InputError: As `lens_page`.
    """
    return atomic_write(path, lens_page(result, row=row, model=model))


def _image(result: LensResult, row: int) -> Image.Image:
    if not 0 <= row < len(result.tokens):
        raise UsageError(f"Row {row} was asked, the batch has {len(result.tokens)}.")
    if any(head is not None for head in result.heads):
        raise UsageError("A page shows whole sites, not single heads: read resid_post or the like.")
    if len(result.layers) != len(result.sites):
        raise UsageError("A page shows one site per layer: read one site name.")
    image = result.images[row] if row < len(result.images) else None
    if image is None or isinstance(image, list | tuple):
        raise InputError(f"Row {row} has no single image to show.")
    return open_image(image)


def _data(result: LensResult, row: int, image: Image.Image) -> dict[str, Any]:
    tokens = result.tokens[row]
    mine = np.flatnonzero(result.selection.rows == row)
    at = result.selection.at[mine]
    if np.isnan(tokens.box[at]).all():
        note = tokens.notes[0] if tokens.notes else "no image tokens were read"
        raise InputError(f"The tokens of row {row} have no place in the image: {note}.")
    top = result.top[:, mine]
    words, ids = np.unique(top.astype(str), return_inverse=True)
    wide = len(words) > np.iinfo(np.uint16).max
    counts = Counter(ids.ravel().tolist())
    common = [str(words[index]) for index, _ in counts.most_common(_SUGGESTED)]
    return {
        "layers": [_layer_name(site.layer) for site in result.sites],
        "k": int(top.shape[-1]),
        "words": words.tolist(),
        "wide": wide,
        "ids": _packed(ids.reshape(top.shape), "<u4" if wide else "<u2"),
        "probs": _shares(result.top_probs[:, mine]),
        "chosen": [
            {"word": word, "probs": _shares(result.prob(word)[:, mine])} for word in result.words
        ],
        "suggested": list(dict.fromkeys([*result.words, *sorted(common)])),
        "cells": [_cell(tokens, int(position), image.size) for position in at],
    }


def _cell(tokens: Any, position: int, size: tuple[int, int]) -> dict[str, Any]:
    """Place of a token; its box in percent of the image: left, top, width, height."""
    left, top, right, bottom = tokens.box[position]
    box = None
    if not np.isnan(left):
        shares = (left / size[0], top / size[1], (right - left) / size[0], (bottom - top) / size[1])
        box = [round(100 * float(share), 3) for share in shares]
    return {
        "position": position,
        "row": int(tokens.row[position]),
        "col": int(tokens.col[position]),
        "tile": int(tokens.tile[position]),
        "box": box,
    }


def _layer_name(layer: int | None) -> str:
    return "input of the language model" if layer is None else f"layer {layer}"


def _shares(values: np.ndarray) -> str:
    """Probabilities in steps of 1/65535, so an error of at most 8e-6."""
    return _packed(np.rint(np.clip(values, 0, 1) * 65535), "<u2")


def _packed(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values.astype(kind)).tobytes()).decode()


def _json(data: dict[str, Any]) -> str:
    """JSON that cannot end its script element, whatever words a vocabulary holds."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _data_uri(image: Image.Image) -> str:
    shown = image.copy()
    shown.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    kind, buffer = "png", io.BytesIO()
    shown.save(buffer, "PNG", optimize=True)
    if buffer.tell() > _PNG_BYTES:
        kind, buffer = "jpeg", io.BytesIO()
        shown.save(buffer, "JPEG", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
