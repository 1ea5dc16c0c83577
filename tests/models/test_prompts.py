"""What the model reads and where its answer begins, by its own processor."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

import lvlm_interp as li
from lvlm_interp.errors import InputError
from lvlm_interp.models.loading import wrap
from tests.models import processors, zoo
from tests.models.test_families import model_of, picture

WORDS = ("yes", "no", "dog", "a")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TURNS = (
    "{% for message in messages %}{{ message['role'] }}:{% if message['role'] == 'assistant' %}"
    "BEFORE{% endif %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE_SLOT {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<eos>{% endfor %}{% if add_generation_prompt %}assistant:GENERATION{% endif %}"
)


def with_template(generation: str, before: str) -> Any:
    """A LLaVA whose template ends a prompt in one way, and goes on into a reply in another."""
    processor = processors.build("llava")
    processor.chat_template = "{{ bos_token }}" + TURNS.replace("GENERATION", generation).replace(
        "BEFORE", before
    ).replace("IMAGE_SLOT", processor.image_token)
    return wrap(zoo.build("llava"), processor, selfcheck=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("word", WORDS)
def test_an_answer_of_paligemma_is_what_its_processor_teaches(word: str) -> None:
    model = model_of("paligemma")
    image = Image.new("RGB", (24, 24))
    tensors = model.processor(text="is it", images=image, suffix=word, return_tensors="pt")
    labels = tensors["labels"][0]
    assert model.answer_id(word) == int(labels[labels != -100][0])


@pytest.mark.parametrize("name", zoo.tiered(zoo.BUILDERS))
@pytest.mark.parametrize("word", WORDS)
def test_an_answer_goes_on_where_the_prompt_ends(name: str, word: str) -> None:
    """The prompt's own tokens and the answer's first one, decoded, are the begin of a reply."""
    model = model_of(name)
    ids = model.prepare((picture(), "is it"))["input_ids"][0].tolist()
    text = model.tokenizer.decode([*ids, model.answer_id(word)])
    bare = model.tokenizer.decode(ids)
    assert text.startswith(bare)
    begun = text[len(bare) :]
    blank = "" if bare[-1:].isspace() else " "
    assert begun and (blank + word).startswith(begun)


@pytest.mark.parametrize(
    ("generation", "before", "begin"),
    [
        ("", " ", " "),  # the usual one
        (" ", " ", ""),  # ends in a blank, which is a token of its own
        ("\n", "\n", ""),
        (" ", "", ""),
        ("\n", "\n<think>\n\n</think>\n\n", ""),  # answers begin with an empty thought
        ("\n<think>\n", "\n", ""),  # the model is made to think
        ("", "", ""),
    ],
)
@pytest.mark.parametrize("word", WORDS)
def test_templates_that_end_otherwise(generation: str, before: str, begin: str, word: str) -> None:
    escaped = (generation.replace("\n", "\\n"), before.replace("\n", "\\n"))
    model = with_template(*(f"{{{{ '{each}' }}}}" if each else "" for each in escaped))
    token = model.tokenizer.decode([model.answer_id(word)])
    assert token and (begin + word).startswith(token)
    if begin:
        assert token.startswith(begin)


def test_an_answer_behind_a_begun_reply_has_its_blank() -> None:
    model = with_template("", "{{ ' ' }}")
    assert model.tokenizer.decode([model.answer_id("dog", "there is a")]).startswith(" d")


@pytest.mark.parametrize("reply", ["a", "an", "e", "os", "assistant:"])
def test_a_short_reply_is_not_found_in_the_marks_of_the_template(reply: str) -> None:
    model = with_template("", "{{ ' ' }}")
    row = li.Example(id="1", image=picture(), prompt="describe it", reply=reply)
    ids = model.prepare([row])["input_ids"][0]
    assert model.tokenizer.decode(ids).endswith(f"<eos>assistant: {reply}")


def test_a_word_that_the_tokenizer_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match="no token for the answer 'zebra'"):
        li.load_model("scenes", selfcheck=False).answer_id("zebra")
