"""Family: frozen data that says where the parts of an architecture are.

A family file holds data and one function, the layout of its image tokens. How sites are read and
written follows from the data and is the same for all families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import nn

from lvlm_interp.errors import ModelError
from lvlm_interp.models.hooks import AS_IS, BATCH_OF_ONE, Tap, View, fused_heads, heads
from lvlm_interp.sites import Site
from lvlm_interp.tokens import ImageLayout


@dataclass(frozen=True)
class Block:
    """Paths inside one transformer block (defaults: a pre-norm Llama block).

    Attributes:
        attn: The module that calls the attention function.
        q, k, v: Projections whose outputs are the sites of that name; empty where `qkv` is fused.
        qkv: Fused projection, its output ordered q, k, v.
        o: Output projection; its input is z.
        attn_out, mlp_out: The module whose output is added to the residual stream.
        mlp_norm: The norm before the MLP; its input is resid_mid.
        down: The down projection; its input is mlp_hidden.
    """

    attn: str = "self_attn"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    qkv: str = ""
    o: str = "self_attn.o_proj"
    attn_out: str = "self_attn.o_proj"
    mlp_norm: str = "post_attention_layernorm"
    down: str = "mlp.down_proj"
    mlp_out: str = "mlp"


CLIP_BLOCK = Block(
    o="self_attn.out_proj",
    attn_out="self_attn.out_proj",
    mlp_norm="layer_norm2",
    down="mlp.fc2",
)
"""A block of the CLIP and SigLIP vision towers."""


@dataclass(frozen=True)
class Tower:
    """A stack of blocks.

    Attributes:
        name: A tower of `sites.TOWERS`.
        layers: Path of the list of blocks, from the Hugging Face model.
        config: Path of the configuration that counts its heads.
        block: Where the parts of a block are.
        final_norm: Path of the norm behind the last block, where the model reads it.
        n_read: How many blocks the model reads, from (config, number of blocks); what lies
            behind them is not declared, because writing there has no effect.
        flat: Whether tensors have no batch axis, the patches of all images in one.
    """

    name: str
    layers: str
    config: str
    block: Block = Block()
    final_norm: str = ""
    n_read: Callable[[Any, int], int] = lambda _config, n: n
    flat: bool = False


@dataclass(frozen=True)
class ImageContext:
    """What a layout may need to know of one row's images.

    Attributes:
        config: The model's configuration.
        processor: The model's processor, or None.
        tensors: The model's inputs for the whole batch.
        row: Index of the row in the batch.
        sizes: (width, height) of each image of the row as the user gave it, if known.
        first: Index of the row's first image among all images of the batch.
    """

    config: Any
    processor: Any
    tensors: Mapping[str, Any]
    row: int
    sizes: Sequence[tuple[int, int]]
    first: int


@dataclass(frozen=True)
class Family:
    """One architecture family.

    Attributes:
        name: As users write it.
        model_types: `config.model_type` of its checkpoints.
        towers: Vision tower first, then what lies between, language model last.
        projector: Path of the module whose output is what the language model gets of the image.
        embed: Path of the module and name of its input at which image features are merged in.
        final_norm, lm_head: Paths.
        layout: Where the image's tokens come from; one `ImageLayout` per image of a row.
        image_token: Name of the placeholder's id in the configuration.
        needs: Inputs that must come with an image.
        enters: How the image enters, in words.
        special: What is special, in words.
    """

    name: str
    model_types: tuple[str, ...]
    towers: tuple[Tower, ...]
    layout: Callable[[ImageContext], list[ImageLayout]]
    projector: str = "model.multi_modal_projector"
    embed: tuple[str, str] = ("model.language_model", "inputs_embeds")
    final_norm: str = "model.language_model.norm"
    lm_head: str = "lm_head"
    image_token: str = "image_token_id"
    needs: tuple[str, ...] = ("pixel_values",)
    enters: str = "tokens merged into the prompt"
    special: str = ""
    extra_taps: Callable[[nn.Module], dict[Site, Tap]] = field(default=lambda _hf: {})


def at(module: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path."""
    return attrgetter(path)(module) if path else module


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a tower: blocks that are read, heads, key-value heads, head and model widths."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int


