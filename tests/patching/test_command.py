"""`lvlm-interp patch` as a user types it: what it writes, and one sentence for what is wrong."""

import json

import numpy as np
import pytest
from PIL import Image

from lvlm_interp import cli
from lvlm_interp.data.sources import load_pairs
from lvlm_interp.models.loading import load_model
from lvlm_interp.patching import command
from lvlm_interp.results import ResultTable

MODEL, DATA = "scenes", "scenes:object:2:0:trigger"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A pairs file, and the fields of its one line."""
    folder = tmp_path_factory.mktemp("pairs")
    pair = load_pairs(DATA)[0]
    for side in ("clean", "corrupt"):
        image = np.asarray(getattr(pair, side).open_image())
        Image.fromarray(image).save(folder / f"{side}.png")
    fields = {
        "clean": "clean.png",
        "corrupt": "corrupt.png",
        "prompt": pair.clean.prompt,
        "answer": pair.answer,
        "foil": pair.foil,
        "level": "object",
        "kind": "trigger",
    }
    return folder, fields


@pytest.fixture(scope="module")
def model():
    return load_model(MODEL)


@pytest.fixture(autouse=True)
def loaded_once(model, monkeypatch):
    monkeypatch.setattr(command, "load_for_command", lambda *_given: model)


def said(words, capsys):
    """Exit code, and the last line of stderr, behind any progress bar."""
    code = cli.main(["patch", *map(str, words)])
    lines = [line.split("\r")[-1] for line in capsys.readouterr().err.split("\n")]
    assert lines.pop() == "" and not any("error" in line for line in lines[:-1])
    return code, lines[-1]


def test_a_table_is_written_and_the_best_are_shown(tmp_path, capsys):
    out = tmp_path / "patch.parquet"
    words = [MODEL, DATA, "--out", out, "--heads", "0:1,2:0", "--positions", "last,object"]
    assert cli.main(["patch", *map(str, words)]) == 0
    shown = capsys.readouterr().out
    frame = ResultTable.read_parquet(out).frame
    assert set(zip(frame.layer, frame["head"], strict=True)) == {(0, 1), (2, 0)}
    assert set(frame.position) == {"last", "object"}
    assert "estimate" in shown and f"{len(frame)} rows in" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs --out"),
        (["--out", "patch.csv"], "ends in .parquet"),
        (["--out", "nowhere/at/all/patch.parquet"], "no folder nowhere/at/all"),
        (["--out", "p.parquet", "--sites", "text.*.zz"], "text.*.zz"),
        (["--out", "p.parquet", "--heads", "0:99"], "There is no head 99 at text.0.z"),
        (["--out", "p.parquet", "--heads", "3"], "LAYER:HEAD"),
        (["--out", "p.parquet", "--positions", "subject"], "'subject'"),
        (["--out", "p.parquet", "--positions", ","], "No position"),
        (["--out", "p.parquet", "--metric", "loss"], "Unknown metric 'loss'"),
        (["--out", "p.parquet", "--batch_size", "0"], "batch_size=0"),
        (["--out", "p.parquet", "--memory_mib", "-1"], "memory_mib=-1"),
        (["--out", "p.parquet", "--top", "0"], "--top 0"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_exit_code_2(
    options, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    code, error = said([MODEL, DATA, *options], capsys)
    assert code == 2 and message in error
    assert error.startswith("lvlm-interp: error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"foil": "yes", "answer": "yes"}, [], "answer"),
        ({"corrupt_prompt": "is there a small red ring in the image ?"}, [], "tokens"),
        ({"answer": "zebra"}, [], "zebra"),
        ({}, ["--positions", "object"], "needs a box"),
    ],
)
def test_a_wrong_pair_is_named(written, change, options, message, tmp_path, capsys):
    folder, fields = written
    path = folder / "wrong.jsonl"
    path.write_text(json.dumps({**fields, **change}) + "\n")
    words = [MODEL, path, "--out", tmp_path / "p.parquet", *options]
    code, error = said(words, capsys)
    assert code == 2 and message in error
    assert "wrong.jsonl" in error or "Pair" in error


def test_a_model_that_answers_nan_is_told_of(tmp_path, monkeypatch, capsys):
    broken = load_model(MODEL)
    broken.hf.get_output_embeddings().weight.data.fill_(float("nan"))
    monkeypatch.setattr(command, "load_for_command", lambda *_given: broken)
    code, error = said([MODEL, DATA, "--out", tmp_path / "p.parquet"], capsys)
    assert code == 2 and "gives nan on the pair" in error


def test_help_reads_well(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["patch", "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0
    for words in ("--heads", "such as 2:5,3:0", "--out", "Parquet", "scenes:object:200:0:trigger"):
        assert words in shown
