"""The main job from end to end on an untrained organism: same seed, same tables; kill, resume."""

import json

import numpy as np
import pandas as pd
import pytest

from lvlm_interp.diagnose import diagnose
from lvlm_interp.diagnose import job as run_module
from lvlm_interp.organisms.architecture import Sizes, build_model, save_folder
from lvlm_interp.results import ResultTable

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "organism"
    sizes = Sizes(vision_layers=3, vision_width=32, vision_heads=2, text_layers=2, text_width=32)
    save_folder(build_model(sizes, 0), path)
    return path


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    return diagnose(str(folder), data="scenes:all:120:0", out=out, batch_size=32)


def tables(folder):
    return {
        path.name: ResultTable.read_parquet(path).frame
        for path in sorted((folder / "tables").glob("*.parquet"))
    }


def test_summary_has_what_it_promises(whole):
    summary = json.loads((whole.folder / "summary.json").read_text())
    assert set(summary["levels"]) == {"object", "attribute", "relation"}
    for entry in summary["levels"].values():
        for name in ("trigger_error", "control_error"):
            assert set(entry[name]) == {"estimate", "low", "high", "n"}
        assert entry["found"] in (True, False, None) and entry["verdict"]
        assert (entry["found"] is None) == (entry["missing"] is not None)
        acted = entry["intervention"]
        assert len(acted["random"]["draws"]) == 20
        assert acted["side_effect"]["by_condition"]
        assert {"layer", "head", "recovery"} == set(entry["heads"][0])
    for name in ("report.html", "run.json"):
        assert (whole.folder / name).stat().st_size > 100
    assert len(list((whole.folder / "figures").glob("*.pdf"))) >= 10


def test_what_is_chosen_is_chosen_on_other_scenes_than_it_is_scored_on(whole):
    frame = tables(whole.folder)["intervention_object.parquet"]
    assert set(frame["half"]) == {"act"}
    patching = tables(whole.folder)["patching_object.parquet"]
    ranked = set(patching.loc[patching["half"] == "rank", "group"])
    assert not ranked & set(frame["group"])


def test_a_killed_run_resumes_and_ends_with_the_same_tables(whole, folder, tmp_path, monkeypatch):
    def killed(*_args, **_options):
        raise KeyboardInterrupt

    options = {"data": "scenes:all:120:0", "out": tmp_path / "run", "batch_size": 32}
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "intervene", killed)
        with pytest.raises(KeyboardInterrupt):
            diagnose(str(folder), **options)
    assert not (tmp_path / "run" / "summary.json").exists()
    again = diagnose(str(folder), **options, resume=True)
    first, second = tables(whole.folder), tables(again.folder)
    assert list(first) == list(second)
    for name, frame in first.items():
        pd.testing.assert_frame_equal(frame, second[name])
    assert whole.summary == again.summary


def test_effects_of_an_edit_are_real(whole):
    frame = tables(whole.folder)["intervention_object.parquet"]
    arms = frame.groupby("arm")["value"].count()
    assert arms["before"] == arms["after"]
    assert np.isfinite(frame["value"]).all()
