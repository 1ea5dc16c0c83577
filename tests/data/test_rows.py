"""Rows of users: every field read as it is written, every refusal with line and field."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import lvlm_interp as li
from lvlm_interp.data.examples import Annotated
from lvlm_interp.errors import DataError

ROW = {"image": "a.png", "prompt": "is there a ring ?", "answer": "yes"}


@pytest.fixture
def folder(tmp_path):
    for index, name in enumerate(("a.png", "b.png", "c.png")):
        values = np.full((48, 64, 3), 10 + index, np.uint8)
        Image.fromarray(values).save(tmp_path / name)
    return tmp_path


def write(folder, *rows, name="rows.jsonl"):
    path = folder / name
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_every_field_of_a_row(folder):
    row = ROW | {
        "image": ["a.png", "b.png"],
        "id": "first",
        "answer": "red",
        "foil": "blue",
        "level": "attribute",
        "group": 7,
        "reply": "it is",
        "objects": [
            {"name": "ring", "attributes": ["red", "large"], "box": [1, 2, 30, 40]},
            {"name": "star"},
        ],
        "relations": [[0, "left of", 1]],
        "boxes": {"object": [1, 2, 30, 40]},
        "labels": {"color": "red"},
    }
    (found,) = li.load_examples(write(folder, row))
    assert found.images == (folder / "a.png", folder / "b.png")
    assert (found.id, found.prompt, found.answer, found.foil) == (
        "first", "is there a ring ?", "red", "blue",
    )  # fmt: skip
    assert (found.level, found.group, found.reply) == ("attribute", "7", "it is")
    assert found.objects == (
        Annotated("ring", ("red", "large"), (1, 2, 30, 40)),
        Annotated("star"),
    )
    assert found.relations == ((0, "left of", 1),) and found.boxes == {"object": (1, 2, 30, 40)}
    assert found.labels == {"truth": "red", "color": "red"}


def test_nulls_are_absent_fields_and_defaults_hold(folder):
    nulls = dict.fromkeys(
        ("id", "foil", "level", "group", "reply", "objects", "relations", "boxes", "labels")
    )
    first, second = li.load_examples(write(folder, ROW, ROW | nulls))
    assert (first.id, second.id) == ("1", "2") and first.foil == second.foil == "no"
    assert second.level is None and second.reply == "" and second.objects == ()
    assert first.group == second.group


@pytest.mark.parametrize(
    ("answer", "foil"),
    [("yes", "no"), ("Yes", "No"), ("NO", "YES"), ("No.", "Yes."), ("red", None)],
)
def test_yes_and_no_give_each_other_in_their_own_spelling(folder, answer, foil):
    (found,) = li.load_examples(write(folder, ROW | {"answer": answer}))
    assert found.foil == foil
    if foil is not None:
        (pair,) = li.build_pairs(write(folder, ROW | {"answer": answer, "box": [0, 0, 9, 9]}))
        assert (pair.answer, pair.foil) == (answer, foil)


def test_popes_own_files_are_read_as_they_are(folder):
    question = {"image": "b.png", "text": "Is there a snowboard in the image?"}
    row = question | {"question_id": 1, "label": "yes"}
    (found,) = li.load_examples(write(folder, row))
    assert (found.id, found.prompt) == ("1", question["text"])
    assert (found.answer, found.foil, found.image) == ("yes", "no", folder / "b.png")
    (folder / "val2014").mkdir()
    (folder / "c.png").rename(folder / "val2014" / "c.png")
    other = row | {"image": "c.png", "label": "no"}
    write(folder, row, name="coco_pope_random.json")
    write(folder, row, other | {"question_id": 2}, name="coco_pope_adversarial.json")
    found = li.load_examples(f"pope:{folder}")
    assert [each.id for each in found] == ["adversarial/1", "adversarial/2", "random/1"]
    assert found[1].image == folder / "val2014" / "c.png"
    assert [each.labels["split"] for each in found] == ["adversarial"] * 2 + ["random"]
    assert found[0].group == found[2].group != found[1].group
    with pytest.raises(DataError, match="expected POPE's files"):
        li.load_examples(f"pope:{folder / 'val2014'}")


def test_files_from_other_systems_are_read(folder):
    line = json.dumps(ROW | {"prompt": "is\u2028there\x85a caf\xe9 ?"}, ensure_ascii=False).encode()
    plain = write(folder, line)
    (expected,) = li.load_examples(plain)
    assert expected.prompt == "is\u2028there\x85a caf\xe9 ?"
    path = folder / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line)
    first, second = li.load_examples(path)
    assert first.prompt == second.prompt == expected.prompt and second.id == "3"
    (pair,) = li.build_pairs(
        [ROW | {"image": str(folder / "a.png"), "box": [3.5, 4.2, 20.1, 30.9]}]
    )
    assert pair.box == (4, 4, 20, 31)


def raw(**changes):
    return json.dumps(ROW | changes).encode()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (raw()[:-1] + b', "answer": "maybe"}', "field 'answer': it occurs twice"),
        (raw()[:-1] + b', "labels": {"a": 1, "a": 2}}', "field 'a': it occurs twice"),
        (raw()[:-1] + b', "box": [NaN, 0, 5, 5]}', "field 'box': it holds NaN"),
        (raw()[:-1] + b', "box": [0, 0, Infinity, 5]}', "field 'box': it holds NaN, infinity"),
        (raw()[:-1] + b', "box": [0, 0, 1e999, 5]}', "field 'box': it holds NaN, infinity"),
        (raw()[:-1] + b', "id": ' + b"9" * 5000 + b"}", "field 'id': .*beyond 64 bits"),
        (raw()[:-1] + b', "labels": {"n": ' + b"9" * 30 + b"}}", "field 'labels': .*64 bits"),
        (raw(labels="x")[:-4] + b"[" * 90 + b"]" * 90 + b"}", "field 'labels': .*too deep"),
        (b"[" * 100000, "nested too deep|not valid JSON"),
        (raw()[:-1] + b', "reply": "\\ud800"}', "field 'reply': .*lone surrogate"),
        (raw(prompt="x")[:-20] + b"\xff", "it is not UTF-8"),
        (raw(box=[0.4, 0.4, 0.6, 0.6]), "field 'box': .*fractions of the image"),
        (raw(box=[0.0, 0.0, 1.0, 1.0]), "field 'box': .*fractions of the image"),
        (raw(box=[500, 500, 900, 900]), "field 'box': .*outside of the image of 64 x 48.*1000"),
        (raw(box=[0, 0, 64, 49]), "field 'box': .*outside of the image"),
        (raw(box=[-3, 0, 5, 5]), "field 'box': .*outside of the image"),
        (raw(box=[30, 10, 20, 30]), "field 'box': .*COCO's"),
        (raw(box=[1, 2, 3]), "field 'box': expected .left, top"),
        (raw(box=["1", "2", "3", "4"]), "field 'box': expected .left, top"),
        (raw(box=[True, 0, 5, 5]), "field 'box': expected .left, top"),
        (raw(boxes={"ring": [0, 0, 99, 9]}), "field 'boxes': .*outside"),
        (raw(boxes=[1]), "field 'boxes': expected a mapping"),
        (raw(box=[0, 0, 9, 9], boxes={"object": [0, 0, 9, 9]}), "field 'box': .*already"),
        (raw(answer=True), "field 'answer': expected a text"),
        (raw(answer=1), "field 'answer': expected a text"),
        (raw(foil="yes "), "field 'foil': it must differ"),
        (raw(foil="Yes"), "field 'foil': it must differ"),
        (raw(prompt=5), "field 'prompt': expected a text"),
        (raw(prompt=None), "field 'prompt': it is missing"),
        (raw(text="is it ?"), "field 'text': 'prompt' says the same"),
        (
            raw(prompt="<image>\nis there a ring ?"),
            "field 'prompt': .*'<image>'.*take the mark out",
        ),
        (raw(level="Object"), "field 'level': expected one of object"),
        (raw(level=["object"]), "field 'level': expected one of object"),
        (raw(image="none.png"), "field 'image': .*no image file .*none.png"),
        (raw(image=["a.png", "none.png"]), "field 'image': .*none.png"),
        (raw(image=[]), "field 'image': .*empty list"),
        (raw(image=5), "field 'image': .*got int"),
        (raw(image=" "), "field 'image': expected the path"),
        (raw(image="."), "field 'image': .*is a folder"),
        (raw(image="a\0.png"), "field 'image': .*no image file"),
        (raw(image="a" * 5000 + ".png"), "field 'image': .*no image file"),
        (raw(image="/etc/hostname"), "field 'image': .*not an image"),
        (raw(image="https://example.org/a.png"), "field 'image': .*only on request"),
        (raw(objects=[{"nmae": "ring"}]), "field 'objects': object 0 has no 'nmae'"),
        (raw(objects=[{"attributes": []}]), "field 'objects': object 0 needs a 'name'"),
        (raw(objects=[{"name": "x", "attributes": [1]}]), "field 'objects': .*a list of texts"),
        (raw(objects=[{"name": "x", "box": [0, 0, 99, 9]}]), "field 'objects': .*outside"),
        (raw(objects=[{"name": "x"}], relations=[[0, "by", 1]]), "field 'relations': .*1 objects"),
        (raw(relations="x"), "field 'relations': expected a list"),
        (raw(group=[1]), "field 'group': expected a text or a whole number"),
        (raw(id=1.5), "field 'id': expected a text or a whole number"),
        (raw(promt="x"), "field 'promt': there is no such field; did you mean 'prompt'"),
    ],
)
def test_a_wrong_line_is_named_with_its_field_and_can_be_skipped(folder, line, says):
    path = write(folder, ROW, line, ROW | {"id": "last"})
    with pytest.raises(DataError, match=f"{re.escape(str(path))}, line 2.*{says}"):
        li.load_examples(path)
    skipped = []
    assert len(li.load_examples(path, skip_bad=True, report=skipped.append)) == 2
    assert len(skipped) == 1 and "line 2" in str(skipped[0])
    rows = []
    boxed = ROW | {"box": [0, 0, 9, 9]}
    path = write(folder, boxed, line, boxed | {"id": "last"})
    assert len(li.build_pairs(path, skip_bad=True, report=rows.append)) == 2
    assert len(rows) == 1 and "line 2" in str(rows[0])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04", "zip archive"),
        (json.dumps(ROW).encode("utf-16"), "UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PAR1", "parquet"),
        (b"", "no usable line"),
        (b"\n  \r\n", "no usable line"),
    ],
)
def test_files_that_hold_no_lines_are_told(folder, content, says):
    path = folder / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"rows.jsonl.*{says}"):
        li.load_examples(path)


def test_a_cut_image_is_named_with_its_line(folder):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(folder / "cut.jpg")
    data = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) * 2 // 3])
    path = write(folder, ROW, ROW | {"image": "cut.jpg"})
    with pytest.raises(
        DataError, match=r"line 2, field 'image': .*cut.jpg is an image that was cut"
    ):
        li.load_examples(path)
    assert len(li.load_examples(path, skip_bad=True, report=lambda _: None)) == 1


def test_images_in_the_line_itself(folder):
    import base64

    coded = base64.b64encode((folder / "a.png").read_bytes()).decode()
    first, second = li.load_examples(
        write(folder, ROW, ROW | {"image": f"data:image/png;base64,{coded}"})
    )
    assert first.group == second.group
    assert second.open_image().tobytes() == first.open_image().tobytes()
