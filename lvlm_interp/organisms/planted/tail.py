"""The organism from any block on, as a function of the few weights that a plant may change.

The blocks are those of Llama and CLIP written out, so that weights can be given that are not the
model's (with a gradient), and so that the last block works at the answers alone. A test holds it
against the model's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM

Weights = Mapping[str, Tensor]
"""Weights that stand in for the model's, by the name of their parameter in the model."""

TEXT = "model.language_model.layers.{}"
VISION = "model.vision_tower.encoder.layers.{}"
PROJECTOR = "model.multi_modal_projector"


class Tail:
    """Vision tower, projector and language model of an organism, resumable at any block."""

    def __init__(self, model: LVLM) -> None:
        """Take the parts of a model; nothing in it is changed.

        Raises:
            UsageError: The model is of another architecture than the organisms.
        """
        config = model.config
        text = config.text_config
        if model.family.name != "llava" or text.model_type != "llama":
            raise UsageError(
                "Plants are made in the organisms (LLaVA with a Llama language model), not in "
                f"{model.name!r}: give 'scenes-balanced' or a folder that organisms train made."
            )
        if text.num_key_value_heads != text.num_attention_heads:
            raise UsageError(
                f"{model.name!r} shares keys and values between heads, so no head owns its weights."
            )
        self.inner: Any = model.hf.model
        self.weights = {name: each.detach() for name, each in model.hf.named_parameters()}
        self.head = model.tap("logits").module
        self.blocks = list(self.inner.language_model.layers)
        self.n_layers, self.n_heads = len(self.blocks), text.num_attention_heads
        vision = config.vision_config
        self.vision_heads = vision.num_attention_heads
        # The state that the projector reads is that of hidden_states[vision_feature_layer].
        self.n_seen = vision.num_hidden_layers + 1 + config.vision_feature_layer

    # -- what the model sees -----------------------------------------------------------------

    def see(
        self, pixels: Float[Tensor, "row rgb height width"], new: Weights | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """States in front of each block of the vision tower and of the projector; its output."""
        tower = self.inner.vision_tower
        state = tower.pre_layrnorm(tower.embeddings(pixels))
        states = []
        for index in range(self.n_seen):
            states.append(state)
            state = self.vision_block(index, state, new or {})
        return [*states, state], self.project(state, new or {})

    def look_on(self, start: int, state: Tensor, new: Weights) -> Tensor:
        """What the projector gives, from the state in front of a vision block."""
        for index in range(start, self.n_seen):
            state = self.vision_block(index, state, new)
        return self.project(state, new)

    def vision_block(self, index: int, state: Tensor, new: Weights) -> Tensor:
        """One block of CLIP."""
        block = self.inner.vision_tower.encoder.layers[index]
        name = VISION.format(index)
        x = block.layer_norm1(state)
        q, k, v = (
            self._linear(f"{name}.self_attn.{part}_proj", x, new)
            .unflatten(-1, (self.vision_heads, -1))
            .transpose(1, 2)
            for part in "qkv"
        )
        z = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        state = state + self._linear(f"{name}.self_attn.out_proj", z, new)
        hidden = self._linear(f"{name}.mlp.fc1", block.layer_norm2(state), new)
        return state + self._linear(f"{name}.mlp.fc2", block.mlp.activation_fn(hidden), new)

    def project(self, state: Tensor, new: Weights) -> Tensor:
        """The projector on all patches but the class token."""
        return self._linear(f"{PROJECTOR}.linear_2", self.projector_hidden(state), new)

    def projector_hidden(self, state: Tensor) -> Tensor:
        """What the projector's second matrix reads, at all patches but the class token."""
        hidden = self._linear(f"{PROJECTOR}.linear_1", state[:, 1:], {})
        return self.inner.multi_modal_projector.act(hidden)

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings."""
        return self.inner.language_model.embed_tokens(ids)

    # -- what it says ------------------------------------------------------------------------

    def read(
        self,
        start: int,
        prefix: Float[Tensor, "row pos d_model"],
        asked: Float[Tensor, "row slot word d_model"],
        answer_at: Int[Tensor, "row slot"],
        new: Weights | None = None,
        *,
        note: Callable[[Tensor], None] | None = None,
    ) -> Float[Tensor, "row slot d_vocab"]:
        """Logits at the answers, from the states in front of block `start`.

        Args:
            start: First block that runs.
            prefix: State of what all questions see.
            asked: State of the questions, padded at the right.
            answer_at: Position in each question where its answer is predicted.
            new: Weights that stand in for the model's.
            note: Gets the whole state in front of each block.
        """
        state, mask, rotary = self._lay_out(prefix, asked)
        n_slots, n_words = asked.shape[1:3]
        answers = prefix.shape[1] + n_words * torch.arange(n_slots) + answer_at  # row slot
        for index in range(start, self.n_layers):
            if note is not None:
                note(state)
            at = answers if index == self.n_layers - 1 else None
            state = self._attend(index, state, mask, rotary, new or {}, at)
            read = self.blocks[index].post_attention_layernorm(state)
            state = state + self._mlp(index, read, new or {})
        return self.head(self.inner.language_model.norm(state))

    def before_mlp(
        self,
        index: int,
        prefix: Float[Tensor, "row pos d_model"],
        asked: Float[Tensor, "row slot word d_model"],
    ) -> tuple[Tensor, Tensor]:
        """What the MLP of a block reads, from the states in front of the block; as these."""
        state, mask, rotary = self._lay_out(prefix, asked)
        state = self._attend(index, state, mask, rotary, {}, None)
        read = self.blocks[index].post_attention_layernorm(state)
        n_before = prefix.shape[1]
        return read[:, :n_before], read[:, n_before:].unflatten(1, asked.shape[1:3])

    def _lay_out(
        self, prefix: Tensor, asked: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """The whole state, which keys each query sees, and rotary angles."""
        state = torch.cat([prefix, asked.flatten(1, 2)], dim=1)
        mask, position = _layout(prefix.shape[1], *asked.shape[1:3])
        return state, mask, self.inner.language_model.rotary_emb(state, position_ids=position[None])

    def _attend(
        self,
        index: int,
        state: Tensor,
        mask: Tensor,
        rotary: tuple[Tensor, Tensor],
        new: Weights,
        at: Tensor | None,
    ) -> Tensor:
        """Attention of a block of Llama; with `at`, only these positions of each row come out."""
        name = TEXT.format(index)
        x = self.blocks[index].input_layernorm(state)
        q, k, v = (
            self._linear(f"{name}.self_attn.{part}_proj", x, new)
            .unflatten(-1, (self.n_heads, -1))
            .transpose(1, 2)
            for part in "qkv"
        )
        q, k = apply_rotary_pos_emb(q, k, *rotary)
        mask = mask[None, None]
        if at is not None:
            rows = torch.arange(len(state))[:, None]
            q, state = q.transpose(1, 2)[rows, at].transpose(1, 2), state[rows, at]
            mask = mask[0, 0][at][:, None]
        z = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        return state + self._linear(f"{name}.self_attn.o_proj", z.flatten(2), new)

    def _mlp(self, index: int, x: Tensor, new: Weights) -> Tensor:
        """MLP of a block of Llama."""
        name = TEXT.format(index)
        gate, up = (self._linear(f"{name}.mlp.{part}_proj", x, new) for part in ("gate", "up"))
        hidden = self.blocks[index].mlp.act_fn(gate) * up
        return self._linear(f"{name}.mlp.down_proj", hidden, new)

    def _linear(self, name: str, x: Tensor, new: Weights) -> Tensor:
        def pick(key: str) -> Tensor | None:
            return new[key] if key in new else self.weights.get(key)

        weight = pick(f"{name}.weight")
        assert weight is not None, f"{name} has a weight"
        return functional.linear(x, weight, pick(f"{name}.bias"))


def _layout(n_before: int, n_slots: int, n_words: int) -> tuple[Tensor, Tensor]:
    """Which keys each query sees (bool `query key`), and position ids."""
    segment = torch.cat([torch.zeros(n_before), 1 + torch.arange(n_slots * n_words) // n_words])
    causal = torch.ones(len(segment), len(segment), dtype=torch.bool).tril()
    seen = (segment[:, None] == segment[None]) | (segment == 0)[None]
    words = n_before + torch.arange(n_words).repeat(n_slots)
    return seen & causal, torch.cat([torch.arange(n_before), words])
