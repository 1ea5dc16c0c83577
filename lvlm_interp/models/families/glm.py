"""GLM-4V and its kin: a tower like that of Qwen2-VL, patches merged by a convolution."""

from __future__ import annotations

from dataclasses import replace

from lvlm_interp.models.families import qwen_vl
from lvlm_interp.models.families.blocks import EXPERTS, GLM
from lvlm_interp.models.family import Tower

_TOWER = replace(
    qwen_vl.FAMILY.towers[0],
    block=replace(qwen_vl.FUSED, down="mlp.down_proj"),
    width="hidden_size",
)

GLM4V = replace(
    qwen_vl.FAMILY,
    name="glm4v",
    model_types=("glm4v",),
    towers=(_TOWER, Tower("text", "model.language_model.layers", "text_config", GLM)),
    special=qwen_vl.FAMILY.special + "; norms behind each branch of the language model",
)

GLM46V = replace(GLM4V, name="glm46v", model_types=("glm46v",))
GLMGA = replace(GLM4V, name="glmga", model_types=("glmga",))
GLM_OCR = replace(GLM4V, name="glm_ocr", model_types=("glm_ocr",))

GLM4V_MOE = replace(
    GLM4V,
    name="glm4v_moe",
    model_types=("glm4v_moe",),
    towers=(_TOWER, replace(qwen_vl.TEXT, block=EXPERTS)),
    special=qwen_vl.FAMILY.special + "; experts behind the first text blocks, without mlp_hidden",
)
