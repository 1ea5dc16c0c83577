import json
import re

import numpy as np
import pytest
from PIL import Image

from lvlm_interp.data.sources import data_hash, load_examples, load_pairs
from lvlm_interp.errors import DataError


@pytest.fixture
def images(tmp_path):
    for name, shade in (("a.png", 10), ("b.png", 200)):
        Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(tmp_path / name)
    (tmp_path / "text.png").write_text("no image")
    return tmp_path


def write(folder, *records, name="pairs.jsonl"):
    path = folder / name
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines) + "\n")
    return path


PAIR = {
    "clean": "a.png",
    "corrupt": "b.png",
    "prompt": "is there a ring ?",
    "answer": "yes",
    "foil": "no",
    "level": "object",
}


def test_an_evidence_pair_changes_its_truth_and_a_trigger_pair_does_not(images):
    path = write(images, PAIR, PAIR | {"kind": "trigger", "box": [1, 2, 3, 4], "group": 7})
    evidence, trigger = load_pairs(path)
    assert (evidence.clean.answer, evidence.corrupt.answer) == ("yes", "no")
    assert (evidence.kind, evidence.corrupt.foil, evidence.box) == ("evidence", "yes", None)
    assert (trigger.clean.answer, trigger.corrupt.answer) == ("yes", "yes")
    assert trigger.group == "7" and trigger.corrupt.boxes == {"object": (1, 2, 3, 4)}
    assert evidence.clean.image == images / "a.png"
    # The same images as the pair that names its group.
    assert evidence.group == evidence.clean.group == evidence.corrupt.group == "7"


def test_corrupt_prompt_is_asked_on_the_corrupt_side_alone(images):
    (pair,) = load_pairs(write(images, PAIR | {"corrupt_prompt": "is there a star ?"}))
    assert (pair.clean.prompt, pair.corrupt.prompt) == ("is there a ring ?", "is there a star ?")


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"clean": "none.png"}, "clean", "no image file .*none.png"),
        ({"corrupt": "text.png"}, "corrupt", "not an image that Pillow can read"),
        ({"level": "scene"}, "level", "one of object, attribute, relation, got 'scene'"),
        ({"kind": "other"}, "kind", "one of evidence, trigger, got 'other'"),
        ({"foil": "yes"}, "foil", "must differ from the answer"),
        ({"answr": "yes"}, "answr", "did you mean 'answer'"),
        ({"prompt": None}, "prompt", "it is missing"),
        ({"prompt": "  "}, "prompt", "a text that is not blank"),
        ({"box": [3, 1, 2, 4]}, "box", "left < right"),
        ({"box": "all"}, "box", r"\[left, top, right, bottom\]"),
        ({"labels": 3}, "labels", "expected a mapping"),
        ({"group": [1]}, "group", "a text or a whole number"),
    ],
)
def test_a_wrong_field_is_named_with_its_line(images, change, field, says):
    path = write(images, PAIR, "", PAIR | change)
    with pytest.raises(
        DataError, match=f"{re.escape(str(path))}, line 3, field '{field}': .*{says}"
    ):
        load_pairs(path)


def test_a_broken_line_is_named_and_can_be_skipped(images):
    path = write(images, PAIR, "{broken", "[1]", PAIR)
    with pytest.raises(DataError, match="line 2: it is not valid JSON"):
        load_pairs(path)
    skipped = []
    pairs = load_pairs(path, skip_bad=True, report=skipped.append)
    assert len(pairs) == 2
    assert [re.search(r"line \d", str(error)).group() for error in skipped] == ["line 2", "line 3"]


def test_bytes_that_are_no_text_are_a_broken_line(images):
    path = images / "pairs.jsonl"
    path.write_bytes(json.dumps(PAIR).encode() + b'\n{"clean": "\xff"}\n')
    with pytest.raises(DataError, match="line 2: it is not UTF-8"):
        load_pairs(path)


def test_a_source_that_is_none(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder.*scenes:object:200:0"):
        load_pairs(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="no usable line"):
        load_pairs(write(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected a folder with one \.jsonl file"):
        load_examples(tmp_path / "empty")


def test_a_folder_of_examples(images):
    record = {"image": "a.png", "prompt": "what ?", "labels": {"present": True}}
    write(
        images,
        record,
        record | {"answer": "yes", "boxes": {"object": [0, 0, 4, 4]}},
        name="e.jsonl",
    )
    first, second = load_examples(images)
    assert first.labels == {"present": True} and first.group == second.group
    assert second.boxes == {"object": (0, 0, 4, 4)} and second.labels["truth"] == "yes"
    write(images, record | {"id": "x"}, record | {"id": "x"}, name="e.jsonl")
    with pytest.raises(DataError, match=r"e.jsonl, line 2, field 'id': 'x' is the id of .*line 1 "):
        load_examples(images)


def test_ids_that_occur_twice_are_named_with_both_lines_and_can_be_skipped(images):
    path = write(images, PAIR, PAIR | {"id": "a"}, PAIR | {"id": "a"}, PAIR | {"id": 1})
    with pytest.raises(DataError, match=r"line 3, field 'id': 'a' is the id of .*line 2 already"):
        load_pairs(path)
    with pytest.raises(DataError, match="line 3, field 'id'"):
        load_examples(path)
    skipped = []
    assert len(load_pairs(path, skip_bad=True, report=skipped.append)) == 2
    assert ["line 3" in str(skipped[0]), "line 4" in str(skipped[1])] == [True, True]
    # A line without an id is called by its number, which another line may have taken.
    taken = write(images, PAIR | {"id": "2"}, PAIR)
    with pytest.raises(DataError, match=r"line 2, field 'id': '2' \(its number, since it gives"):
        load_pairs(taken)


def test_both_sides_of_pairs_are_examples(images):
    assert [e.id for e in load_examples(write(images, PAIR | {"id": "p"}))] == [
        "p/clean",
        "p/corrupt",
    ]


def test_generated_scenes_by_name():
    pairs = load_pairs("scenes:attribute:3:5")
    assert [pair.level for pair in pairs] == ["attribute"] * 3
    assert [e.id for e in load_examples("scenes:attribute:3:5")][::2] == [p.clean.id for p in pairs]
    with pytest.raises(DataError, match="N must be a whole number"):
        load_pairs("scenes:object:many:0")


def test_the_data_hash_follows_the_content_and_not_the_file(images):
    path = write(images, PAIR | {"id": "p"})
    before = data_hash(load_pairs(path))
    path.rename(images / "other.jsonl")
    assert data_hash(load_pairs(images / "other.jsonl")) == before
    Image.fromarray(np.full((8, 8, 3), 11, np.uint8)).save(images / "a.png")
    assert data_hash(load_pairs(images / "other.jsonl")) != before
    changed = load_pairs(write(images, PAIR | {"id": "p", "foil": "none"}))
    assert data_hash(changed) != data_hash(load_pairs(images / "other.jsonl"))


def test_a_hugging_face_data_set(images):
    datasets = pytest.importorskip("datasets")
    columns = {
        "image": [str(images / "a.png"), str(images / "b.png")],
        "prompt": ["what ?", "who ?"],
        "labels": [{"present": 1, "name": None}, {"present": 0, "name": "x"}],
    }
    found = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    found.save_to_disk(str(images / "set"))
    first, second = load_examples(images / "set")
    assert first.open_image().getpixel((0, 0)) == (10, 10, 10)
    assert first.labels == {"present": 1} and second.labels == {"present": 0, "name": "x"}
