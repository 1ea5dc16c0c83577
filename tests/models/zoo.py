"""The tiny models of `lvlm_interp.models.zoo`, and which of them the fast tests take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pytest

from lvlm_interp.models import zoo
from lvlm_interp.models.zoo import _randomise as _randomise
from lvlm_interp.models.zoo import randomised as randomised
from lvlm_interp.models.zoo.cross import _blip_parts as _blip_parts
from lvlm_interp.models.zoo.parts import IMAGE as IMAGE
from lvlm_interp.models.zoo.parts import MROPE as MROPE
from lvlm_interp.models.zoo.parts import PINPOINTS as PINPOINTS
from lvlm_interp.models.zoo.parts import text_config as text_config
from lvlm_interp.models.zoo.parts import vision_config as vision_config

FOURTEEN = (
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "idefics3",
    "smolvlm",
    "paligemma",
    "gemma3",
    "internvl",
    "mllama",
    "blip_2",
    "instructblip",
)
"""Families with a processor of their own in these tests: every method is proved on them."""


def _kind(name: str) -> str:
    return "blip-2" if name == "blip_2" else name


BUILDERS: dict[str, Callable[[], Any]] = {name: partial(zoo.tiny, _kind(name)) for name in FOURTEEN}
"""By the name of the family."""


def build(name: str, seed: int = 0) -> Any:
    """A tiny model in evaluation mode, with weights large enough for every path to matter."""
    return zoo.build(_kind(name), seed)


FAST = ("llava", "qwen3_vl", "gemma3", "mllama", "instructblip")
"""One family of each special kind; the others prove the same in the second tier."""


def tiered(names: Iterable[str], fast: Sequence[str] = FAST) -> list[Any]:
    """Parameters of a test over families."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]
