import numpy as np
import pytest

from lvlm_interp.errors import UsageError
from lvlm_interp.probing import known_but_not_said, sweep
from tests.probing.conftest import activations


@pytest.fixture(scope="module")
def found():
    """The model errs on a third of the examples; layer 1 knows the truth, the others do not."""
    rng = np.random.default_rng(0)
    data = activations([0.0, 7.0, 0.0], extra={"wrong": list(rng.random(160) < 0.33)})
    return sweep(data, label="present", controls=(), progress=False)


def test_the_site_that_knows_is_right_where_the_model_is_wrong(found):
    known = known_but_not_said(found)
    line = known.summary.set_index("site")
    wrong = found.data.label("wrong")
    assert known.n_wrong == wrong.sum() == line.n_wrong["text.1.resid_post"]
    assert line.among_wrong_low["text.1.resid_post"] > 0.8
    assert line.balanced_low["text.1.resid_post"] > 0.8
    for site in ("text.0.resid_post", "text.2.resid_post"):
        assert line.among_wrong_low[site] < 0.5 < line.among_wrong_high[site]
    assert line.among_wrong["best"] == pytest.approx(line.among_wrong["text.1.resid_post"])


def test_the_line_ends_in_the_models_own_answer(found):
    summary = known_but_not_said(found).summary
    assert list(summary.site)[-2:] == ["best", "answer"]
    answer = summary.iloc[-1]
    assert answer.among_wrong == 0.0
    truth, wrong = found.data.label("present"), found.data.label("wrong")
    expected = np.mean([1 - wrong[truth == value].mean() for value in (True, False)])
    assert answer.overall == pytest.approx(expected)


def test_the_figures_are_those_of_the_held_out_predictions(found):
    table = known_but_not_said(found).table.frame
    held = found.table.frame.merge(
        found.data.labels[["example", "wrong"]].astype({"example": "str"}), on="example"
    )
    for site, part in table.groupby("site"):
        expected = held[(held.site == site) & held.wrong.astype(bool)]["value"].mean()
        assert part["value"].mean() == pytest.approx(expected)


def test_one_truth_among_the_errors_has_no_balanced_accuracy():
    data = activations([6.0], extra={"wrong": [i % 8 == 1 for i in range(160)]})
    known = known_but_not_said(sweep(data, label="present", controls=(), progress=False))
    assert known.summary.base_rate[0] == 1.0 and np.isnan(known.summary.balanced[0])


def test_a_model_that_never_errs_has_nothing_unsaid():
    data = activations([6.0], extra={"wrong": [False] * 160})
    found = sweep(data, label="present", controls=(), progress=False)
    with pytest.raises(UsageError, match="None of the 160 examples is answered wrongly"):
        known_but_not_said(found)
