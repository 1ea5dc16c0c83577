"""Sweeps of activation patching against one full forward per patch, on random models from configs.

Values are patched runs per second, both base runs included, so `ratio` is how many times faster the
sweep is. `bound` is what a sweep could reach if every patch were free: (patches + 2) / 2. The
attention implementation is SDPA on both sides; TransformerLens forces eager attention, and is given
the pixels that its own patching leaves out. Baselines are timed on a few patches and are the same
for all of them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

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
ROUNDS = 2


def build(layers: int, width: int, heads: int, pixels: int) -> LVLM:
    """A random LLaVA with a processor."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        image_size=pixels, patch_size=8,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(TOKEN_ID), hidden_size=width, intermediate_size=int(width * 8 / 3),
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=TOKEN_ID["<image>"],
        image_seq_length=(pixels // 8) ** 2,
    )  # fmt: skip
    side = {"height": pixels, "width": pixels}
    known = build_processor()
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False),
        tokenizer=known.tokenizer, patch_size=8, vision_feature_select_strategy="default",
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
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def full_forwards(model: LVLM, pair: ContrastPair, position: int | None) -> Callable[[], None]:
    """A few patches by a forward each, with a hook on the Hugging Face model."""
    clean, corrupt = model.prepare(pair.clean), model.prepare(pair.corrupt)
    at = slice(None) if position is None else slice(position, None)

    @torch.no_grad()
    def patches() -> None:
        for layer in range(TIMED_PATCHES):
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
        for layer in range(TIMED_PATCHES):

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
    n = model.n_layers * model.n_heads
    quiet = {"progress": False, "batch_size": 1}
    runs: dict[str, Callable[[], object]] = {
        "last": lambda: activation_patch(model, [pair], "text.*.z", "last", **quiet),
        "hooks, last": full_forwards(model, pair, -1),
        "all": lambda: activation_patch(model, [pair], "text.*.z", "all", **quiet),
        "hooks, all": full_forwards(model, pair, None),
        "TransformerLens": transformer_lens(model, pair),
        "attribution": lambda: attribution_patch(model, [pair], "text.*.z", "each", **quiet),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, function in runs.items():
            spent = seconds(function)
            if turn:
                times[name].append(spent)
    best = {name: float(np.median(values)) for name, values in times.items()}
    per_patch = {
        name: best[name] / TIMED_PATCHES
        for name in ("hooks, last", "hooks, all", "TransformerLens")
    }
    rows = []
    for measure, ours, name in (
        ("last_position_heads", "last", "hooks, last"),
        ("last_position_heads", "last", "TransformerLens"),
        ("all_position_heads", "all", "hooks, all"),
    ):
        # The baseline pays for both of its base runs too.
        baseline = n / ((n + 2) * per_patch[name])
        bound = (n + 2) / 2 if ours == "last" else 2.5
        named = {"baseline": baseline, "baseline_name": name, "bound": bound}
        rows.append(row(case, measure, n / best[ours], **named))
    cost = best["attribution"] / per_patch["hooks, all"]
    rows.append(row(case, "attribution", cost, baseline=1.0, baseline_name="full forward", bound=4))
    error = disagreement(model, pair)
    return [*rows, row(case, "agreement", error, bound=1e-5)]


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
