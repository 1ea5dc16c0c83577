"""The commands, from a file to table, figure and sentence; and what the figures hold."""

import json

import pandas as pd
import pytest

from lvlm_interp import alignment as al
from lvlm_interp import plotting
from lvlm_interp.cli import main
from lvlm_interp.errors import UsageError
from lvlm_interp.organisms.architecture import save_folder
from lvlm_interp.organisms.sets import examples
from lvlm_interp.results import ResultTable
from tests.alignment.conftest import collected


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """A tiny model's folder, and twenty-four scenes with a description each as rows."""
    folder = tmp_path_factory.mktemp("files")
    save_folder(model.hf, folder / "tiny")
    rows = []
    for example in examples("existence", 24):
        example.image.save(folder / f"{example.id}.png")
        row = {"id": example.id, "image": f"{example.id}.png", "prompt": example.prompt}
        row |= {"answer": example.answer, "foil": example.foil}
        rows.append(row | {"labels": {"caption": example.labels["caption"]}})
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_align_writes_table_figure_and_sentence(files, capsys):
    words = ["align", str(files / "tiny"), "--data", str(files / "rows.jsonl"), "--n-permutations"]
    words += ["19", "--k", "3", "--out", str(files / "out")]
    assert main(words) == 0, capsys.readouterr().err
    out = files / "out"
    assert {path.name for path in out.iterdir()} >= {"map.pdf", "map.png", "sentence.txt"}
    table = ResultTable.read_parquet(out / "table.parquet")
    assert len(table) == 2 * 4 * 4 and table.provenance["n_permutations"] == 19
    assert set(pd.read_csv(out / "best.csv")["metric"]) == {"cka", "mutual_knn"}
    text = (out / "sentence.txt").read_text()
    assert text in capsys.readouterr().out and "over 24 examples" in text
    assert main(words) == 2 and "holds a result already" in capsys.readouterr().err


def test_align_stages_takes_any_checkpoints(files, capsys):
    words = ["align", "stages", "--checkpoints", json.dumps([str(files / "tiny")]), "--data"]
    words += [str(files / "rows.jsonl"), "--out", str(files / "stages"), "--n-permutations", "9"]
    assert main(words) == 0, capsys.readouterr().err
    overview = pd.read_csv(files / "stages" / "overview.csv")
    assert overview["model"].tolist() == ["tiny"] and "accuracy" in overview
    assert (files / "stages" / "stages.pdf").exists()


def test_align_says_what_it_needs(files, capsys):
    assert main(["align", str(files / "tiny"), "--out", str(files / "none")]) == 2
    assert "align needs --data" in capsys.readouterr().err


def test_the_map_shows_the_values_and_frames_the_best():
    found = al.profile(collected(), n_permutations=9, n_subsamples=4)
    figure = plotting.alignment_map(found, metric="mutual_knn")
    axis = figure.axes[0]
    numbers = [float(text.get_text().replace("\N{MINUS SIGN}", "-")) for text in axis.texts]
    expected = found.matrix("mutual_knn").to_numpy().ravel()
    assert numbers == pytest.approx(expected, abs=0.006)
    assert len(axis.patches) == 1 and axis.patches[0].get_xy() == (0.5, 0.5)
    assert "figure" in found._repr_html_()
    with pytest.raises(UsageError, match="no metric 'rsa'"):
        plotting.alignment_map(found, metric="rsa")


def test_the_trajectory_draws_each_model_in_order():
    rows = [
        {"model": m, "order": o, "condition": "all", "metric": metric, "site": site, "n": 9}
        | {"value": o / 4, "low": o / 4 - 0.1, "high": o / 4 + 0.1, "null": 0.03}
        for o, m in enumerate(("a", "b", "c"))
        for metric, site in (
            ("cka", "text.embed"),
            ("cka", "text.0.resid_post"),
            ("accuracy", None),
        )
    ]
    frame = pd.DataFrame(rows).assign(level=None)
    figure = plotting.trajectory(al.Trajectory(ResultTable(frame), ("a", "b", "c")))
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["a", "b", "c"]
    assert (
        left.lines[0].get_ydata().tolist() == right.lines[0].get_ydata().tolist() == [0, 0.25, 0.5]
    )
    with pytest.raises(UsageError, match="no condition 'trigger'"):
        plotting.trajectory(al.Trajectory(ResultTable(frame), ("a",)), condition="trigger")
