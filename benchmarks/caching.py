"""What it costs to cache the residual stream, attn_out, mlp_out and z of every layer.

The baseline is the bare SDPA forward of the same model in the same run, all cases in turns. Rows
with `measure` "peer" are other libraries on the same weights and the same sites (TransformerLens
has no such choice of implementation: its bridge runs eager).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness import Row, interleaved, row, run

BOUND = 1.10
SITES = [f"text.*.{name}" for name in ("resid_post", "attn_out", "mlp_out", "z")]


@dataclass(frozen=True)
class Case:
    """A size at which caching is measured."""

    name: str
    layers: int
    width: int
    heads: int
    text: int
    side: int
    batch: int
    repeats: int


CASES = (
    Case("6 layers d192, 80 tokens, batch 1", 6, 192, 6, 16, 8, 1, 41),
    Case("6 layers d192, 80 tokens, batch 8", 6, 192, 6, 16, 8, 8, 15),
    Case("12 layers d512, 288 tokens, batch 8", 12, 512, 8, 32, 16, 8, 7),
)


def build(case: Case) -> tuple[Any, Any]:
    """A LLaVA of a size, and a batch of its inputs."""
    import torch
    import transformers as hf

    from lvlm_interp.models.loading import wrap

    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 8 * case.side,
        "patch_size": 8,
    }
    text = {
        "model_type": "llama",
        "vocab_size": 1000,
        "hidden_size": case.width,
        "intermediate_size": 3 * case.width,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.heads,
        "max_position_embeddings": 1024,
    }
    torch.manual_seed(0)
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)
    model = wrap(hf.LlavaForConditionalGeneration(config).eval())
    n_image = case.side**2
    ids = torch.randint(5, 1000, (case.batch, case.text + n_image))
    ids[:, case.text // 2 : case.text // 2 + n_image] = 4
    pixels = torch.randn(case.batch, 3, 8 * case.side, 8 * case.side)
    return model, model.as_inputs({"input_ids": ids, "pixel_values": pixels})


def bare(model: Any, inputs: Any) -> Callable[[], Any]:
    """The forward of transformers alone."""
    import torch

    def forward() -> Any:
        with torch.no_grad():
            return model.hf(**inputs.tensors, use_cache=False).logits

    return forward


def nnsight(model: Any, inputs: Any) -> Callable[[], Any]:
    """The same sites with nnsight."""
    import torch
    from nnsight import save

    traced = model.to_nnsight()

    def forward() -> Any:
        with torch.no_grad(), traced.trace(**inputs.tensors, use_cache=False):
            saved = save([])
            for block in traced.model.language_model.layers:
                saved.append(block.self_attn.o_proj.input)
                saved.append(block.self_attn.o_proj.output)
                saved.append(block.mlp.output)
                saved.append(block.output)
        return saved

    return forward


def transformer_lens(model: Any, inputs: Any) -> Callable[[], Any]:
    """The same sites with TransformerLens."""
    import torch

    bridge = model.to_transformer_lens(inputs)
    ends = ("hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z")

    def forward() -> Any:
        with torch.no_grad():
            return bridge.run_with_cache(
                inputs["input_ids"], names_filter=lambda name: name.endswith(ends)
            )

    return forward


def measure(case: Case) -> list[Row]:
    """Rows of one size: ours against bare SDPA, and the peers."""
    model, inputs = build(case)
    sites = model.sites(SITES)
    functions = {
        "sdpa": bare(model, inputs),
        "lvlm_interp": lambda: model.run_with_cache(inputs, sites),
        "nnsight": nnsight(model, inputs),
        "transformer_lens": transformer_lens(model, inputs),
    }
    seconds = interleaved(functions, repeats=case.repeats, warmup=2)
    base = seconds["sdpa"]
    rows = [
        row(
            f"cache, {case.name}",
            "cache",
            seconds["lvlm_interp"],
            baseline=base,
            baseline_name="sdpa",
            bound=BOUND,
        )
    ]
    for peer in ("nnsight", "transformer_lens"):
        rows.append(
            row(
                f"{peer}, {case.name}",
                "peer",
                seconds[peer],
                baseline=base,
                baseline_name="sdpa",
            )
        )
    return rows


def rows() -> list[Row]:
    """All sizes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [each for case in CASES for each in measure(case)]


if __name__ == "__main__":
    run(rows)
