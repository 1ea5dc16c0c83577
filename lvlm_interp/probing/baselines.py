"""Where a probe must do worse: an untrained model of the same shape, and the bag of raw pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from lvlm_interp.activations.forward import Chunk
from lvlm_interp.activations.gather import Missing
from lvlm_interp.activations.memory import Collected, as_examples, collect
from lvlm_interp.activations.roles import parse_roles
from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.data.sources import data_hash
from lvlm_interp.errors import DataError
from lvlm_interp.models.inputs.images import images_of, open_image
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.results import provenance
from lvlm_interp.sites import Site

__all__ = ["pixels", "untrained", "untrained_model"]

_PIXEL_SITE = Site("vision", None, "embed")


def untrained_model(model: LVLM, seed: int = 0) -> LVLM:
    """A model of the same configuration with the random weights that training starts from."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf = type(model.hf)(deepcopy(model.config))
    hf = hf.to(device=model.device, dtype=model.dtype).eval()
    return LVLM(hf, model.processor, model.family, f"untrained {model.name}")


def untrained(
    model: LVLM,
    data: Iterable[Example | ContrastPair],
    sites: str | Iterable[str],
    positions: str | Iterable[str],
    *,
    seed: int = 0,
    batch_size: int = 32,
    missing: Missing = "raise",
    progress: bool = True,
) -> Collected:
    """Activations of an untrained model of the same shape, for `sweep(..., baselines=...)`."""
    other = untrained_model(model, seed)
    return collect(
        other, data, sites, positions, batch_size=batch_size, missing=missing, progress=progress
    )


def pixels(data: Iterable[Example | ContrastPair], *, bins: int = 4) -> Collected:
    """The bag of pixels of each image (`image_mean`) and, where all have one, of its object's box.

    A bag counts colours and forgets places: the share of the pixels in each of `bins` ** 3 boxes of
    RGB. What it predicts needs no model.

    Args:
        data: Examples with images.
        bins: Intervals per colour channel.

    Raises:
        DataError: An example has no image.
    """
    examples = as_examples(data)
    boxed = all("object" in example.boxes for example in examples)
    names = ("image_mean", "object") if boxed else ("image_mean",)
    features = np.stack([_bags(example, names, bins) for example in examples])
    rows = [{"example": e.id, "group": e.group, **dict(e.labels)} for e in examples]
    chunk = Chunk({_PIXEL_SITE: features}, {}, {}, rows, [])
    about = provenance(model="bag of pixels", data_hash=data_hash(examples))
    return Collected([_PIXEL_SITE], parse_roles(names), about, [chunk])


def _bags(example: Example, names: Sequence[str], bins: int) -> Float[np.ndarray, "position bin"]:
    image = example.open_image()
    if image is None:
        raise DataError(f"Example {example.id!r} has no image, so it has no bag of pixels.")
    parts = [image if name == "image_mean" else _region(example, name) for name in names]
    return np.stack([_bag(part, bins) for part in parts])


def _region(example: Example, name: str) -> Image.Image:
    left, top, right, bottom, *which = example.boxes[name]
    image = open_image(images_of(example.image)[which[0] if which else 0])
    return image.crop((left, top, right, bottom))


def _bag(image: Image.Image, bins: int) -> Float[np.ndarray, " bin"]:
    levels = (np.asarray(image, dtype=np.int64) * bins) // 256
    codes = (levels[..., 0] * bins + levels[..., 1]) * bins + levels[..., 2]
    counts = np.bincount(codes.ravel(), minlength=bins**3)
    return (counts / counts.sum()).astype(np.float32)
