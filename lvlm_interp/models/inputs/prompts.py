"""From an image and a question to the model's own inputs, by its own processor and template."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image

from lvlm_interp.errors import InputError
from lvlm_interp.models.inputs.images import images_of, open_image
from lvlm_interp.spans import Written

Sizes = list[list[tuple[int, int]]]

_PROBE = "QZ7JXWORDS"
"""Stands for a prompt or a reply to learn where a template puts it; no template says it itself."""


def build_batch(
    processor: Any, rows: list[Any], padding_side: str
) -> tuple[dict[str, Any], Sizes, list[Written]]:
    """Tensors of a batch, the size of every image, and what was written in each row.

    Raises:
        InputError: There is no processor, or an image cannot be opened.
    """
    if processor is None:
        raise InputError(
            "This model was wrapped without a processor: pass one to li.wrap(), or give the "
            "model's own inputs as a mapping of tensors."
        )
    images = [[open_image(image) for image in images_of(_image(row))] for row in rows]
    prompts = [_prompt(row) for row in rows]
    texts = [
        render_begun(processor, prompt, len(images[i]), getattr(rows[i], "reply", ""))
        for i, prompt in enumerate(prompts)
    ]
    flat = [image for row in images for image in row]
    try:
        tensors = processor(
            text=texts,
            images=images if flat else None,
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
            add_special_tokens=not _starts_with_bos(processor, texts[0]),
        )
    except ValueError as error:
        raise InputError(
            f"The model's processor refused the prompt with its image: {str(error).strip()}"
        ) from error
    tensors = _right_padded(dict(tensors), "qformer_input_ids", "qformer_attention_mask")
    sizes = [[image.size for image in row] for row in images]
    # Some processors add labels for training, which would make the model compute a loss.
    tensors = {name: value for name, value in tensors.items() if name != "labels"}
    written = [
        _written(processor, prompt, len(images[i]), texts[i]) for i, prompt in enumerate(prompts)
    ]
    return tensors, sizes, written


def _right_padded(tensors: dict[str, Any], ids: str, mask: str) -> dict[str, Any]:
    """A Q-Former counts positions from the left, so its padding must stand on the right."""
    if mask not in tensors:
        return tensors
    order = tensors[mask].argsort(dim=1, descending=True, stable=True)
    return {**tensors, **{name: tensors[name].gather(1, order) for name in (ids, mask)}}


def render(processor: Any, prompt: str, n_images: int, answer: str | None = None) -> str:
    """The text that the model reads, up to where it answers (or with the answer behind it).

    Processors without a chat template take the bare prompt and add the image themselves.
    """
    if not getattr(processor, "chat_template", None):
        return prompt if answer is None else f"{prompt} {answer}"
    content = [{"type": "image"}] * n_images + [{"type": "text", "text": prompt}]
    turns = [{"role": "user", "content": content}]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return processor.apply_chat_template(
        turns, add_generation_prompt=answer is None, tokenize=False
    )


def render_begun(processor: Any, prompt: str, n_images: int, reply: str) -> str:
    """The text up to where the model goes on with a reply that it has begun.

    The template is asked where it puts a reply, by one that occurs nowhere else: a short reply may
    well be part of the words behind it.
    """
    if not reply:
        return render(processor, prompt, n_images)
    return _before_reply(processor, prompt, n_images) + reply


def _before_reply(processor: Any, prompt: str, n_images: int) -> str:
    """The text up to where a reply begins."""
    before, found, _ = render(processor, prompt, n_images, _PROBE).partition(_PROBE)
    if not found:
        raise InputError("The model's chat template does not keep a begun reply.")
    return before


def _written(processor: Any, prompt: str, n_images: int, text: str) -> Written:
    """Where a prompt stands in its rendered text."""
    words = prompt.strip()
    before = _before(processor, str(getattr(processor, "chat_template", None)), n_images)
    start = len(before) + len(prompt) - len(prompt.lstrip())
    if not text.startswith(words, start):
        # A template that looks at the words, or trims them.
        start = text.find(words, len(before)) if text.startswith(before) else text.rfind(words)
    return Written(prompt, text, start, start + len(words) if start >= 0 else -1)


@lru_cache(maxsize=64)
def _before(processor: Any, _template: str, n_images: int) -> str:
    """What a template puts before a prompt."""
    return render(processor, _PROBE, n_images).partition(_PROBE)[0]


def answer_id(processor: Any, answer: str, reply: str = "") -> int:
    """Id of the token that goes on from the prompt into an answer.

    The prompt is tokenised as the processor does it, and its tokens stay as they are: the answer's
    begin behind them, with a blank where the template has one and the prompt does not end in one. A
    thought that a template puts before answers is left out.

    Args:
        processor: Of the model.
        answer: The word.
        reply: What the model has said before it, without the blank between.

    Raises:
        InputError: The tokenizer does not know the word.
    """
    tokenizer = processor.tokenizer
    prompt = _as_read(processor, render_begun(processor, "is it", 0, reply))
    special = not _starts_with_bos(processor, prompt)
    before = tokenizer(prompt, add_special_tokens=special).input_ids
    text = prompt + _between(processor, prompt, reply) + answer
    after = tokenizer(text, add_special_tokens=special).input_ids
    if after[: len(before)] == before and len(after) > len(before):
        token = after[len(before)]
    else:
        token = _without_blank(tokenizer, answer)
    if token is None or token == tokenizer.unk_token_id:
        raise InputError(f"The model's tokenizer has no token for the answer {answer!r}.")
    return token


def _between(processor: Any, prompt: str, reply: str) -> str:
    """What stands between the prompt and an answer."""
    if prompt[-1:].isspace():
        return ""
    if reply or not getattr(processor, "chat_template", None):
        return " "
    gap = _before_reply(processor, "is it", 0).removeprefix(prompt)
    if not gap.strip():
        return gap
    return "" if prompt.endswith(tuple(processor.tokenizer.all_special_tokens)) else " "


def _without_blank(tokenizer: Any, answer: str) -> int | None:
    """First token of a word that goes on a line, whatever a tokenizer puts before single words."""
    for anchor in ("\n", ":", "="):
        before = tokenizer(anchor, add_special_tokens=False).input_ids
        after = tokenizer(anchor + answer, add_special_tokens=False).input_ids
        if after[: len(before)] == before and len(after) > len(before):
            return after[len(before)]
    return None


_endings: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def _as_read(processor: Any, prompt: str) -> str:
    """A prompt with the blank or newline that some processors without a template put behind it."""
    if getattr(processor, "chat_template", None):
        return prompt
    if processor not in _endings:
        blank = Image.new("RGB", (32, 32))
        ids = processor(text=["is it"], images=[blank], return_tensors="pt")["input_ids"][0]
        ending = processor.tokenizer.decode(ids[-1:])
        _endings[processor] = ending if ending.isspace() else ""
    return prompt + _endings[processor]


def _image(row: Any) -> Any:
    return row[0] if isinstance(row, tuple) else row.image


def _prompt(row: Any) -> str:
    prompt = row[1] if isinstance(row, tuple) else row.prompt
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"A prompt must be a non-empty text, not {prompt!r}.")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"The prompt {prompt!r} holds half of a character (a lone surrogate), which no "
            "tokenizer takes: decode the text as UTF-8 again."
        ) from error
    return prompt


def _starts_with_bos(processor: Any, text: str) -> bool:
    bos = processor.tokenizer.bos_token
    return bos is not None and text.startswith(bos)
