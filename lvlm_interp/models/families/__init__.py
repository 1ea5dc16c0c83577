"""The registered architecture families: one file each, found by `config.model_type`."""

from __future__ import annotations

from typing import Any

from lvlm_interp.errors import ModelError
from lvlm_interp.models.families import (
    blip,
    cohere,
    deepseek,
    flat_towers,
    gemma,
    glm,
    idefics3,
    internvl,
    llama4,
    llava,
    llava_next,
    mllama,
    ovis,
    pixtral,
    qwen_vl,
)
from lvlm_interp.models.families.blocks import with_text
from lvlm_interp.models.family import Family

FAMILIES: tuple[Family, ...] = (
    llava.FAMILY,
    llava_next.FAMILY,
    llava_next.ONEVISION,
    qwen_vl.FAMILY,
    qwen_vl.QWEN2_5,
    qwen_vl.QWEN3,
    idefics3.FAMILY,
    idefics3.SMOLVLM,
    gemma.PALIGEMMA,
    gemma.GEMMA3,
    internvl.FAMILY,
    mllama.FAMILY,
    blip.FAMILY,
    blip.INSTRUCTBLIP,
    llava.VIPLLAVA,
    llava_next.VIDEO,
    pixtral.MISTRAL3,
    pixtral.LIGHTON_OCR,
    cohere.AYA,
    cohere.COMMAND,
    deepseek.DEEPSEEK_VL,
    deepseek.JANUS,
    gemma.SHIELDGEMMA2,
    qwen_vl.QWEN3_MOE,
    qwen_vl.QWEN3_5,
    qwen_vl.QWEN3_5_MOE,
    qwen_vl.COSMOS3_OMNI,
    glm.GLM4V,
    glm.GLM46V,
    glm.GLMGA,
    glm.GLM_OCR,
    glm.GLM4V_MOE,
    flat_towers.VIDEO_LLAMA_3,
    flat_towers.PADDLEOCR_VL,
    flat_towers.EXAONE4_5,
    flat_towers.QWEN2_5_OMNI,
    flat_towers.QWEN3_OMNI,
    flat_towers.HYPERCLOVAX_VISION,
    internvl.QIANFAN_OCR,
    llama4.FAMILY,
    ovis.FAMILY,
)


def family_of(config: Any) -> Family:
    """The family of a model's configuration.

    Raises:
        ModelError: The architecture is not registered; the supported ones are named.
    """
    for family in FAMILIES:
        if config.model_type in family.model_types:
            found = family if family.variant is None else family.variant(config)
            return with_text(found, config)
    supported = ", ".join(family.name for family in FAMILIES)
    raise ModelError(
        f"The architecture {config.model_type!r} is not supported; supported are: {supported}. "
        'Try family="auto": it looks for the common parts and refuses what fails the self-check.'
    )
