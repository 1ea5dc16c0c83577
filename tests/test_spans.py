"""Words and the question by characters: whatever the tokenizer, the template and the language."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import lvlm_interp as li
from lvlm_interp.errors import InputError
from lvlm_interp.models.inputs.prompts import render_begun
from lvlm_interp.spans import spans_of, words_pattern
from tests.models import processors, zoo

PICTURE = Image.new("RGB", (24, 24))
WORDS = processors.tokenizer("<image>")


@pytest.fixture(scope="module")
def model():
    return li.wrap(zoo.build("llava"), processors.build("llava"))


@pytest.fixture(scope="module")
def scenes():
    return li.load_model("scenes", selfcheck=False)


CASES = [
    ("le café est rouge ?", "café"),
    ("is there a 🐶 here ?", "🐶"),
    ("dog🐶dog ?", "🐶"),
    ("a family 👩‍👩‍👧 here ?", "👩‍👩‍👧"),
    ("есть ли собака ?", "собака"),
    ("图里有狗吗\uff1f", "狗"),
    ("この写真に犬がいますか", "犬"),
    ("มีสุนัขในภาพไหม", "สุนัข"),
    ("क्या यहाँ कुत्ता है ?", "कुत्ता"),
    ("هل يوجد كلب ؟", "كلب"),
    ("is the red circle left of it ?", "left of"),
    ("is it a dog,cat or dog-house?", "dog"),
]


@pytest.mark.parametrize(("prompt", "word"), CASES)
def test_the_positions_of_a_word_decode_to_the_word(model, prompt, word):
    inputs = model.prepare([(PICTURE, prompt)])
    tokens = inputs.tokens[0]
    found = tokens.text(word, 0)
    assert model.tokenizer.decode(tokens.ids[found]).strip() == word
    assert model.tokenizer.decode(tokens.ids[tokens.question]).strip() == prompt
    bare = model.as_inputs(dict(inputs.tensors)).tokens[0]
    np.testing.assert_array_equal(bare.text(word, 0), found)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", zoo.tiered(processors.BUILDERS))
def test_the_question_is_exactly_the_question_in_every_family(name):
    family = li.wrap(zoo.build(name), processors.build(name))
    prompts = ["is there a dog ?", "图里有狗吗\uff1f", "user: is it a café ?", "a"]
    for tokens, prompt in zip(
        family.prepare([(PICTURE, prompt) for prompt in prompts]).tokens, prompts, strict=True
    ):
        said = family.tokenizer.decode(tokens.ids[tokens.question], skip_special_tokens=True)
        assert said.strip() == prompt


def test_words_that_the_tokenizer_does_not_know_are_found(scenes):
    for prompt in ("is there a ring ?", "is there a zebra ?", "is there a ring\u2026 ?"):
        tokens = scenes.prepare([(Image.new("RGB", (48, 48)), prompt)]).tokens[0]
        first, *_, last = tokens.question
        assert last == len(tokens) - 3 and len(tokens.text()) > len(tokens.question)
        assert scenes.tokenizer.decode([tokens.ids[first]]) == "is"
    tokens = scenes.prepare([(Image.new("RGB", (48, 48)), "is there a zebra ?")]).tokens[0]
    assert tokens.text("zebra").tolist() == [tokens.question[3]]


def test_a_template_that_changes_the_words_or_is_not_known_is_told():
    processor = processors.BUILDERS["llava"]()
    plain = processor.chat_template
    changed = "part['text'] | replace('dog', 'cat')"
    processor.chat_template = plain.replace("part['text']", changed)
    model = li.wrap(zoo.build("llava"), processor)
    with pytest.raises(InputError, match="its template changes them"):
        _ = model.prepare([(PICTURE, "is there a dog ?")]).tokens[0].question
    for harmless in ("trim", "upper"):
        processor.chat_template = plain.replace("part['text']", f"part['text'] | {harmless}")
        tokens = model.prepare([(PICTURE, "  is there a dog ?\n")]).tokens[0]
        said = model.tokenizer.decode(tokens.ids[tokens.question])
        assert said.strip().lower() == "is there a dog ?"
    bare = model.as_inputs(dict(model.prepare([(PICTURE, "is it ?")]).tensors))
    with pytest.raises(InputError, match="given as tensors"):
        _ = bare.tokens[0].question


CLOSED = (
    "{% for message in messages %}{{ message['role'] }}:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.mark.parametrize("reply", ["a", "an", "u", "in", "end_of", "a red circle , a", "assistant"])
@pytest.mark.parametrize("name", ["smolvlm", "llava", "qwen3_vl", "gemma3"])
def test_a_begun_reply_ends_the_text_under_any_template(name, reply):
    processor = processors.BUILDERS[name]()
    if name == "smolvlm":
        processor.chat_template = CLOSED
    text = render_begun(processor, "describe the image", 1, reply)
    assert text.endswith(reply) and not text[: -len(reply)].endswith(reply)
    assert text.count("describe the image") == 1


letters = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)


@settings(max_examples=60, deadline=None)
@given(letters)
def test_offsets_cover_the_text_and_agree_with_the_bytes(text):
    ids = tuple(WORDS(text, add_special_tokens=False).input_ids)
    for spans in (spans_of(WORDS, ids, text), spans_of(WORDS, ids)):
        covered = np.zeros(len(spans.text), bool)
        for start, end in zip(spans.starts, spans.ends, strict=True):
            covered[start:end] = True
        assert covered.all() and (spans.starts <= spans.ends).all()


@given(letters.filter(lambda text: text.strip()))
def test_any_phrase_is_found_in_itself(text):
    assert words_pattern(text).search(text)


@pytest.mark.parametrize(
    ("word", "text", "n"),
    [
        ("dog", "a dog, dogs, Dog and hotdog", 2),
        ("cafe", "cafe\u0301", 0),
        ("caf\xe9", "un cafe\u0301 ici", 1),
        ("cafe\u0301", "un caf\xe9 ici", 1),
        ("left of", "left  of leftof left\nof", 2),
        ("dog", "有dog吗", 1),
        ("is there a ring?", "is there a ring ?", 1),
        ("?", "what??", 2),
    ],
)
def test_whole_words(word, text, n):
    assert len(words_pattern(word).findall(text)) == n
