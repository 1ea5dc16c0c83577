"""The unified scores: worked examples, their algebra, coverage of the intervals, and the joins."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lvlm_interp.errors import UsageError
from lvlm_interp.evaluation import Answers, conviction, inside, unified

z = NormalDist().inv_cdf


def poll(i, level, truth, said, delta, group=None, task="poll", **more):
    return {"example": f"e{i}", "group": group or f"g{i}", "level": level, "task": task,
            "truth": truth, "said": said, "reply": said, "delta": delta, **more}  # fmt: skip


def worked():
    """Eight polls about objects: one false alarm of two kinds, one miss, one neither."""
    return [
        poll(0, "object", "no", "yes", 1.0, p_yes=0.6, p_no=0.2),
        poll(1, "object", "no", "yes", 0.5, p_yes=0.5, p_no=0.5),
        poll(2, "object", "no", "no", 1.0, p_yes=0.1, p_no=0.9),
        poll(3, "object", "no", "no", 1.0, p_yes=0.2, p_no=0.8),
        poll(4, "object", "yes", "yes", 0.5, p_yes=0.9, p_no=0.1),
        poll(5, "object", "yes", "no", 0.5, p_yes=0.3, p_no=0.6),
        poll(6, "object", "yes", "none", 0.5),
        poll(7, "attribute", "yes", "yes", 0.5),
        poll(8, "attribute", "no", "yes", 0.25),
    ]


def test_polls_by_hand():
    found = unified(Answers.of(worked()), n_resamples=0)

    def value(name, level="object"):
        return found.value(name, level)

    assert value("false_alarms") == pytest.approx(2 / 4, abs=1e-12)
    assert value("misses") == pytest.approx(1 / 2, abs=1e-12)
    assert value("frequency") == pytest.approx(0.5, abs=1e-12)
    assert value("risk") == pytest.approx(((1 + 0.5) / 4 + 0.5 / 2) / 2, abs=1e-12)
    assert value("severity") == pytest.approx(0.3125 / 0.5, abs=1e-12)
    weights = [0.4 / 0.8, 0.0, 0.3 / 0.9]
    expected = ((1.0 * weights[0] + 0.5 * weights[1]) / 4 + 0.5 * weights[2] / 2) / 2
    assert value("convinced_risk") == pytest.approx(expected, abs=1e-12)
    hits, alarms = (1 + 0.5) / (2 + 1), (2 + 0.5) / (4 + 1)
    assert value("d_prime") == pytest.approx(z(hits) - z(alarms), abs=1e-9)
    assert value("criterion") == pytest.approx(-(z(hits) + z(alarms)) / 2, abs=1e-9)
    assert value("none_rate") == pytest.approx(1 / 7, abs=1e-12)
    # Attribute: one of one false said yes, none of one true denied.
    assert value("frequency", "attribute") == 0.5 and value("risk", "attribute") == 0.125
    assert value("frequency", "macro") == pytest.approx(0.5)
    assert value("risk", "macro") == pytest.approx((0.3125 + 0.125) / 2)
    assert math.isnan(value("convinced_risk", "attribute"))


def test_the_same_answers_by_logits():
    found = Answers.of(worked()).by_logits().frame
    assert list(found["said"]) == ["yes", "none", "no", "no", "yes", "no", "none", "yes", "yes"]
    assert Answers.of(worked()).frame["said"][1] == "yes"


def test_texts_by_hand():
    def claim(i, truth, said, delta=math.nan):
        return poll(i, "object", truth, said, delta, group="g", task="describe")

    rows = [
        claim(0, "yes", "yes"),
        claim(1, "yes", "yes"),
        claim(2, "yes", "none"),
        claim(3, "no", "yes", 1.0),
        claim(4, "yes", "no", 0.5),
        {**poll(5, "attribute", "red", "blue", 0.4, task="open"), "conviction": 0.5},
        {**poll(6, "attribute", "red", "red", math.nan, task="open"), "conviction": 1.0},
        poll(7, "attribute", "red", "none", math.nan, task="open"),
    ]
    found = unified(Answers.of(rows), n_resamples=0)
    assert found.value("frequency", "object", "describe") == pytest.approx(2 / 4)
    assert found.value("risk", "object", "describe") == pytest.approx(1.5 / 4)
    assert found.value("severity", "object", "describe") == pytest.approx(0.75)
    assert found.value("coverage", "object", "describe") == pytest.approx(2 / 4)
    assert found.value("frequency", "attribute", "open") == pytest.approx(1 / 2)
    assert found.value("risk", "attribute", "open") == pytest.approx(0.2)
    assert found.value("convinced_risk", "attribute", "open") == pytest.approx(0.1)
    assert found.value("none_rate", "attribute", "open") == pytest.approx(1 / 3)


def test_pairs_by_hand():
    rows, said = [], [("yes", "no"), ("yes", "yes"), ("no", "no"), ("no", "yes"), ("none", "no")]
    for i, both in enumerate(said):
        for truth, word in zip(("yes", "no"), both, strict=True):
            more = {"pair": f"p{i}"}
            rows.append(
                poll(2 * i + (truth == "no"), "relation", truth, word, 0.5, task="pair", **more)
            )
    found = unified(Answers.of(rows), n_resamples=0)
    shares = [
        found.value(name, "relation", "pair")
        for name in ("both_right", "stuck_yes", "stuck_no", "inverted")
    ]
    assert shares == [0.25, 0.25, 0.25, 0.25]
    with pytest.raises(UsageError, match="pair 'p0' must have two answers"):
        unified(Answers.of(rows[1:]), n_resamples=0)


answers = st.lists(
    st.tuples(
        st.sampled_from(["object", "attribute", "relation"]), st.sampled_from(["yes", "no"]),
        st.sampled_from(["yes", "no", "none"]), st.floats(0.01, 1.0), st.integers(0, 5),
    ),
    min_size=1, max_size=40,
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(answers)
def test_risk_is_frequency_times_severity(drawn):
    rows = [poll(i, level, t, s, d, f"g{g}") for i, (level, t, s, d, g) in enumerate(drawn)]
    frame = unified(Answers.of(rows), n_resamples=0).table.frame
    wide = frame.pivot_table(index=["task", "level"], columns="metric", values="value")
    if {"risk", "severity", "frequency"} <= set(wide):
        some = wide.dropna(subset=["severity"])
        np.testing.assert_allclose(some["risk"], some["frequency"] * some["severity"], atol=1e-12)
        assert ((some["severity"] >= 0) & (some["severity"] <= 1 + 1e-12)).all()


def test_conviction():
    np.testing.assert_allclose(conviction([0.6, 0.5, 0.0], [0.2, 0.5, 0.0]), [0.5, 0.0, math.nan])


def test_an_error_without_a_delta_is_refused():
    with pytest.raises(UsageError, match="1 answers can be wrong and have no delta"):
        unified(Answers.of([poll(0, "object", "no", "yes", math.nan)]))
    with pytest.raises(UsageError, match="column 'delta'"):
        unified(Answers.of([{"example": "a", "truth": "no", "said": "no", "reply": "no"}]))


@pytest.mark.slow
def test_the_intervals_of_frequency_cover():
    """Images of four polls that vary together: 95% intervals hold the truth in 90% or more."""
    rng, held, runs = np.random.default_rng(0), 0, 200
    for run in range(runs):
        rows = []
        for image in range(60):
            error = rng.beta(1, 4)
            for k in range(4):
                truth = "yes" if k % 2 else "no"
                other = "no" if truth == "yes" else "yes"
                said = other if rng.random() < error else truth
                rows.append(poll(f"{run}-{image}-{k}", "object", truth, said, 0.5, f"g{image}"))
        frame = unified(Answers.of(rows), n_resamples=400).table.frame
        row = frame[(frame["metric"] == "frequency") & (frame["level"] == "object")].iloc[0]
        held += row["low"] <= 0.2 <= row["high"]
    assert held / runs >= 0.9


def test_inside_beside_outside():
    rows = [
        poll(0, "object", "yes", "yes", 0.5),
        poll(1, "object", "yes", "no", 0.5),
        poll(2, "object", "no", "yes", 1.0),
        poll(3, "object", "no", "no", 1.0),
        poll(4, "object", "no", "none", 1.0),
    ]
    table = Answers.of(rows)
    found = inside(
        table, {"e0": True, "e1": True, "e2": False, "e3": False}, {"e0": 0.2, "e1": 0.4},
        n_resamples=0,
    ).table.frame.set_index("metric")["value"]  # fmt: skip
    cells = ["knows_and_says", "knows_not_says", "neither", "says_without_knowing"]
    assert [found[name] for name in cells] == [0.25] * 4
    assert found["alignment"] == pytest.approx(0.3)
    with pytest.raises(UsageError, match="ids must agree"):
        inside(table, {"x": True})
