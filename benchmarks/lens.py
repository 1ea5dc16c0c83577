"""The logit lens at the shape of LLaVA-1.5-7B: 576 image tokens, 32,064 words, width 4,096.

The cost of a lens is the same for every layer, and every layer is decoded in the same chunks, so
one layer stands for thirty-two. The baseline of decoding is the unembedding that the lens needs, of
the same states in the same chunks, and nothing else; the whole of `logit_lens`, with the forward
and the table, is held against a bare forward and that unembedding.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from harness import Row, interleaved, row, run

N_LAYERS, WIDTH, VOCABULARY, SIDE = 1, 4096, 32064, 336
TOP_K = 20


def model_of_that_shape():
    """A LLaVA with random weights: unembedding and widths full, MLPs and vision tower small."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    import lvlm_interp as li

    words = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
    words += [f"w{i}" for i in range(VOCABULARY - len(words))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **special, extra_special_tokens={"image_token": "<image>"}
    )
    side = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False)
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=14,
        image_token="<image>",
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{{ '<image> w1 w2 w3' }}",
    )
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_attention_heads=32,
        num_hidden_layers=N_LAYERS,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=4, tie_word_embeddings=True
    )
    torch.manual_seed(0)
    return li.wrap(LlavaForConditionalGeneration(config), processor)


def rows() -> list[Row]:
    """Seconds of lens and unembedding, and the memory that the lens adds while it runs."""
    import numpy as np
    import torch
    from PIL import Image

    import lvlm_interp as li
    from lvlm_interp.lens.readout import CHUNK_BYTES, Decoder, read

    torch.set_num_threads(1)
    model = model_of_that_shape()
    noise = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    inputs = model.prepare([(Image.fromarray(noise), "w1")])
    image = torch.from_numpy(inputs.tokens[0].image)
    _, cache = model.run_with_cache(inputs, "text.*.resid_post", keep=lambda _s, v: v[0, image])
    decoder = Decoder(model)

    @torch.no_grad()
    def unembed() -> None:
        for states in cache.values():
            for chunk in decoder.chunks(states):
                decoder.logits(chunk)

    def decode() -> None:
        for states in cache.values():
            read(decoder, states, top_k=TOP_K, word_ids=[(7,), (8,)])

    def bare() -> None:
        model(inputs, logits_to_keep=1)
        unembed()

    def whole() -> None:
        li.lens.logit_lens(model, inputs, top_k=TOP_K, words=["w7", "w8"])

    seconds = interleaved(
        {"unembed": unembed, "decode": decode, "bare": bare, "whole": whole}, repeats=3, warmup=1
    )
    case = f"{len(image)} tokens x {N_LAYERS} layers, top {TOP_K} of {VOCABULARY} words"
    alone = {"baseline": seconds["unembed"], "baseline_name": "unembedding alone"}
    both = {"baseline": seconds["bare"], "baseline_name": "forward and unembedding"}
    chunk = {"baseline": CHUNK_BYTES / 2**20, "baseline_name": "the bound of one chunk"}
    return [
        row(f"decoding, {case}", "seconds", seconds["decode"], **alone, bound=1.5),
        row(f"logit_lens with its table, {case}", "seconds", seconds["whole"], **both, bound=1.5),
        row(f"memory added, {case}", "MiB", peak_added(decode), **chunk, bound=2),
        row(
            "the logits it never holds at once",
            "MiB",
            len(image) * N_LAYERS * VOCABULARY * 4 / 2**20,
        ),
    ]


def peak_added(function) -> float:
    """MiB by which the resident memory rises while a function runs, sampled every 5 ms."""
    before, peak, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], resident())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return max(0.0, peak[0] - before)


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    run(rows)
