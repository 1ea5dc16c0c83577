"""Processors of images and text, also where a package that only videos need is missing.

transformers builds a video processor with every processor that knows videos, and refuses without
torchvision. Images do not need it, so such a processor is loaded without its video part.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import AutoProcessor, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from lvlm_interp.errors import ModelError


@cache
def image_only(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The same processor class without its video processor."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in kind.get_attributes() if name != "video_processor"]

    def arguments(cls: Any, *args: Any, **kwargs: Any) -> list[Any]:
        given = kind._get_arguments_from_pretrained.__func__(cls, *args, **kwargs)
        place = kind.get_attributes().index("video_processor")
        return [*given[:place], None, *given[place:]]

    members = {
        "get_attributes": classmethod(get_attributes),
        "_get_arguments_from_pretrained": classmethod(arguments),
        # Some override it only to ask the video processor for its frames.
        "apply_chat_template": ProcessorMixin.apply_chat_template,
    }
    # The same name: it is what a saved processor says of itself.
    return type(kind.__name__, (kind,), members)


def load_processor(source: str, config: Any, options: dict[str, Any]) -> Any:
    """A checkpoint's processor with images by Pillow.

    Raises:
        ModelError: A package that the processor needs is missing.
    """
    options = {**options, "backend": "pil"}
    try:
        return AutoProcessor.from_pretrained(source, **options)
    except (ImportError, OSError) as error:
        kind: Any = PROCESSOR_MAPPING.get(type(config), None)
        if kind is None or "video_processor" not in kind.get_attributes():
            raise ModelError(f"The processor of {source} cannot be loaded: {error}") from error
    try:
        return image_only(kind).from_pretrained(source, **options)
    except (ImportError, OSError) as error:
        raise ModelError(f"The processor of {source} cannot be loaded: {error}") from error
