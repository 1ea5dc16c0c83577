"""Answers of the shipped model: polls against bare batched forwards, words against bare generation.

The baseline prepares the same batches with the model's own processor and calls Hugging Face and
nothing else; the case is `li.evaluation.run` in memory, with its table. The price of each control
is another run of the same questions.
"""

from __future__ import annotations

from typing import Any

from harness import Row, interleaved, row, run

IMAGES, BATCH, REPEATS = 48, 32, 3
LENGTHS = {"open": 4, "describe": 40}


def rows() -> list[Row]:
    """Polls, open answers and controls."""
    import torch

    import lvlm_interp as li
    from lvlm_interp.evaluation.running import as_control

    torch.set_num_threads(1)
    model = li.load_model("scenes")
    examples, reader = li.evaluation.unified_bench(f"scenes:all:{IMAGES}:0")
    polls = [e for e in examples if e.labels["task"] in ("poll", "pair")]
    texts = [e for e in examples if e.labels["task"] == "open"]
    images = [e for e in examples if e.labels["task"] == "describe"]
    logits = li.evaluation.Asking(by="logits", batch_size=BATCH)
    words = li.evaluation.Asking(batch_size=BATCH, max_new_tokens=LENGTHS)

    def ask(some: list[Any], how: Any) -> None:
        li.evaluation.run(model, some, how=how, reader=reader, progress=False)

    seconds = interleaved(
        {
            "bare polls": lambda: bare_polls(model, polls),
            "polls": lambda: ask(polls, logits),
            "bare words": lambda: bare_words(model, texts),
            "words": lambda: ask(texts, words),
            "bare captions": lambda: bare_words(model, images),
            "captions": lambda: ask(images, words),
            "text only": lambda: ask(as_control(polls, "text_only"), logits),
            "shuffled": lambda: ask(as_control(polls, "shuffled_image"), logits),
        },
        repeats=REPEATS,
    )

    def rate(name: str, some: list[Any]) -> float:
        return len(some) / seconds[name]

    return [
        row(
            f"{len(polls)} polls by logits",
            "examples/s",
            rate("polls", polls),
            baseline=rate("bare polls", polls),
            baseline_name="bare batched forwards",
            bound=0.9,
        ),
        row(
            f"{len(texts)} open answers by generation",
            "examples/s",
            rate("words", texts),
            baseline=rate("bare words", texts),
            baseline_name="bare batched generation",
            bound=0.9,
        ),
        row(
            f"{len(images)} descriptions by generation",
            "examples/s",
            rate("captions", images),
            baseline=rate("bare captions", images),
            baseline_name="bare batched generation",
            bound=0.9,
        ),
        row(
            "control: text only",
            "seconds",
            seconds["text only"],
            baseline=seconds["polls"],
            baseline_name="the polls themselves",
        ),
        row(
            "control: shuffled images",
            "seconds",
            seconds["shuffled"],
            baseline=seconds["polls"],
            baseline_name="the polls themselves",
        ),
    ]


def batches(examples: list[Any]) -> list[list[Any]]:
    """Batches of like length, as anyone would make them."""
    order = sorted(examples, key=lambda e: (e.labels["task"], len(e.prompt), e.id))
    return [order[at : at + BATCH] for at in range(0, len(order), BATCH)]


def prepared(model: Any, batch: list[Any]) -> Any:
    """A batch through the processor and the chat template."""
    content = [[{"type": "image"}, {"type": "text", "text": e.prompt}] for e in batch]
    chats = [[{"role": "user", "content": each}] for each in content]
    texts = model.processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    images = [[e.open_image()] for e in batch]
    return model.processor(
        text=texts, images=images, padding=True, padding_side="left", return_tensors="pt",
        add_special_tokens=False,
    )  # fmt: skip


def bare_polls(model: Any, examples: list[Any]) -> None:
    """Forwards alone."""
    import torch

    with torch.no_grad():
        for batch in batches(examples):
            model.hf(**prepared(model, batch), logits_to_keep=1).logits[:, -1].softmax(-1)


def bare_words(model: Any, examples: list[Any]) -> None:
    """Generation alone."""
    import torch

    with torch.no_grad():
        for batch in batches(examples):
            inputs = prepared(model, batch)
            length = LENGTHS[batch[0].labels["task"]]
            out = model.hf.generate(**inputs, max_new_tokens=length, do_sample=False)
            model.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :])


if __name__ == "__main__":
    run(rows)
