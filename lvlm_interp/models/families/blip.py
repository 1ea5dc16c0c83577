"""BLIP-2 and InstructBLIP: a Q-Former reads the image into learned query tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lvlm_interp.errors import ModelError
from lvlm_interp.models.families.geometry import made_of, random_pixels, tokens_without_place
from lvlm_interp.models.family import CLIP_BLOCK, Block, Branch, Family, ImageContext, Tower
from lvlm_interp.models.inputs.rows import RowContext, RowsByTower, entries_by_tokens
from lvlm_interp.tokens import ImageLayout

NOTE = "query tokens stand for the whole image: ask qformer.N.cross_pattern where each one looks"


def layout(context: ImageContext) -> list[ImageLayout]:
    """`num_query_tokens` queries per image."""
    n, vision = context.config.num_query_tokens, context.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    query = np.arange(n)
    # Behind the class token; every query reads all of them.
    parts = {
        "vision": np.tile(np.arange(1, patches + 1), (n, 1)),
        "qformer": query,
        "projector": query,
    }
    lengths = {"vision": patches + 1, "qformer": n, "projector": n}
    plain = tokens_without_place(n, "query", NOTE)
    return [made_of(plain, parts, lengths) for _ in context.sizes]


def rows_with_instruction(context: RowContext) -> RowsByTower:
    """The Q-Former's queries, then the words of its instruction, of which padding is ignored."""
    plain = entries_by_tokens(context)
    mask = context.tensors["qformer_attention_mask"].bool().cpu()
    queries = torch.ones(len(mask), context.config.num_query_tokens, dtype=torch.bool)
    return {**plain, "qformer": replace(plain["qformer"], real=torch.cat([queries, mask], 1))}


def pixels(config: Any) -> dict[str, Any]:
    """One image of the size that the vision tower takes."""
    side = config.vision_config.image_size
    return {"pixel_values": random_pixels(1, 3, side, side)}


def _branch(name: str, entry: str = "") -> Branch:
    inner = f"{name}.attention"
    return Branch(
        attn=inner,
        q=f"{inner}.query",
        k=f"{inner}.key",
        v=f"{inner}.value",
        o=f"{name}.output.dense",
        out=f"{name}.output.dense",
        entry=entry,
    )


_OWN = _branch("attention")
QFORMER_BLOCK = Block(
    attn=_OWN.attn,
    q=_OWN.q,
    k=_OWN.k,
    v=_OWN.v,
    o=_OWN.o,
    attn_out=_OWN.out,
    mlp_norm="intermediate_query",
    down="output_query.dense",
    mlp_out="output_query.dense",
    mlp=("intermediate_query", "output_query.dense"),
    cross=_branch("crossattention", entry="crossattention"),
    sum_norms={
        "attn_out": "attention.output.LayerNorm",
        "cross_attn_out": "crossattention.output.LayerNorm",
        "mlp_out": "output_query.LayerNorm",
    },
)
"""A post-norm block: the stream is the norm of stream + branch, after each branch."""

OPT_BLOCK = Block(
    o="self_attn.out_proj",
    attn_out="self_attn.out_proj",
    mlp_norm="final_layer_norm",
    down="fc2",
    mlp_out="fc2",
    mlp=("fc1", "activation_fn", "fc2"),
    flat_mlp=True,
)


def variant(config: Any) -> Family:
    """By the language model: OPT, or one of Llama's shape (Vicuna).

    Raises:
        ModelError: The language model is an encoder-decoder.
    """
    family = INSTRUCTBLIP if config.model_type == "instructblip" else FAMILY
    kind = config.text_config.model_type
    if config.text_config.is_encoder_decoder:
        raise ModelError(
            f"{config.model_type} with the encoder-decoder language model {kind!r} is not "
            "supported: its image tokens enter an encoder. Use a checkpoint with OPT or Vicuna."
        )
    if kind == "opt":
        return family
    text = Tower("text", "language_model.model.layers", "text_config")
    return replace(
        family,
        towers=(*family.towers[:-1], text),
        embed=("language_model.model", "inputs_embeds"),
        embed_is_resid=True,
        final_norm="language_model.model.norm",
    )


FAMILY = Family(
    name="blip_2",
    model_types=("blip-2",),
    towers=(
        Tower(
            "vision",
            "vision_model.encoder.layers",
            "vision_config",
            replace(
                CLIP_BLOCK,
                qkv="self_attn.qkv",
                o="self_attn.projection",
                attn_out="self_attn.projection",
            ),
            final_norm="vision_model.post_layernorm",
        ),
        Tower("qformer", "qformer.encoder.layer", "qformer_config", QFORMER_BLOCK),
        Tower("text", "language_model.model.decoder.layers", "text_config", OPT_BLOCK),
    ),
    layout=layout,
    pixels=pixels,
    projector="language_projection",
    embed=("language_model.model.decoder", "inputs_embeds"),
    embed_is_resid=False,
    final_norm="language_model.model.decoder.final_layer_norm",
    lm_head="language_model.lm_head",
    variant=variant,
    enters="query tokens that a Q-Former fills (sites qformer.N.cross_*), merged into the prompt",
    special="the Q-Former's blocks are post-norm; OPT adds positions behind text.embed; "
    "T5 language models are refused",
)

INSTRUCTBLIP = replace(
    FAMILY,
    name="instructblip",
    model_types=("instructblip",),
    rows=rows_with_instruction,
    needs=("pixel_values", "qformer_input_ids"),
    special=FAMILY.special + "; the Q-Former reads the instruction too: its positions follow the "
    "queries, and sites behind the first branch hold the queries alone",
)
