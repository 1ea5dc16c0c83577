"""One block as methods need it: what its heads write, what its branches read, by calling it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lvlm_interp.errors import ModelError
from lvlm_interp.models.family import Branch, Scale
from lvlm_interp.models.maps.linear import Affine, FrozenNorm, affine_of, called
from lvlm_interp.models.taps import at, head_view, scale_factor

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM


@dataclass(frozen=True, eq=False)
class HeadWrites:
    """What the attention of a block adds to the residual stream; in float32.

    Attributes:
        heads: Of each head; shape `head ... d_model`.
        rest: What belongs to no head: the bias of the output projection, and of a norm behind it.
    """

    heads: Float[Tensor, "head ... d_model"]
    rest: Float[Tensor, "... d_model"]

    @property
    def shared(self) -> Float[Tensor, "head ... d_model"]:
        """Heads with an equal share of the rest, so that they sum to `attn_out`."""
        return self.heads + self.rest / len(self.heads)


class BlockMaps:
    """The maps of one block, each by calling its modules past the hooks that are open.

    Linear modules are asked once, on basis vectors, and kept: make it anew where weights change.

    Attributes:
        tower, layer: Which block.
        block: The module.
        crossed: Whether it attends to another tower's stream and not to its own.
        n_heads, n_kv_heads, d_head: Of its attention.
    """

    def __init__(self, model: LVLM, tower: str, layer: int, *, crossed: bool | None = None) -> None:
        """Maps of a block's own attention, or of its cross-attention.

        Args:
            model: The model.
            tower: Its tower.
            layer: Index of the block.
            crossed: Which of the two; by default its own where it has both.

        Raises:
            ModelError: The block has no such attention.
        """
        data = next(each for each in model.family.towers if each.name == tower)
        self.block, self._where = data.blocks(model.hf)[layer]
        self.tower, self.layer = tower, layer
        self.crossed = not self._where.attn if crossed is None else crossed
        branch = data.block.cross_of(self.block) if self.crossed else self._where.own
        if branch is None or not branch.attn:
            raise ModelError(f"Block {layer} of the {tower} tower has no such attention.")
        self._branch: Branch = branch
        size = model.towers[tower]
        self.n_heads, self.n_kv_heads, self.d_head = size.n_heads, size.n_kv_heads, size.d_head
        self._kept: dict[str, Affine] = {}

    # -- what is written -------------------------------------------------------------------------

    def writes(self, z: Float[Tensor, "... head d_head"]) -> HeadWrites:
        """What each head adds to the stream, and what no head does; they sum to `attn_out`.

        A norm behind the branch (Gemma) keeps the scale that it has for this z.

        Raises:
            ModelError: The branch passes something on its way that is neither linear nor a norm.
        """
        output = at(self.block, self._branch.o)
        flat = z.flatten(-2)
        linear = self._affine(self._branch.o, output, flat)
        z = z.to(linear.weight.device).float()
        heads = torch.einsum("...hd,hmd->h...m", z, linear.per_head(self.n_heads))
        rest = linear.bias.expand_as(heads[0])
        if not _inside(self._branch.o, self._branch.out):
            norm = FrozenNorm(at(self.block, self._branch.out), called(output, flat))
            heads, rest = norm(heads), norm(rest) + norm.bias
        if self._branch.scale is not None:
            factor = self._factor(self._branch.scale, heads)
            heads, rest = heads * factor, rest * factor
        return HeadWrites(heads, rest)

    def mlp_writes(self, stream: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """What the MLP adds to the stream when it reads this one."""
        where = self._where
        value = called(self.mlp_norm, stream)
        shape = value.shape
        value = value.reshape(1, -1, shape[-1])  # mixtures of experts count on three axes
        for path in where.mlp_path:
            value = called(at(self.block, path), value)
        if not _inside(where.mlp_path[-1], where.mlp_out):
            value = called(at(self.block, where.mlp_out), value)
        value = value.reshape(*shape[:-1], value.shape[-1])
        if where.mlp_scale is not None:
            value = value * self._factor(where.mlp_scale, value)
        return value

    # -- what is read ----------------------------------------------------------------------------

    @cached_property
    def attn_norm(self) -> nn.Module:
        """The norm in front of q, k and v; the identity where a block reads its stream bare.

        Raises:
            ModelError: None is known; its path can be named in the family's `Block.attn_norm`.
        """
        if self._bare:
            return nn.Identity()
        return at(self.block, self._where.attn_norm_of(self.block))

    @property
    def _bare(self) -> bool:
        """Whether the branches read the stream as it is, as in blocks with norms behind alone."""
        return self._where.mlp_norm == self._where.mlp_path[0]

    @property
    def parallel(self) -> bool:
        """Whether both branches read the stream in front of the block."""
        return not self._where.mlp_norm

    @property
    def mlp_norm(self) -> nn.Module:
        """The norm in front of the MLP; of a parallel block the one in front of both branches."""
        if self.parallel or self._bare:
            return self.attn_norm
        return at(self.block, self._where.mlp_norm)

    def obstacle(self) -> str:
        """Why the block's nodes cannot have edges of their own; empty where they can."""
        where = self._where
        if self.crossed:
            return "attends to another stream than its own"
        if where.sum_norms:
            return "norms its residual stream behind each branch, so that nothing is a sum"
        if where.gated:
            return "gates its heads by its input"
        if not where.mlp_out:
            return "has no MLP"
        return ""

    def reads(
        self, part: str, streams: Float[Tensor, "... head d_model"]
    ) -> Float[Tensor, "... head d_head"]:
        """q, k or v of each head from a residual stream of its own, as the site has it.

        Args:
            part: `q`, `k` or `v`; for k and v an axis over key-value heads.
            streams: What each head would find in front of the block.
        """
        normed = called(self.attn_norm, streams)
        linear = self._projection(part, normed)
        weight = linear.weight.unflatten(0, (-1, self.d_head))
        out = torch.einsum("...hm,hdm->...hd", normed.float(), weight)
        return (out + linear.bias.unflatten(0, (-1, self.d_head))).to(streams.dtype)

    def _projection(self, part: str, normed: Tensor) -> Affine:
        """The map from the normed stream to q, k or v, of all its heads."""
        if part not in self._kept:  # no path is as short
            branch = self._branch
            path = branch.qkv or getattr(branch, part)
            whole = self._affine(path, at(self.block, path), normed)
            count = self.n_heads if part == "q" else self.n_kv_heads
            view = head_view(branch, part, count, self.d_head)
            weight = view.read(whole.weight.T).flatten(-2).T
            self._kept[part] = Affine(weight, view.read(whole.bias).flatten())
        return self._kept[part]

    def _factor(self, scale: Scale, like: Tensor) -> Tensor:
        """The factor on a branch.

        Raises:
            ModelError: It is on disk, and no module can be asked for it.
        """
        factor = scale_factor(self.block, scale).detach()
        if factor.is_meta:
            raise ModelError(
                f"The factor {scale.path} of {self.tower} block {self.layer} is not in "
                "memory: load the model without offloading this tower."
            )
        return factor.to(like)

    def _affine(self, name: str, module: nn.Module, like: Tensor) -> Affine:
        if name not in self._kept:
            self._kept[name] = affine_of(module, like)
        return self._kept[name]


def _inside(path: str, outer: str) -> bool:
    """Whether the output of the module at `path` is that of the one at `outer`."""
    return path == outer or path.startswith(f"{outer}.")
