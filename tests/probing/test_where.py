"""Conditions on labels: what pandas means by the same text, and no way to run anything."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_interp.errors import UsageError
from lvlm_interp.probing.where import mask_of

FRAME = pd.DataFrame(
    {
        "color": ["red", "blue", "red", "green", "it's"],
        "n": [1, 2, 3, 4, 5],
        "x": [0.5, -1.0, np.nan, 2.0, 2.5],
        "present": [True, False, True, False, True],
        "two words": [1, 1, 2, 2, 3],
    }
)

compared = st.one_of(
    st.tuples(
        st.sampled_from(["n", "x", "`two words`"]),
        st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
        st.sampled_from(["1", "2.5", "-1", "3", "n"]),
    ).map(" ".join),
    st.tuples(
        st.just("color"),
        st.sampled_from(["==", "!="]),
        st.sampled_from(["'red'", '"it\'s"', "'none'"]),
    ).map(" ".join),
    st.sampled_from(
        ["color in ['red', 'blue']", "color not in ['red']", "n in [1, 4]", "present", "1 < n <= 3"]
    ),
)
conditions = st.recursive(
    compared,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" and ", " or "]), inner).map("".join),
        inner.map("({})".format),
        inner.map("not ({})".format),
    ),
    max_leaves=6,
)


@given(conditions)
def test_a_condition_means_what_it_means_to_pandas(text):
    expected = np.zeros(len(FRAME), bool)
    expected[FRAME.query(text, engine="python").index] = True
    np.testing.assert_array_equal(mask_of(FRAME, text), expected)


def test_bitwise_signs_missing_values_and_no_condition():
    np.testing.assert_array_equal(mask_of(FRAME, "(n > 1) & ~present"), [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(mask_of(FRAME, "n == 1 | n == 5"), [1, 0, 0, 0, 1])
    np.testing.assert_array_equal(mask_of(FRAME, "x == None"), [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(mask_of(FRAME, "color > 1"), [0] * 5)
    assert mask_of(FRAME, None).all()


ATTACKS = [
    "@pd.io.common.os.system('touch {target}') == 0",
    "@np.__builtins__['__import__']('os').system('touch {target}') == n",
    "color.str.contains('r')",
    "__import__('os').system('touch {target}')",
    "n.map(lambda v: v)",
    "n == `n`.__class__",
    "eval('1')",
    "index == 0",
    "n = 1",
    "n := 1",
    "n; n",
    "n == f'{{n}}'",
    "n ** 2 == 4",
    "color == @target",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_nothing_is_run(tmp_path, text):
    target = tmp_path / "made"
    with pytest.raises(UsageError, match="is no condition on the labels"):
        mask_of(FRAME, text.format(target=target))
    assert not target.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "ends too early"),
        ("n <", "ends too early"),
        ("n", "not true or false"),
        ("nn == 1", "no label 'nn'"),
        ("(n == 1", r"expected '\)', got the end"),
        ("n in [color]", "not the label"),
        ("n in 1", r"expected '\['"),
        ("n == 1 2", "unexpected '2'"),
        ("'red", "no part of one"),
        ("(" * 3000, "more than 50 brackets"),
        ("n == 1 and " * 2000, "longer than"),
        ("1 == 1" * 0 + "True", "compares nothing"),
        ("n == " + "9" * 5000, None),
    ],
)
def test_what_is_no_condition_is_told(text, says):
    if says is None:
        assert not mask_of(FRAME, text).any()
        return
    with pytest.raises(UsageError, match=says):
        mask_of(FRAME, text)


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_refused(text):
    try:
        assert mask_of(FRAME, text).shape == (len(FRAME),)
    except UsageError:
        pass


def test_study_files_are_read_without_code(tmp_path):
    from lvlm_interp.probing.plan import load_study

    path = tmp_path / "study.yaml"
    path.write_text("question: !!python/object/apply:os.system ['touch made']\n")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_study(path)
