"""The checks that need a model, against one that stands in for it with a known tokenizer."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lvlm_interp.data.checks import check_pairs
from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.errors import DataError, InputError


class WordModel:
    """Splits words after three letters; an image has as many tokens as it is wide."""

    def answer_id(self, answer):
        if answer == "xyzzy":
            raise InputError(f"The model's tokenizer has no token for the answer {answer!r}.")
        return hash(answer[:3])

    def prepare(self, example):
        n = example.open_image().width + len(example.prompt.split())
        return SimpleNamespace(tokens=[SimpleNamespace(real=np.arange(n))])


def pair(answer="yes", foil="no", widths=(8, 8), prompts=("is it", "is it")):
    sides = [
        Example(str(i), Image.new("RGB", (width, 8)), prompt)
        for i, (width, prompt) in enumerate(zip(widths, prompts, strict=True))
    ]
    return ContrastPair("p", *sides, answer, foil, "object", "evidence", "", None, "g")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (pair("upper", "uppity"), "'foil': .*begin with the same token"),
        (pair("xyzzy", "no"), "'answer': .*no token for the answer 'xyzzy'"),
        (pair(widths=(8, 9)), "'corrupt': the clean side has 10 tokens and the corrupt side 11"),
        (pair(prompts=("is it", "is it red")), "'corrupt_prompt': .*10 tokens .* 11"),
    ],
)
def test_a_pair_that_does_not_fit_the_model(wrong, says):
    with pytest.raises(DataError, match=f"f.jsonl, line 4, field {says}"):
        check_pairs(WordModel(), [wrong], origins=["f.jsonl, line 4"])
    skipped = []
    assert check_pairs(WordModel(), [wrong, pair()], report=skipped.append)[0].answer == "yes"
    assert len(skipped) == 1
