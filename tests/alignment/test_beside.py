"""Per-example alignment and right or wrong: planted links are found, absent ones are not."""

import numpy as np
import pandas as pd
import pytest

from lvlm_interp import alignment as al
from lvlm_interp.errors import UsageError
from lvlm_interp.results import ResultTable
from tests.alignment.conftest import collected

QUICK = {"n_shuffles": 199}


def planted(n=120, link=2.0, seed=0):
    """A feature that is lower by `link` where the answer is wrong, one that is not, answers."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < 0.3
    names = [f"e{i}" for i in range(n)]
    rows = [
        {"example": name, "metric": metric, "site": "text.0.resid_post", "value": value}
        for metric, gap in (("overlap", link), ("cosine", 0.0))
        for name, value in zip(names, rng.standard_normal(n) - gap * wrong, strict=True)
    ]
    answers = pd.DataFrame({"example": names, "group": names, "wrong": wrong})
    return rows, answers.assign(probability=rng.random(n))


def test_a_planted_link_is_found_and_chance_is_not():
    rows, answers = planted()
    found = al.beside_behaviour(ResultTable(rows), answers, **QUICK)
    frame = found.table.frame.set_index("metric", drop=False)
    assert frame.loc["overlap", "value"] > 0.85 and frame.loc["overlap", "p"] == 1 / 200
    assert frame.loc["overlap", "low"] < frame.loc["overlap", "value"]
    assert frame.loc["cosine", "low"] < 0.5 < frame.loc["cosine", "high"]
    assert frame.loc["overlap", "shuffled"] == pytest.approx(0.5, abs=0.03)
    assert frame["baseline"].tolist() == [False, False, True]
    assert "lower alignment: overlap" in found.sentence and "output prob" in found.sentence
    assert int(frame["n_wrong"].iloc[0]) == answers["wrong"].sum()


def test_the_area_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rows, answers = planted(link=0.7)
    frame = al.beside_behaviour(rows, answers, n_shuffles=20).table.frame
    values = [row["value"] for row in rows if row["metric"] == "overlap"]
    expected = roc_auc_score(answers["wrong"], -np.array(values))
    assert frame["value"].iloc[0] == pytest.approx(expected, abs=1e-12)


def test_nothing_is_claimed_where_there_is_nothing():
    claims = 0
    for seed in range(6):
        rows, answers = planted(n=60, link=0.0, seed=seed)
        some = answers.drop(columns="probability")
        found = al.beside_behaviour(rows, some, n_shuffles=99)
        claims += "says nothing shown" not in found.sentence
    assert claims <= 1


def test_within_takes_no_kind_for_alignment():
    rng = np.random.default_rng(1)
    kind = np.repeat([0, 1], 100)
    wrong = rng.random(200) < np.where(kind == 1, 0.8, 0.1)
    names = [f"e{i}" for i in range(200)]
    rows = [
        {"example": name, "metric": "overlap", "value": value}
        for name, value in zip(names, rng.standard_normal(200) - 3 * kind, strict=True)
    ]
    answers = pd.DataFrame({"example": names, "wrong": wrong, "kind": kind})
    free = al.beside_behaviour(rows, answers, **QUICK).table.frame.iloc[0]
    inside = al.beside_behaviour(rows, answers, within="kind", **QUICK).table.frame.iloc[0]
    assert free["low"] > 0.6
    assert inside["low"] < 0.5 < inside["high"] and inside["p"] > 0.05


def test_one_kind_of_answer_says_so():
    rows, answers = planted()
    found = al.beside_behaviour(rows, answers.assign(wrong=False), **QUICK)
    assert "of one kind" in found.sentence


def test_a_table_of_evaluation_is_understood():
    rows, answers = planted()
    table = ResultTable(
        {
            "example": answers["example"],
            "metric": "right",
            "value": 1.0 - answers["wrong"],
            "p_yes": 0.9,
            "p_no": 0.1,
        }
    )
    same = al.beside_behaviour(rows, table, **QUICK).table.frame
    plain = al.beside_behaviour(rows, answers, **QUICK).table.frame
    assert same["value"].iloc[0] == plain["value"].iloc[0] and same["value"].iloc[2] == 0.5


def test_per_example_values_are_the_metrics_piece_by_piece():
    data = collected()
    table = al.per_example(data).frame
    one = table[table["site"] == "text.1.resid_post"]
    x, y = (data["text.1.resid_post"][:, p].astype(float) for p in ("image_mean", "caption"))
    for metric, expected in (
        ("overlap", al.mutual_knn(x, y)),
        ("cosine", al.cosine(x, y)),
        ("cosine_centred", al.cosine(x, y, kind="centred")),
        ("cka_share", al.cka(x, y)),
    ):
        assert one[one["metric"] == metric]["value"].mean() == pytest.approx(expected, abs=1e-9)
    rank = one[one["metric"] == "rank"]["value"]
    assert (rank == 1).mean() == pytest.approx(al.cosine(y, x, kind="retrieval"), abs=0.35)
    assert rank.between(0, 1).all()
    found = al.beside_behaviour(data, data.labels, n_shuffles=20)
    assert len(found.table) == 3 * 5


def test_wrong_tables_are_refused():
    rows, answers = planted()
    with pytest.raises(UsageError, match="answers need the columns"):
        al.beside_behaviour(rows, answers.drop(columns="wrong"))
    with pytest.raises(UsageError, match="features need a column 'metric'"):
        al.beside_behaviour(pd.DataFrame(rows).drop(columns="metric"), answers)
    with pytest.raises(UsageError, match="no example in common"):
        al.beside_behaviour(rows, answers.assign(example="other"))
    with pytest.raises(UsageError, match="no column 'kind'"):
        al.beside_behaviour(rows, answers, within="kind")
