import json

import pytest

from lvlm_interp.diagnose.folder import RunFolder
from lvlm_interp.errors import UsageError
from lvlm_interp.results import ResultTable

KEY = {"model": "a", "seed": 0, "command": "x"}


def test_a_step_that_is_done_is_not_done_again(tmp_path):
    folder = RunFolder.open(tmp_path / "run", KEY)
    calls = []

    def make():
        calls.append(1)
        return ResultTable([{"metric": "error", "value": 1.0, "example": "e"}])

    first = folder.table("behaviour", make)
    again = RunFolder.open(tmp_path / "run", KEY, resume=True).table("behaviour", make)
    assert len(calls) == 1
    assert first.frame.equals(again.frame)


def test_a_folder_with_another_run_is_refused_and_left_alone(tmp_path):
    RunFolder.open(tmp_path / "run", KEY)
    with pytest.raises(UsageError, match="add --resume"):
        RunFolder.open(tmp_path / "run", KEY)
    with pytest.raises(UsageError, match="differs in seed"):
        RunFolder.open(tmp_path / "run", {**KEY, "seed": 1}, resume=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["seed"] == 0


def test_force_never_deletes_what_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="no run of diagnose"):
        RunFolder.open(tmp_path, KEY, force=True)
    with pytest.raises(UsageError, match="holds no run"):
        RunFolder.open(tmp_path, KEY, resume=True)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    "text", ['{"some": "other tool"}', "[1, 2]", "not json", '{"made_by": 3}', "[" * 99999, ""]
)
def test_a_run_file_of_another_tool_is_no_run_of_ours(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    (tmp_path / "chapter.tex").write_text("years of work")
    with pytest.raises(UsageError, match="no run of diagnose"):
        RunFolder.open(tmp_path, KEY, force=True)
    with pytest.raises(UsageError, match="holds no run"):
        RunFolder.open(tmp_path, KEY, resume=True)
    assert (tmp_path / "chapter.tex").exists() and (tmp_path / "run.json").read_text() == text


def test_force_deletes_names_of_ours_alone_and_follows_no_link(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    folder = RunFolder.open(run, KEY)
    folder.table("behaviour", lambda: ResultTable([{"metric": "error", "value": 1.0}]))
    folder.write("summary.json", "{}")
    kept = [run / "notes.md", run / "tables" / "mine.txt", run / "results.parquet"]
    for path in kept:
        path.write_text("mine")
    outside.mkdir()
    (outside / "a.png").write_text("mine")
    (run / "figures").symlink_to(outside)
    (run / "report.html").symlink_to(outside / "a.png")
    RunFolder.open(run, {**KEY, "seed": 1}, force=True)
    assert all(path.read_text() == "mine" for path in [*kept, outside / "a.png"])
    assert not (run / "summary.json").exists()
    assert not (run / "tables" / "behaviour.parquet").exists()
    assert json.loads((run / "run.json").read_text())["seed"] == 1


def test_force_replaces_a_run_and_resume_starts_where_nothing_is(tmp_path):
    folder = RunFolder.open(tmp_path / "run", KEY, resume=True)
    folder.write("report.html", "old")
    RunFolder.open(tmp_path / "run", {**KEY, "seed": 1}, force=True)
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_command_does_not_make_a_run_another(tmp_path):
    RunFolder.open(tmp_path / "run", KEY)
    again = RunFolder.open(tmp_path / "run", {**KEY, "command": "y"}, resume=True)
    assert again.path == tmp_path / "run"


def test_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        RunFolder.open(tmp_path / "run", KEY)
