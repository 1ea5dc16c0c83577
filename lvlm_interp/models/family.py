"""Family: frozen data that says where the parts of an architecture are.

A family file holds data and one function, the layout of its image tokens. How sites are read and
written follows from the data (`taps.py`) and is the same for all families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import nn

from lvlm_interp.errors import ModelError
from lvlm_interp.models.hooks import Tap
from lvlm_interp.models.inputs.rows import RowContext, RowsByTower, entries_by_tokens
from lvlm_interp.models.views import View
from lvlm_interp.sites import Site
from lvlm_interp.tokens import ImageLayout


@dataclass(frozen=True)
class Scale:
    """A parameter or number of a block by which it multiplies a branch before adding it.

    Attributes:
        path: Of it in the block.
        tanh: Whether the factor is its tanh (a gate).
        row_mask: Name of an argument of the block with a further factor per position.
    """

    path: str
    tanh: bool = False
    row_mask: str = ""


@dataclass(frozen=True)
class Branch:
    """Paths of an attention branch in a block.

    Attributes:
        attn: The module that calls the attention function.
        q, k, v: Projections whose outputs are the sites of that name; empty where `qkv` is fused.
        qkv: Fused projection, its output ordered q, k, v.
        o: Output projection; its input is z.
        out: The module whose output is added to the residual stream.
        scale: Factor on that output.
        entry: Module whose first input is what the branch and the skip connection share, where a
            site is declared for it (`resid_cross`).
        tiled_keys: Whether keys and values come with the tiles of an image in the batch.
        gated: Whether the query projection also gives a gate per head (behind the query), by which
            what attention gives is multiplied: z is then what the output projection reads of it.
    """

    attn: str
    q: str = ""
    k: str = ""
    v: str = ""
    qkv: str = ""
    o: str = ""
    out: str = ""
    scale: Scale | None = None
    entry: str = ""
    tiled_keys: bool = False
    gated: bool = False


def has_part(module: nn.Module, path: str) -> bool:
    """Whether a module has something at a dotted path."""
    try:
        return attrgetter(path)(module) is not None
    except AttributeError:
        return False


ATTENTION_NORMS = (
    "input_layernorm",
    "layer_norm1",
    "norm1",
    "layernorm_before",
    "self_attn_layer_norm",
    "attention_norm",
    "rms_norm1",
)
"""What architectures call the norm in front of the attention."""


@dataclass(frozen=True)
class Block:
    """Paths inside one transformer block (defaults: a pre-norm Llama block).

    Attributes:
        attn, q, k, v, qkv, o, gated: As in `Branch`; `attn` is empty without self-attention.
        attn_out, mlp_out: The module whose output is added to the residual stream. A block without
            attention may mix positions in another way (a convolution, a linear recurrence): what
            that adds is `attn_out` too. Empty where a block has no such branch.
        attn_scale, mlp_scale: Factors on them.
        mlp_norm: The module (a norm) whose input is resid_mid; empty in a parallel block, where
            both branches read the same stream and there is no state between them.
        down: The down projection; its input is mlp_hidden. Empty where there is no one projection
            (a mixture of experts).
        cross: The cross-attention branch of blocks that have its module.
        others: Blocks of another make in the same stack, by the submodule that they alone have.
        sum_norms: Norms over residual + branch (post-norm blocks), by the site they give:
            `resid_mid` or `resid_cross`, and `resid_post`.
        flat_mlp: Whether the block flattens batch and positions for its MLP.
        attn_norm: The norm in front of q, k and v; empty for the first of `ATTENTION_NORMS` that
            the block has.
        mlp: Modules that the MLP calls one after the other; empty for the parent of `down`.
    """

    attn: str = "self_attn"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    qkv: str = ""
    o: str = "self_attn.o_proj"
    attn_out: str = "self_attn.o_proj"
    attn_scale: Scale | None = None
    mlp_norm: str = "post_attention_layernorm"
    down: str = "mlp.down_proj"
    mlp_out: str = "mlp"
    mlp_scale: Scale | None = None
    cross: Branch | None = None
    others: Mapping[str, Block] = field(default_factory=dict)
    sum_norms: Mapping[str, str] = field(default_factory=dict)
    flat_mlp: bool = False
    gated: bool = False
    attn_norm: str = ""
    mlp: tuple[str, ...] = ()

    def of(self, block: nn.Module) -> Block:
        """The data that holds for one block of a tower whose blocks differ."""
        return next((data for path, data in self.others.items() if has_part(block, path)), self)

    def cross_of(self, block: nn.Module) -> Branch | None:
        """The cross-attention branch, where the block has one."""
        found = self.cross is not None and has_part(block, self.cross.attn.split(".")[0])
        return self.cross if found else None

    @property
    def mlp_path(self) -> tuple[str, ...]:
        """Modules that the MLP calls one after the other, its norms left out."""
        return self.mlp or (self.down.rpartition(".")[0] or self.mlp_out,)

    def attn_norm_of(self, block: nn.Module) -> str:
        """Path of the norm in front of q, k and v in one block.

        Raises:
            ModelError: None is known.
        """
        names = (self.attn_norm,) if self.attn_norm else ATTENTION_NORMS
        for name in names:
            if hasattr(block, name):
                return name
        raise ModelError(
            f"{type(block).__name__} has no norm in front of its attention (looked for "
            f"{', '.join(names)}), so what its heads read of a residual stream is not known."
        )

    @property
    def own(self) -> Branch:
        """The self-attention branch."""
        return Branch(
            self.attn,
            self.q,
            self.k,
            self.v,
            self.qkv,
            self.o,
            self.attn_out,
            self.attn_scale,
            gated=self.gated,
        )


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
        packed: Whether these stand on one axis too, behind a batch axis of one.
        width: Name of the residual stream's width in the configuration.
        then: A second stack behind the first, as (path, block); layers count on.
    """

    name: str
    layers: str
    config: str
    block: Block = Block()
    final_norm: str = ""
    n_read: Callable[[Any, int], int] = lambda _config, n: n
    flat: bool = False
    packed: bool = False
    width: str = "hidden_size"
    then: tuple[str, Block] | None = None

    def blocks(self, hf: Any) -> list[tuple[nn.Module, Block]]:
        """Every block with its data, as far as the model reads them."""
        found = [(block, self.block.of(block)) for block in attrgetter(self.layers)(hf)]
        if self.then is not None:
            path, data = self.then
            found += [(block, data) for block in attrgetter(path)(hf)]
        return found[: self.n_read(hf.config, len(found))]