def shape_of(hf: Any, tower: Tower) -> TowerShape:
    """Sizes of a tower of a loaded model."""
    config = attrgetter(tower.config)(hf.config) if tower.config else hf.config
    n_heads = getattr(config, "num_attention_heads", None) or config.num_heads
    d_model = getattr(config, "hidden_size", None) or config.embed_dim
    n_layers = len(attrgetter(tower.layers)(hf))
    return TowerShape(
        n_layers=tower.n_read(hf.config, n_layers),
        n_heads=n_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        d_head=getattr(config, "head_dim", None) or d_model // n_heads,
        d_model=d_model,
    )


def taps_of(hf: Any, family: Family) -> dict[Site, Tap]:
    """Every declared site of a model and where it passes, in the order of the forward.

    Raises:
        ModelError: A path of the family is not in the model.
    """
    taps: dict[Site, Tap] = {}
    try:
        for tower in family.towers:
            if tower.name == "text":
                taps[Site("projector", None, "out")] = Tap(at(hf, family.projector), "output")
                module, keyword = family.embed
                taps[Site("text", None, "embed")] = Tap(at(hf, module), "input", keyword=keyword)
            taps.update(_tower_taps(hf, tower))
        taps[Site("text", None, "final_norm")] = Tap(at(hf, family.final_norm), "output")
        taps[Site("text", None, "logits")] = Tap(at(hf, family.lm_head), "output")
        taps.update(family.extra_taps(hf))
    except AttributeError as error:
        raise ModelError(
            f"The model does not have the parts of the family {family.name}: {error}. "
            "Was it built for another architecture?"
        ) from error
    return taps


def _tower_taps(hf: Any, tower: Tower) -> dict[Site, Tap]:
    size = shape_of(hf, tower)
    outer = BATCH_OF_ONE if tower.flat else AS_IS
    taps: dict[Site, Tap] = {}
    for layer, block in enumerate(attrgetter(tower.layers)(hf)[: size.n_layers]):
        for name, tap in _block_taps(block, tower.block, size, outer).items():
            taps[Site(tower.name, layer, name)] = tap
    if tower.final_norm and tower.name != "text":
        taps[Site(tower.name, None, "final_norm")] = Tap(at(hf, tower.final_norm), "output", outer)
    return taps


def _block_taps(block: nn.Module, where: Block, size: TowerShape, outer: View) -> dict[str, Tap]:
    z_view = outer.then(heads(size.n_heads, size.d_head))
    attn = at(block, where.attn)
    return {
        "resid_pre": Tap(block, "input", outer),
        **_projection_taps(block, where, size, outer),
        **{part: Tap(attn, part) for part in ("rot_q", "rot_k", "scores", "pattern")},
        "z": Tap(at(block, where.o), "input", z_view, keyword="input"),
        "attn_out": Tap(at(block, where.attn_out), "output", outer),
        "resid_mid": Tap(at(block, where.mlp_norm), "input_in_place", outer),
        "mlp_hidden": Tap(at(block, where.down), "input", outer, keyword="input"),
        "mlp_out": Tap(at(block, where.mlp_out), "output", outer),
        "resid_post": Tap(block, "output", outer),
    }


def _projection_taps(
    block: nn.Module, where: Block, size: TowerShape, outer: View
) -> dict[str, Tap]:
    if where.qkv:
        fused = at(block, where.qkv)
        return {
            name: Tap(fused, "output", outer.then(fused_heads(i, size.n_heads, size.d_head)))
            for i, name in enumerate("qkv")
        }
    counts = {"q": size.n_heads, "k": size.n_kv_heads, "v": size.n_kv_heads}
    return {
        name: Tap(at(block, getattr(where, name)), "output", outer.then(heads(n, size.d_head)))
        for name, n in counts.items()
    }
