"""Tables read back as they were, means know their clusters, displays come from a registry."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from lvlm_interp import displays
from lvlm_interp.displays import register_display
from lvlm_interp.errors import StoreError, UsageError
from lvlm_interp.results import COLUMNS, Result, ResultTable, provenance


def make_table(n=20):
    rng = np.random.default_rng(0)
    rows = [
        {
            "example": example,
            "pair": f"p{example}",
            "layer": layer,
            "site": f"text.{layer}.z",
            "head": None if layer else 2,
            "position": "object" if example % 2 else example,
            "metric": "recovery",
            "value": rng.normal(),
            "level": "object",
            "group": example // 2,
        }
        for example in range(n)
        for layer in range(2)
    ]
    return ResultTable(rows, provenance(seed=3, command="test", weight_hash="abc"))


def test_columns_and_types_whatever_came():
    frame = make_table().frame
    assert tuple(frame.columns) == (*COLUMNS, "level", "group")
    assert frame["layer"].dtype == frame["head"].dtype == "Int64"
    assert frame["value"].dtype == "float64"
    assert frame["example"].tolist()[:3] == ["0", "0", "1"]
    assert frame["position"].tolist()[:3] == ["0", "0", "object"]
    assert frame["tower"].isna().all()


def test_integer_identifiers_widened_by_pandas_stay_integers():
    table = ResultTable({"example": [1, 2], "position": [5.0, np.nan], "metric": "m", "value": 0.0})
    assert table.frame["position"].tolist()[0] == "5"
    assert table.frame["position"].isna().tolist() == [False, True]


def test_a_tidy_frame_is_taken_as_it_is_and_stays_the_callers_own():
    tidy = make_table().frame
    again = ResultTable(tidy)
    pd.testing.assert_frame_equal(again.frame, tidy)
    again.frame.loc[0, "value"] = 7.0
    assert tidy.loc[0, "value"] != 7.0
    # One wrong type, one wrong order or an index of its own is put right as ever.
    moved = tidy.set_index(tidy.index + 1)
    for untidy in (tidy.astype({"layer": float}), tidy[tidy.columns[::-1]], moved):
        pd.testing.assert_frame_equal(ResultTable(untidy).frame[list(tidy.columns)], tidy)


@pytest.mark.parametrize("rows", [make_table().frame, [], make_table().frame.iloc[:1]])
def test_parquet_round_trip(tmp_path, rows):
    table = ResultTable(rows, {"seed": 1, "nested": {"a": [1, None]}})
    back = ResultTable.read_parquet(table.to_parquet(tmp_path / "t.parquet"))
    pd.testing.assert_frame_equal(back.frame, table.frame)
    assert back.provenance == table.provenance


def test_same_table_same_bytes(tmp_path):
    first = make_table().to_parquet(tmp_path / "a.parquet").read_bytes()
    assert first == make_table().to_parquet(tmp_path / "b.parquet").read_bytes()


def test_reading_what_is_no_table_names_the_path(tmp_path):
    with pytest.raises(StoreError, match=r"missing\.parquet: .* found no file"):
        ResultTable.read_parquet(tmp_path / "missing.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(StoreError, match=r"text\.parquet: expected a result table"):
        ResultTable.read_parquet(tmp_path / "text.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(StoreError, match="expected a column 'metric'"):
        ResultTable.read_parquet(tmp_path / "other.parquet")


def test_mean_equals_pandas_and_keeps_types():
    table = make_table()
    means = table.mean(by=["layer", "head", "metric"])
    assert means["layer"].tolist() == [0, 1]
    assert means["layer"].dtype == "Int64"
    np.testing.assert_allclose(means["estimate"], table.frame.groupby("layer")["value"].mean())
    assert (means["low"] < means["estimate"]).all() and (means["estimate"] < means["high"]).all()
    assert means["n"].tolist() == [20, 20]
    assert table.mean(by="metric")["n"].tolist() == [40]
    pd.testing.assert_frame_equal(means, make_table().mean(by=["layer", "head", "metric"]))


def test_coarser_clusters_are_used():
    table = make_table()
    by_example = table.select(layer=0).estimate()
    by_group = table.select(layer=0).estimate(cluster="group")
    assert by_example.estimate == pytest.approx(by_group.estimate)
    assert by_example.low != by_group.low


def test_missing_values_do_not_count():
    table = ResultTable({"example": list("abc"), "metric": "m", "value": [1.0, 3.0, np.nan]})
    assert table.estimate().n == 2
    assert table.estimate().estimate == 2


def test_meaningless_means_are_refused():
    rows = {"example": ["a", "a"], "metric": ["x", "y"], "value": [0.0, 1.0]}
    with pytest.raises(UsageError, match="several metrics"):
        ResultTable(rows).estimate()
    with pytest.raises(UsageError, match="no column 'laier'"):
        make_table().mean(by="laier")
    rows = {"example": ["a", None], "metric": "x", "value": [0.0, 1.0]}
    with pytest.raises(UsageError, match="'example' is missing in 1 of 2"):
        ResultTable(rows).estimate()


def test_select_knows_lists_and_identifiers():
    table = make_table()
    assert len(table.select(layer=1, example=[3, 4])) == 2
    assert len(table.select(level="attribute")) == 0
    assert table.select(layer=1).provenance == table.provenance
    assert len(table.select(layer="1")) == len(table.select(layer=1)) > 0
    assert len(table.select(layer=["1", 0])) == len(table.select(layer=[1, 0]))
    with pytest.raises(UsageError, match="'layer' holds numbers, not 'first'"):
        table.select(layer="first")


def test_bad_columns_are_refused():
    with pytest.raises(UsageError, match="column 'value'"):
        ResultTable([{"metric": "m", "value": "high"}])
    with pytest.raises(UsageError, match="expected a column 'metric'"):
        ResultTable([{"value": 1.0}])


def test_concat_keeps_what_agrees():
    first, second = ResultTable(make_table().frame, {"seed": 1, "v": "x"}), make_table()
    second.provenance = {"seed": 2, "v": "x"}
    both = ResultTable.concat([first, second, ResultTable([], {"seed": 1, "v": "x"})])
    assert len(both) == 80
    assert both.provenance == {"seed": [1, 2], "v": "x"}
    with pytest.raises(UsageError, match="at least one table"):
        ResultTable.concat([])


def test_html_is_small_and_escaped():
    table = ResultTable([{"example": i, "metric": "<b>", "value": 0.0} for i in range(1000)])
    page = table._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert page.count("<tr") < 15
    assert "1000 rows" in repr(table)


@dataclass(frozen=True, repr=False)
class Sweep(Result):
    note: str = ""


@dataclass(frozen=True, repr=False)
class FineSweep(Sweep):
    pass


@pytest.fixture
def empty_registry(monkeypatch):
    monkeypatch.setattr(displays, "_displays", {})


def test_displays_reach_subclasses_and_refuse_duplicates(empty_registry):
    result = FineSweep(make_table(), note="hi")
    assert result._repr_html_() == result.table._repr_html_()
    register_display(Sweep, lambda shown: f"<img alt='{shown.note}'>")
    assert result._repr_html_() == "<img alt='hi'>"
    with pytest.raises(UsageError, match="Sweep has a display already"):
        register_display(Sweep, str)
    assert repr(result).startswith("FineSweep of ResultTable: 40 rows")


def test_provenance_is_json_with_versions_and_without_time():
    found = provenance(
        seed=0, command=["lvlm-interp", "x"], decoding={"do_sample": False}, task="t"
    )
    assert json.loads(json.dumps(found)) == found
    assert found["command"] == "lvlm-interp x"
    assert {"lvlm_interp", "python", "torch", "transformers", "numpy"} <= set(found["versions"])
    assert found["task"] == "t"
    assert found == provenance(
        seed=0, command=["lvlm-interp", "x"], decoding={"do_sample": False}, task="t"
    )


def test_a_table_can_be_made_when_it_is_first_asked_for():
    made = []

    def later():
        made.append(1)
        return pd.DataFrame({"metric": ["a"], "value": [1.0]})

    table = ResultTable(later, {"seed": 1})
    assert not made and table.provenance == {"seed": 1}
    assert len(table) == 1 and list(table.frame.value) == [1.0] and len(table.select()) == 1
    assert made == [1]
    with pytest.raises(UsageError, match="expected a column 'value'"):
        _ = ResultTable(lambda: pd.DataFrame({"metric": ["a"]})).frame
