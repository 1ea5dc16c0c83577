import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lvlm_interp.data.sources import load_examples
from lvlm_interp.errors import SiteError, UsageError
from lvlm_interp.organisms.architecture import build_model, build_processor
from lvlm_interp.probing import load_study, run_study
from lvlm_interp.probing import study as module
from tests.activations.conftest import SIZES

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "probes" / "configs").glob("*.yaml"))

SMALL = {
    "question": "Is it there?",
    "control": "All four.",
    "answer": "Yes above 0.5.",
    "above": 0.5,
    "data": "scenes:object:40:3",
    "label": "present",
    "known": True,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    build_model(SIZES, 0).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def study(tmp_path, checkpoint):
    def write(**changes):
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({**SMALL, "models": [checkpoint], **changes}))
        return load_study(path)

    return write


def test_the_four_studies_state_all_of_it_beforehand(checkpoint):
    assert len(CONFIGS) >= 4
    for path in CONFIGS:
        found = load_study(path, {"models": [checkpoint]})
        assert set(found.controls) == {"shuffled_labels", "control_task", "untrained", "pixels"}
        assert found.question.endswith("?") and found.control and found.answer
        found.check(load_examples(":".join([*found.data.split(":")[:2], "60", "3"])))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"labl": "x"}, UsageError, r"no key of small.yaml 'labl'; did you mean 'label'"),
        ({"label": "presnt"}, UsageError, "no label 'presnt'; did you mean 'present'"),
        ({"group": "scne"}, UsageError, "no group 'scne'"),
        ({"controls": ["shufled"]}, UsageError, "no control 'shufled'"),
        ({"probe": "svm"}, UsageError, "no probe 'svm'"),
        ({"positions": ["objct"]}, UsageError, "did you mean 'object'"),
        ({"sites": ["text.9.z"]}, SiteError, r"No site of this model matches 'text\.9\.z'"),
        ({"above": None}, UsageError, "the key 'above' is missing"),
        ({"above": "high"}, UsageError, "'above' is of kind float, got 'high'"),
        ({"folds": "many"}, UsageError, "'folds' is of kind int, got 'many'"),
        ({"group": None}, UsageError, "'group' has no value"),
        ({"folds": 2}, UsageError, "n_folds=2 is too few"),
        ({"known": 1}, UsageError, "'known' is of kind bool, got 1"),
        ({"sites": [1]}, UsageError, "'sites' is a list of names"),
        ({"where": "nope == 1"}, UsageError, "is no condition on the labels"),
        ({"where": "asked_shape == 'rink'"}, UsageError, "has 0 values among 0 examples"),
        ({"control_type": "tipe"}, UsageError, "no control_type 'tipe'; did you mean 'type'"),
        ({"beyond": ["pixel"]}, UsageError, "did you mean 'pixels'"),
        ({"answer_positions": ["lst"]}, UsageError, "no answer position 'lst'; did you mean"),
        ({"answer_sites": "text.7.*"}, SiteError, r"text\.7"),
        ({"known_label": "prsent"}, UsageError, "did you mean 'present'"),
        ({}, None, None),
    ],
)
def test_a_wrong_study_raises_before_a_model_is_loaded(
    study, tmp_path, change, error, says, monkeypatch
):
    def refuse(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(module, "load_model", refuse)
    if error is None:
        with pytest.raises(AssertionError, match="a model was loaded"):
            run_study(study(), study().models[0], tmp_path / "out", tmp_path / "stores")
        return
    with pytest.raises(error, match=says):
        found = study(**change)
        run_study(found, found.models[0], tmp_path / "out", tmp_path / "stores")
    assert not (tmp_path / "out").exists() and not (tmp_path / "stores").exists()


def test_a_missing_key_and_a_file_that_is_none(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("question: what?\n")
    with pytest.raises(UsageError, match="the key 'control' is missing"):
        load_study(path)
    path.write_text("a: [")
    with pytest.raises(UsageError, match="is not valid YAML"):
        load_study(path)
    with pytest.raises(UsageError, match="no study file"):
        load_study(tmp_path / "none.yaml")


def test_a_result_has_its_sentence_and_only_missing_work_is_done(study, tmp_path, monkeypatch):
    found = study(positions=["object"], sites=["vision.*.resid_post", "text.1.resid_post"])
    out, stores = tmp_path / "out", tmp_path / "stores"
    result = run_study(found, found.models[0], out, stores, progress=False)
    assert result["answer"] in ("yes", "no", "not shown")
    for words in ("balanced accuracy", "shuffled labels", "selectivity", "untrained", "pixels"):
        assert words in result["sentence"]
    assert {p.name for p in out.iterdir()} == {
        "table.parquet",
        "summary.csv",
        "known.csv",
        "result.json",
    }
    calls = []
    monkeypatch.setattr(module, "load_model", lambda *_: calls.append("load"))
    assert run_study(found, found.models[0], out, stores, progress=False) == result
    assert calls == []
    monkeypatch.undo()
    before = {p: p.stat().st_mtime_ns for p in stores.rglob("*.json")}
    (out / "result.json").unlink()
    assert run_study(found, found.models[0], out, stores, progress=False) == result
    assert {p: p.stat().st_mtime_ns for p in stores.rglob("units/*.json")}.items() <= before.items()


@pytest.mark.slow
def test_the_script_reports_in_one_line(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(SMALL | {"labell": 1}))
    command = [sys.executable, "-W", "ignore", str(ROOT / "probes" / "run.py"), str(config)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert (
        done.stderr == "run.py: error: There is no key of c.yaml 'labell'; did you mean 'label'?\n"
    )