@dataclass(frozen=True)
class ImageContext:
    """What a layout may need to know of one row's images.

    Attributes:
        config: The model's configuration.
        processor: The model's processor, or None.
        tensors: The model's inputs for the whole batch.
        row: Index of the row in the batch.
        sizes: (width, height) of each image of the row as the user gave it, None if unknown.
        first: Index of the row's first image among all images of the batch.
    """

    config: Any
    processor: Any
    tensors: Mapping[str, Any]
    row: int
    sizes: Sequence[tuple[int, int] | None]
    first: int

    @property
    def image_processor(self) -> Any:
        """The processor of images, or None."""
        return getattr(self.processor, "image_processor", None)


def one_per_image(tensors: Mapping[str, Any]) -> int:
    """Number of images in a batch whose pixels have one entry per image."""
    return len(tensors["pixel_values"])


def no_pixels(config: Any) -> dict[str, Any]:
    """Of a family that cannot make an image of its own."""
    raise ModelError(f"There is no example image for {config.model_type}: pass inputs.")


@dataclass(frozen=True)
class Family:
    """One architecture family.

    Attributes:
        name: As users write it.
        model_types: `config.model_type` of its checkpoints.
        towers: Vision tower first, then what lies between, language model last.
        projector: Path of the module whose output is what the language model gets of the image.
        projector_view: How `projector.out` sees it.
        projector_field: Name of the field, where that module's output has several.
        projector_ndim: Number of axes of what it gives of an image, where it is called for other
            things too.
        embed: Path of the module and name of its input at which image features are merged in; an
            empty name takes the module's output.
        embed_is_resid: Whether the first block's residual stream is `text.embed` itself; not where
            positions or a factor are added in between.
        merged: Whether image features take the place of placeholders (not with cross-attention).
        final_norm, lm_head: Paths.
        layout: Where the image's tokens come from; one `ImageLayout` per image of a row.
        n_images: Number of images in a batch, from the inputs.
        rows: Which tiles, patches and windows belong to which row, by tower (`vision`, `qformer`),
            `projector`, and name of a site of `extra_taps`.
        pixels: Inputs of one small random image, from the configuration: for the self-check.
        image_token: Name of the placeholder's id in the configuration.
        needs: Inputs that must come with an image.
        bidirectional: Which positions attend forward too, in words; empty for a causal model.
        variant: The data that holds for one configuration, where checkpoints differ.
        enters: How the image enters, in words.
        special: What is special, in words.
        extra_taps: Further sites, whose rows have the site's name in `rows`.
    """

    name: str
    model_types: tuple[str, ...]
    towers: tuple[Tower, ...]
    layout: Callable[[ImageContext], list[ImageLayout]]
    projector: str = "model.multi_modal_projector"
    projector_view: View | None = None
    projector_field: str = ""
    projector_ndim: int | None = None
    embed: tuple[str, str] = ("model.language_model", "inputs_embeds")
    embed_is_resid: bool = True
    merged: bool = True
    final_norm: str = "model.language_model.norm"
    lm_head: str = "lm_head"
    n_images: Callable[[Mapping[str, Any]], int] = one_per_image
    rows: Callable[[RowContext], RowsByTower] = entries_by_tokens
    pixels: Callable[[Any], dict[str, Any]] = no_pixels
    image_token: str = "image_token_id"
    needs: tuple[str, ...] = ("pixel_values",)
    bidirectional: str = ""
    variant: Callable[[Any], Family] | None = None
    enters: str = "tokens merged into the prompt"
    special: str = ""
    extra_taps: Callable[[nn.Module], dict[Site, Tap]] = field(default=lambda _hf: {})

    def rows_of(self, config: Any, tensors: Mapping[str, Any]) -> RowsByTower:
        """Rows of every tower in a run on these inputs; none without an image."""
        if tensors.get("pixel_values") is None:
            return {}
        return self.rows(RowContext(config, tensors, getattr(config, self.image_token, None)))


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
    counts = ("num_attention_heads", "num_heads", "attention_heads")
    n_heads = next(getattr(config, name) for name in counts if getattr(config, name, None))
    d_model = getattr(config, tower.width)
    return TowerShape(
        n_layers=len(tower.blocks(hf)),
        n_heads=n_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        d_head=getattr(config, "head_dim", None) or d_model // n_heads,
        d_model=d_model,
    )
