"""Sweeps of activation patching against one full forward per patch, on random models from configs.

Values are patched runs per second of processor time, both base runs and the table included, so
`ratio` is how many times faster the sweep is (`attribution` is a cost: its value and ratio are full
forwards). Baselines pay for their base runs too, are timed on a few patches spread over the layers,
and take turns with the sweep; a row's ratio is the median over rounds. The attention implementation
is SDPA on both sides; TransformerLens forces eager attention, and is given the pixels that its own
patching leaves out.

`bound` is a true one: multiply-adds that no exact method can do without, as long as it evaluates
the network as it is written. With F those of a full forward, L layers and H heads, n positions:

- sweeps: `bound = (L H + 2) F / (2 F + H sum_l c_l)`, where a patch of one head in layer l costs
  c_l: W_O of that head and the MLP in layer l, whole layers behind it, and the unembedding; at the
  position of the answer alone, or at all n positions. In the last layer all n positions have a key
  and a value, and the answer alone a query, an output and an MLP. Attention counts what causality
  leaves, which is what SDPA computes;
- attribution: both base runs and one backward through what lies behind the first layer's heads. The
  backward of a matrix product with fixed weights costs as much as the product, that of attention
  twice as much.

Norms, rotary embeddings and everything element-wise are left out, and so is all that Python costs;
where that is much (the small model) one batch for many patches saves it, and a measured ratio of
whole-sequence patches may exceed the bound. On the large model nine tenths of the time are matrix
products and attention: all that is left above the bound is memory that full forwards give back and
fetch again (about 9% in a young process, nothing once the allocator has settled), and below it lies
the unpatched branch that guards each sweep, one forward.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from harness import row, run
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.models.loading import wrap
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.organisms.architecture import build_processor
from lvlm_interp.organisms.vocabulary import TOKEN_ID
from lvlm_interp.patching import activation_patch, attribution_patch

PROMPT = "is there a red circle at the left of the blue square in the image ? " * 2
CASES = {"12 layers d512, 288 tokens, B1": (12, 512, 8, 128), "6 layers d192, B1": (6, 192, 6, 48)}
TIMED_PATCHES = 6
ROUNDS = 3
VISION_WIDTH, VISION_LAYERS, PATCH = 128, 4, 8


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one model, by what is computed."""

    layers: int
    width: int
    heads: int
    pixels: int
    n: int

    @property
    def mlp(self) -> float:
        """MLP of one position."""
        return 3 * self.width * int(self.width * 8 / 3)

    @property
    def projections(self) -> float:
        """Query, key, value and output of one position."""
        return 4 * self.width**2

    @property
    def attention(self) -> float:
        """Scores and z of all positions, causal."""
        return self.width * self.n * (self.n + 1)

    @property
    def layer(self) -> float:
        """One layer, all positions."""
        return self.n * (self.projections + self.mlp) + self.attention

    @property
    def layer_at_last(self) -> float:
        """One layer, the last position alone."""
        return self.projections + self.mlp + 2 * self.width * self.n

    @property
    def unembedding(self) -> float:
        """Logits of one position."""
        return self.width * len(TOKEN_ID)

    @property
    def image(self) -> float:
        """Vision tower and projector."""
        w, seen = VISION_WIDTH, (self.pixels // PATCH) ** 2 + 1
        tower = VISION_LAYERS * seen * (4 * w**2 + 8 * w**2 + 2 * w * seen)
        patches = (seen - 1) * 3 * PATCH**2 * w
        return tower + patches + (seen - 1) * (w * self.width + self.width**2)

    @property
    def forward(self) -> float:
        """A full forward with the logits of one position."""
        return self.image + self.layers * self.layer + self.unembedding

    def last_patch(self, layer: int) -> float:
        """One head of a layer at the last position."""
        behind = (self.layers - 1 - layer) * self.layer_at_last
        return self.width**2 / self.heads + self.mlp + behind + self.unembedding

    def whole_patch(self, layer: int) -> float:
        """One head of a layer at all positions."""
        if layer == self.layers - 1:
            return self.last_patch(layer)
        entry = self.n * (self.width**2 / self.heads + self.mlp)
        between = (self.layers - 2 - layer) * self.layer
        keys = (self.n - 1) * 2 * self.width**2
        return entry + between + keys + self.layer_at_last + self.unembedding

    def sweep_bound(self, patch: Callable[[int], float]) -> float:
        """How many times faster a sweep over all heads can be."""
        count = self.layers * self.heads
        patches = self.heads * sum(patch(layer) for layer in range(self.layers))
        return (count + 2) * self.forward / (2 * self.forward + patches)

    def attribution_bound(self) -> float:
        """Forwards that gradients at every head cost at least."""
        entry = self.n * (self.width**2 + self.mlp)
        behind = (self.layers - 1) * (self.layer + self.attention)
        return 2 + (entry + behind + self.unembedding) / self.forward


def build(layers: int, width: int, heads: int, pixels: int) -> LVLM:
    """A random LLaVA with a processor."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH, intermediate_size=4 * VISION_WIDTH,
        num_hidden_layers=VISION_LAYERS, num_attention_heads=4, image_size=pixels, patch_size=PATCH,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(TOKEN_ID), hidden_size=width, intermediate_size=int(width * 8 / 3),
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=TOKEN_ID["<image>"],
        image_seq_length=(pixels // PATCH) ** 2,
    )  # fmt: skip
    side = {"height": pixels, "width": pixels}
    known = build_processor()
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False),
        tokenizer=known.tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token="<image>", chat_template=known.chat_template,
    )  # fmt: skip
    return wrap(LlavaForConditionalGeneration(config).eval(), processor)


def one_pair(pixels: int) -> ContrastPair:
    """Two random images."""
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 255, (pixels, pixels, 3), dtype=np.uint8)) for _ in "ab"
    ]
    sides = [Example(str(i), image, PROMPT) for i, image in enumerate(images)]
    return ContrastPair("p", *sides, "yes", "no", "object", "evidence", "redrawn", None, None)


def seconds(function: Callable[[], object]) -> float:
    """Processor time of one call: wall time on a quiet core, and fair on a busy one."""
    start = time.process_time()
    function()
    return time.process_time() - start


def timed_layers(model: LVLM) -> list[int]:
    """Layers of the patches that baselines are timed on."""
    return [int(i * model.n_layers / TIMED_PATCHES) for i in range(TIMED_PATCHES)]


def full_forwards(model: LVLM, pair: ContrastPair, position: int | None) -> Callable[[], None]:
    """A few patches by a forward each, with a hook on the Hugging Face model."""
    clean, corrupt = model.prepare(pair.clean), model.prepare(pair.corrupt)
    at = slice(None) if position is None else slice(position, None)

    @torch.no_grad()
    def patches() -> None:
        for layer in timed_layers(model):
            block = model.hf.model.language_model.layers[layer].self_attn.o_proj
            source = torch.zeros(1, len(clean.tokens[0]), model.d_head)

            def put(_module, args, source=source):
                z = args[0].clone()
                z[:, at, : model.d_head] = source[:, at]
                return (z,)

            handle = block.register_forward_pre_hook(put)
            tensors = {k: v for k, v in corrupt.tensors.items() if k != "attention_mask"}
            model.hf(**tensors, logits_to_keep=1, use_cache=False)
            handle.remove()

    return patches


def transformer_lens(model: LVLM, pair: ContrastPair) -> Callable[[], None]:
    """A few patches by TransformerLens, with the pixels given to it."""
    bridge = wrap(copy.deepcopy(model.hf), model.processor).to_transformer_lens()
    inputs = model.prepare(pair.corrupt)

    @torch.no_grad()
    def patches() -> None:
        for layer in timed_layers(model):

            def put(z, hook):
                z = z.clone()
                z[:, -1, 0] = 0
                return z

            bridge.run_with_hooks(
                inputs["input_ids"],
                pixel_values=inputs["pixel_values"],
                fwd_hooks=[(f"blocks.{layer}.attn.hook_z", put)],
            )

    return patches


def sweep_rows(case: str, size: tuple[int, int, int, int]) -> list[dict]:
    """All rows of one model."""
    model, pair = build(*size), one_pair(size[-1])
    work = Work(*size, n=len(model.prepare(pair.clean).tokens[0]))
    n = model.n_layers * model.n_heads
    quiet = {"progress": False, "batch_size": 1}
    runs: dict[str, Callable[[], object]] = {
        "last": lambda: activation_patch(model, [pair], "text.*.z", "last", **quiet),
        "hooks, last": full_forwards(model, pair, -1),
        "TransformerLens": transformer_lens(model, pair),
        "hooks, all": full_forwards(model, pair, None),
        "all": lambda: activation_patch(model, [pair], "text.*.z", "all", **quiet),
        "attribution": lambda: attribution_patch(model, [pair], "text.*.z", "each", **quiet),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, function in runs.items():
            spent = seconds(function)
            if turn:
                times[name].append(spent)
    rows = []
    for measure, ours, name, patch in (
        ("last_position_heads", "last", "hooks, last", work.last_patch),
        ("last_position_heads", "last", "TransformerLens", work.last_patch),
        ("all_position_heads", "all", "hooks, all", work.whole_patch),
    ):
        value = n / statistics.median(times[ours])
        # The baseline pays for both of its base runs too.
        ratio = statistics.median(
            theirs * (n + 2) / TIMED_PATCHES / mine
            for mine, theirs in zip(times[ours], times[name], strict=True)
        )
        named = {"baseline": value / ratio, "baseline_name": name}
        rows.append(row(case, measure, value, **named, bound=work.sweep_bound(patch)))
    cost = statistics.median(
        mine / (theirs / TIMED_PATCHES)
        for mine, theirs in zip(times["attribution"], times["hooks, all"], strict=True)
    )
    named = {"baseline": 1.0, "baseline_name": "full forward", "bound": work.attribution_bound()}
    rows.append(row(case, "attribution", cost, **named))
    return [*rows, row(case, "agreement", disagreement(model, pair), bound=1e-5)]


def disagreement(model: LVLM, pair: ContrastPair) -> float:
    """Largest difference of the metric between the fast engine and full forwards."""
    some = {"heads": [(0, 0), (model.n_layers - 1, 1)], "progress": False}
    first, second = (
        activation_patch(model, [pair], positions=["last", "all"], engine=engine, **some)
        for engine in ("full", "fast")
    )
    gap = first.table.frame.m_patched - second.table.frame.m_patched
    return float(gap.abs().max())


def rows() -> list[dict]:
    """Every row of every model."""
    torch.set_num_threads(1)
    return [each for case, size in CASES.items() for each in sweep_rows(case, size)]


if __name__ == "__main__":
    run(rows)
