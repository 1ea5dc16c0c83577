"""Blocks by the `model_type` of a tower's own configuration: vision towers and language models.

A LLaVA-shaped model is put together from a vision tower and a language model of their own, so a
family says where the towers are and this table says what their blocks look like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from lvlm_interp.errors import ModelError
from lvlm_interp.models.family import CLIP_BLOCK, Block, Family, Scale, Tower

VIT_BLOCK = Block(
    attn="attention",
    q="attention.q_proj",
    k="attention.k_proj",
    v="attention.v_proj",
    o="attention.o_proj",
    attn_out="attention.o_proj",
    mlp_norm="layernorm_after",
    down="mlp.fc2",
)
"""A block of the original ViT (Dosovitskiy et al. 2021)."""

DINO_BLOCK = replace(VIT_BLOCK, attn_out="layer_scale1", mlp_norm="norm2", mlp_out="layer_scale2")
"""A block of DINOv2 and DINOv3: a LayerScale behind each branch, which is part of what it adds."""


def _gated(block: Block) -> Callable[[Any], Block]:
    return lambda config: replace(block, down="mlp.down_proj") if config.use_swiglu_ffn else block


@dataclass(frozen=True)
class VisionKind:
    """One kind of vision tower.

    Attributes:
        layers: Path of the list of blocks from the tower.
        block: Where the parts of a block are, from the tower's configuration.
        leading: Tokens before the first patch (class and register tokens), from the configuration.
    """

    layers: str
    block: Callable[[Any], Block]
    leading: Callable[[Any], int]


def _registers(config: Any) -> int:
    return 1 + config.num_register_tokens


VISION: dict[str, VisionKind] = {
    "clip_vision_model": VisionKind("encoder.layers", lambda _: CLIP_BLOCK, lambda _: 1),
    "siglip_vision_model": VisionKind("encoder.layers", lambda _: CLIP_BLOCK, lambda _: 0),
    "vit": VisionKind("layers", lambda _: VIT_BLOCK, lambda _: 1),
    "dinov2": VisionKind("encoder.layer", _gated(DINO_BLOCK), lambda _: 1),
    "dinov2_with_registers": VisionKind("encoder.layer", _gated(DINO_BLOCK), _registers),
    "dinov3_vit": VisionKind(
        "model.layer",
        lambda config: replace(DINO_BLOCK, down="mlp.down_proj"),
        _registers,
    ),
}
"""Vision towers by `vision_config.model_type`."""


def vision_kind(config: Any) -> VisionKind:
    """The kind of vision tower that a model's configuration names.

    Raises:
        ModelError: The tower is of no known kind; the known ones are named.
    """
    name = config.vision_config.model_type
    if name not in VISION:
        raise ModelError(
            f"{config.model_type} with the vision tower {name!r} is not supported: expected one of "
            f"{', '.join(VISION)}."
        )
    return VISION[name]


def with_vision(family: Family, config: Any) -> Family:
    """A family whose vision tower is of the kind that the configuration names.

    Args:
        family: Its first tower is the vision tower; the path of its blocks is replaced.
        config: Of the model.

    Raises:
        ModelError: The tower is of no known kind.
    """
    kind = vision_kind(config)
    vision, *others = family.towers
    root = vision.layers[: vision.layers.index("vision_tower") + len("vision_tower")]
    tower: Tower = replace(
        vision, layers=f"{root}.{kind.layers}", block=kind.block(config.vision_config)
    )
    return replace(family, towers=(tower, *others), variant=None)


@dataclass(frozen=True)
class Backbone:
    """What is special about a language model: one family meets several (Gemma, Gemma 2).

    Attributes:
        block: Where the parts of its blocks are.
        scales_embeddings: Whether embeddings are multiplied on their way to the first block.
    """

    block: Block
    scales_embeddings: bool = False


POST_NORMS = Block(
    attn_out="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_out="post_feedforward_layernorm",
)
"""A block that norms what a branch adds, as well as what it reads (Gemma 2 and 3)."""

ONLY_POST_NORMS = Block(
    attn_out="post_attention_layernorm",
    mlp_norm="mlp",
    mlp_out="post_feedforward_layernorm",
)
"""A block that norms what a branch adds and reads the stream as it is (OLMo 2)."""

GLM = Block(attn_out="post_self_attn_layernorm", mlp_out="post_mlp_layernorm")
MULTIPLIED = Block(attn_scale=Scale("residual_multiplier"), mlp_scale=Scale("residual_multiplier"))
"""A block that multiplies what it adds (Granite)."""

PARALLEL = Block(mlp_norm="")
"""Attention and MLP read the same normed stream: there is no residual stream between them."""

EXPERTS = Block(others={"mlp.experts": Block(down="")})
"""A Llama block, or one with a mixture of experts in place of its MLP."""

HYPERCLOVAX = replace(MULTIPLIED, attn_out="post_norm1", mlp_out="post_norm2")
"""A block that multiplies what it adds, behind a norm that may be none."""

TEXT: Mapping[str, Backbone] = {
    "gemma2": Backbone(POST_NORMS),
    "gemma3_text": Backbone(POST_NORMS),
    "vaultgemma": Backbone(Block(mlp_norm="pre_feedforward_layernorm")),
    "olmo2": Backbone(ONLY_POST_NORMS),
    "olmo3": Backbone(ONLY_POST_NORMS),
    "exaone4": Backbone(ONLY_POST_NORMS),
    "glm4": Backbone(GLM),
    "granite": Backbone(MULTIPLIED, scales_embeddings=True),
    "granite_swa": Backbone(MULTIPLIED, scales_embeddings=True),
    "cohere": Backbone(PARALLEL),
    "cohere2": Backbone(PARALLEL),
    "qwen2_moe": Backbone(EXPERTS),
    "qwen3_moe": Backbone(EXPERTS),
    "hyperclovax": Backbone(HYPERCLOVAX, scales_embeddings=True),
    "starcoder2": Backbone(Block(down="mlp.c_proj")),
}
"""Language models by `text_config.model_type`; one that is not here has its family's own block, and
the self-check says whether that is right."""


def with_text(family: Family, config: Any) -> Family:
    """A family whose language model has the blocks of the one that the configuration names."""
    tower = next(tower for tower in family.towers if tower.name == "text")
    text = attrgetter(tower.config)(config) if tower.config else config
    known = TEXT.get(text.model_type)
    if known is None:
        return family
    towers = tuple(
        replace(each, block=known.block) if each is tower else each for each in family.towers
    )
    plain = family.embed_is_resid and not known.scales_embeddings
    return replace(family, towers=towers, embed_is_resid=plain)
