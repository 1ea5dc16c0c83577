"""Words of lenses: told apart, found as whole words, and the same whatever shares their batch."""

import importlib

import numpy as np
import pytest

import lvlm_interp as li
from lvlm_interp.errors import InputError
from lvlm_interp.lens.positions import Selection
from lvlm_interp.lens.readout import decode_ids
from tests.models import processors, zoo


@pytest.fixture(scope="module")
def model():
    return li.load_model("scenes", selfcheck=False)


@pytest.fixture(scope="module")
def some():
    return [pair.clean for pair in li.scenes.pairs("object", 2, seed=0)]


def test_no_two_tokens_of_a_byte_level_vocabulary_look_alike():
    model = li.wrap(zoo.build("llava"), processors.build("llava"))
    tokenizer = model.tokenizer
    names = decode_ids(model, np.arange(len(tokenizer)))
    assert len(names) == len(tokenizer) == len(set(names.values()))
    alone = tokenizer(" dog", add_special_tokens=False).input_ids[:1]
    assert list(decode_ids(model, np.array(alone)).values()) == [tokenizer.decode(alone).strip()]


def test_a_word_is_read_the_same_alone_and_beside_one_that_shares_its_token(model, some):
    words = ["ring", "Ring"]
    values = [
        li.lens.internal_confidence(model, some, words, batch_size=size).table.frame["value"]
        for size in (1, 2)
    ]
    np.testing.assert_allclose(values[0], values[1], atol=1e-5)


def test_patchscope_counts_whole_words_and_replaces_whole_words(model, some):
    module = importlib.import_module("lvlm_interp.lens.patchscope")
    texts = np.array([["a ring", "a ring.", "Ring", "a red ring, on", "rings"]], dtype=object)
    chosen = Selection(np.zeros(5, int), np.arange(5))
    inputs = model.prepare([some[0]])
    frame = module._table(model, inputs, chosen, [0], texts, ["ring"]).frame
    assert frame["value"].tolist() == [1, 1, 1, 1, 0]
    assert module._spoken("the x next to a box is", "x", "ring") == "the ring next to a box is"
    with pytest.raises(InputError, match="no word of the prompt"):
        module._spoken("the box is", "x", "ring")
    with pytest.raises(InputError, match="no word of the prompt"):
        li.lens.patchscope(model, inputs, prompt="the box is", placeholder="x", layers=[0])
