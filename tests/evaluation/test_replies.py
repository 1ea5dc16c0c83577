"""The tri-state parser: what decides, and that it never takes a side without a word for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_interp.evaluation.replies import said


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("Yes", "yes"),
        ("Yes.", "yes"),
        ("yes, there is no dog beside it", "yes"),
        ("**Yes**", "yes"),
        ("The answer is yes.", "yes"),
        ("There is a dog.", "yes"),
        ("Sure, yes.", "yes"),
        ("No", "no"),
        ("NO", "no"),
        ("No!", "no"),
        ("No\n", "no"),
        ("1. No", "no"),
        ("Nope", "no"),
        ("There isn't a dog.", "no"),
        ("The image does not contain a dog.", "no"),
        ("There are no dogs.", "no"),
        ("Answer: No", "no"),
        ("There isn\u2019t any", "no"),
        ("", "none"),
        ("know", "none"),
        ("Now", "none"),
        ("None", "none"),
        ("Yes and no", "none"),
        ("yes/no", "none"),
        ("I cannot tell.", "none"),
        ("It is not possible to determine.", "none"),
        ("I don't know", "none"),
        ("I'm sorry, I can't assist with that.", "none"),
        ("A dog", "none"),
    ],
)
def test_replies_of_every_kind(reply, expected):
    assert said(reply) == expected


@given(st.text(max_size=80))
def test_it_takes_any_text_and_a_side_only_for_a_word_that_takes_it(text):
    found = said(text)
    assert found in ("yes", "no", "none")
    if not any(letter.isalpha() for letter in text):
        assert found == "none"


@given(st.sampled_from(["yes", "no"]), st.sampled_from([str.upper, str.title, str.lower]))
def test_case_and_marks_do_not_matter(word, case):
    assert {said(f"{mark}{case(word)}{mark}.") for mark in ("", "*", "**", '"', "`")} == {word}
