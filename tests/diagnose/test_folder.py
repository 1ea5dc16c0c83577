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
