"""The registered architecture families: one file each, found by `config.model_type`."""

from __future__ import annotations

from typing import Any

from lvlm_interp.errors import ModelError
from lvlm_interp.models.families import llava
from lvlm_interp.models.family import Family

FAMILIES: tuple[Family, ...] = (llava.FAMILY,)


def family_of(config: Any) -> Family:
    """The family of a model's configuration.

    Raises:
        ModelError: The architecture is not registered; the supported ones are named.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    supported = ", ".join(family.name for family in FAMILIES)
    raise ModelError(
        f"The architecture {config.model_type!r} is not supported; supported are: {supported}."
    )
