"""What a user can mend is one sentence that names the cause, exit code 2, and nothing written."""

import json

import pytest
from PIL import Image

from lvlm_interp import cli
from lvlm_interp.organisms.architecture import Sizes, build_model, save_folder
from lvlm_interp.organisms.pairs import pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "organism"
    sizes = Sizes(vision_layers=2, vision_width=16, vision_heads=2, text_layers=2, text_width=16)
    save_folder(build_model(sizes, 0), path)
    return path


@pytest.fixture
def lines(tmp_path):
    rows = []
    for pair in pairs("object", 2, 0):
        paths = {}
        for side in ("clean", "corrupt"):
            paths[side] = f"{pair.id}-{side}.png"
            getattr(pair, side).open_image().save(tmp_path / paths[side])
        rows.append(
            {
                **paths,
                "prompt": pair.clean.prompt,
                "answer": pair.answer,
                "foil": pair.foil,
                "level": pair.level,
            }
        )
    return rows


def run(model, rows, tmp_path, capsys, *more):
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    out = tmp_path / "out"
    code = cli.main(
        ["diagnose", str(model), "--data", str(data), "--out", str(out), *map(str, more)]
    )
    assert not out.exists()
    # transformers draws a bar on the same stream while it loads
    said = capsys.readouterr().err.strip().split("\r")[-1].split("\n")[-1]
    assert said.startswith("lvlm-interp: error: "), said
    return code, said


def test_a_folder_that_is_no_model(tmp_path, lines, capsys):
    (tmp_path / "empty").mkdir()
    code, said = run(tmp_path / "empty", lines, tmp_path, capsys)
    assert code == 2 and "no model folder" in said and str(tmp_path / "empty") in said


def test_an_unsupported_architecture_names_itself_and_the_supported_ones(tmp_path, lines, capsys):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    code, said = run(tmp_path / "bert", lines, tmp_path, capsys)
    assert code == 2 and "'bert'" in said and "llava" in said and "qwen2_vl" in said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("{not json", "line 2"),
        ({"clean": "nowhere.png"}, "nowhere.png"),
        ({"corrupt": "text.png"}, "text.png"),
        ({"foil": "no", "answer": "no"}, "line 2"),
        ({"answer": "supercalifragilistic"}, "supercalifragilistic"),
        ({"corrupt_prompt": "is there a ring here now ?"}, "line 2"),
        ({"level": "colour"}, "level"),
        ({"anwser": "yes"}, "anwser"),
    ],
)
def test_a_wrong_line_is_named_with_its_cause(folder, tmp_path, lines, capsys, change, sentence):
    (tmp_path / "text.png").write_text("this is no image")
    bad = change if isinstance(change, str) else {**lines[1], **change}
    code, said = run(folder, [lines[0], bad], tmp_path, capsys)
    assert code == 2 and sentence in said and "2" in said


def test_data_must_be_named_for_a_model_of_ones_own(folder, tmp_path, capsys):
    assert cli.main(["diagnose", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "--data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_out_with_other_files_is_left_alone(folder, tmp_path, capsys):
    Image.new("RGB", (2, 2)).save(tmp_path / "mine.png")
    words = ["diagnose", str(folder), "--data", "scenes:object:4:0", "--out", str(tmp_path)]
    assert cli.main(words) == 2
    assert cli.main([*words, "--force"]) == 2
    assert "no run" in capsys.readouterr().err
    assert (tmp_path / "mine.png").exists()
