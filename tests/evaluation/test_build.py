"""The unified benchmark from annotations: forms, balance, gates, and what replies become."""

import json
from collections import Counter

import pytest
from PIL import Image

from lvlm_interp.cli import main
from lvlm_interp.data.benchmarks.graphs import SceneGraph, read_graphs
from lvlm_interp.data.examples import Annotated, Example
from lvlm_interp.errors import DataError, UsageError
from lvlm_interp.evaluation import Reader, Reply, load_bench, severity, unified_bench
from lvlm_interp.evaluation.build import build
from lvlm_interp.evaluation.claims import claims
from lvlm_interp.evaluation.organism_graphs import SCENES
from lvlm_interp.evaluation.wording import ENGLISH
from tests.evaluation.files import write_json, write_lines


def pictures(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (32, 32)).save(folder / f"{name}.png")


def kitchen(n=12):
    """Graphs of a few things with colours, relations and supercategories."""
    names = ["dog", "cat", "cup", "plate", "fork", "table"]
    graphs = []
    for i in range(n):
        mine = [names[i % 6], names[(i + 1) % 6], names[(i + 3) % 6]]
        things = tuple(
            Annotated(name, (("red", "blue", "green")[k],), (10 * k, 0, 10 * k + 8, 8))
            for k, name in enumerate(mine)
        )
        relations = ((0, "left", 1), (1, "right", 0), (2, "holding", 0))
        kinds = {"dog": "animal", "cat": "animal", "cup": "kitchen", "plate": "kitchen"}
        graphs.append(SceneGraph(f"i{i}", None, things, relations, kinds))
    return graphs


def test_truths_are_balanced_gated_and_priced():
    graphs = kitchen()
    things = {graph.id: {t.name: set(t.attributes) for t in graph.objects} for graph in graphs}
    found = build(graphs)
    polls = [e for e in found if e.labels["task"] in ("poll", "pair")]
    for level in ("object", "attribute", "relation"):
        truths = Counter(e.answer for e in polls if e.level == level)
        assert abs(truths["yes"] - truths["no"]) <= 1, level
    assert len({e.id for e in found}) == len(found)
    assert {e.labels["negative"] for e in polls if "negative" in e.labels} == {
        "popular", "co-occurring", "random",
    }  # fmt: skip
    for example in polls:
        assert 0 < example.labels["delta"] <= 1
        subject = example.id.split("/")[3].split("-")[0]
        if example.level != "object":
            assert subject in things[example.group]  # the gate
        elif example.answer == "no":
            assert subject not in things[example.group]
    pairs = Counter(e.labels["pair"] for e in found if e.labels["task"] == "pair")
    assert set(pairs.values()) == {2}
    assert build(graphs) == found


def test_an_invented_thing_of_a_kind_that_is_there_costs_half():
    dogs = SceneGraph("a", None, (Annotated("dog"),), kinds={"dog": "animal", "cat": "animal"})
    cats = SceneGraph("b", None, (Annotated("cat"), Annotated("cup")))
    found = {
        e.id: e.labels["delta"] for e in build([dogs, cats]) if e.answer == "no" and e.group == "a"
    }
    assert {name.split("/")[-1]: delta for name, delta in found.items()} in (
        {"cat": 0.5}, {"cup": 1.0}, {"cat": 0.5, "cup": 1.0},
    )  # fmt: skip


def test_forms_of_annotations(tmp_path):
    pictures(tmp_path, ["7", "8"])
    coco = {
        "images": [{"id": 7, "file_name": "7.png"}, {"id": 8, "file_name": "8.png"}],
        "categories": [{"id": 1, "name": "dog", "supercategory": "animal"}],
        "annotations": [{"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    }
    gqa = {
        "7": {"objects": {
            "x": {"name": "dog", "attributes": ["red"], "x": 0, "y": 0, "w": 4, "h": 4,
                  "relations": [{"name": "to the left of", "object": "y"}]},
            "y": {"name": "cup", "x": 9, "y": 0, "w": 4, "h": 4, "relations": []},
        }}
    }  # fmt: skip
    genome = [
        {"image_id": 7,
         "objects": [{"object_id": 5, "names": ["dog"], "x": 0, "y": 0, "w": 4, "h": 4,
                      "attributes": ["red"]},
                     {"object_id": 6, "names": ["cup"], "x": 9, "y": 0, "w": 4, "h": 4}],
         "relationships": [{"subject_id": 5, "predicate": "LEFT OF", "object_id": 6}]}
    ]  # fmt: skip
    rows = [
        {"image": "7.png", "objects": [{"name": "dog", "attributes": ["red"], "box": [0, 0, 4, 4]},
                                       {"name": "cup", "box": [9, 0, 13, 4]}],
         "relations": [[0, "left of", 1]]}
    ]  # fmt: skip
    first = read_graphs(write_json(tmp_path / "instances.json", coco))
    assert first[0].objects == (Annotated("dog", (), (1, 2, 4, 6)),) and first[1].objects == ()
    assert first[0].kinds == {"dog": "animal"}
    expected = (Annotated("dog", ("red",), (0, 0, 4, 4)), Annotated("cup", (), (9, 0, 13, 4)))
    for name, content in (("gqa.json", gqa), ("scene_graphs.json", genome), ("rows.json", rows)):
        (graph,) = read_graphs(write_json(tmp_path / name, content))
        assert graph.objects == expected and graph.relations == ((0, "left", 1),)
        assert graph.image == tmp_path / "7.png" and graph.id == "7"
    (graph,) = read_graphs(write_lines(tmp_path / "rows.jsonl", rows))
    assert graph.objects == expected
    rows[0]["relations"] = [[0, "left of", 5]]
    with pytest.raises(DataError, match="objects 0 and 5"):
        read_graphs(write_json(tmp_path / "rows.json", rows))


def test_relations_come_from_boxes_where_none_are_given():
    far = (Annotated("dog", (), (0, 0, 10, 10)), Annotated("cup", (), (50, 0, 60, 10)))
    near = (Annotated("cat", (), (0, 0, 10, 10)), Annotated("fork", (), (5, 5, 15, 15)))
    found = build([SceneGraph("a", None, far), SceneGraph("b", None, near)])
    relations = [e for e in found if e.level == "relation"]
    assert relations and {e.group for e in relations} == {"a"}
    said = [e for e in relations if e.answer == "yes"]
    assert all("left" in e.prompt or "right" in e.prompt for e in said)


def test_the_command_builds_what_can_be_loaded(tmp_path, capsys):
    out = tmp_path / "bench"
    assert main(["build-bench", "--graphs", "scenes:all:9:1", "--out", str(out)]) == 0
    assert "questions" in capsys.readouterr().out
    examples, reader = load_bench(out)
    again, _ = unified_bench("scenes:all:9:1")
    assert [(e.id, e.prompt, e.answer) for e in examples] == [
        (e.id, e.prompt, e.answer) for e in again
    ]
    assert examples[0].objects == again[0].objects and "ring" in reader.names
    assert main(["build-bench", "--graphs", "scenes:all:9:1", "--out", str(out)]) == 2
    (out / "rows.jsonl").write_text((out / "rows.jsonl").read_text() + "\n")
    with pytest.raises(DataError, match="was changed"):
        load_bench(out)
    with pytest.raises(UsageError, match="scenes:LEVEL:N:SEED"):
        unified_bench("scenes:all")


def test_missing_images_are_named_all_at_once(tmp_path):
    rows = [{"image": f"{i}.png", "objects": [{"name": "dog"}]} for i in range(3)]
    pictures(tmp_path, ["1"])
    with pytest.raises(DataError, match="2 of 3 images are not in the folder, namely 0, 2"):
        unified_bench(write_lines(tmp_path / "rows.jsonl", rows))


def scene():
    things = (Annotated("ring", ("red", "topleft")), Annotated("star", ("blue", "right")))
    return Example("x/describe", None, "describe", group="x", objects=things,
                   relations=((0, "left", 1),), labels={"task": "describe"})  # fmt: skip


def test_claims_of_a_description():
    names = ("ring", "star", "heart")
    text = "a green ring at bottomright and a heart ."
    found = {c.statement: c for c in claims(text, scene(), names, SCENES)}
    assert (found["there is a ring"].said, found["there is a star"].said) == ("yes", "none")
    assert found["there is a heart"].truth == "no" and found["there is a heart"].delta == 1
    assert found["the ring is green"].delta == severity.colour("green", "red", SCENES.palette)
    assert found["the ring is at bottomright"].delta == 1
    assert found["the ring is red"].said == "none" and found["the star is blue"].said == "none"
    right = claims("a red ring at topleft and a blue star at right .", scene(), names, SCENES)
    assert all(c.said == "yes" and c.delta is None for c in right if c.truth == "yes")
    assert not [c for c in right if c.truth == "no"]


def test_relations_denials_and_gates_in_free_text():
    example = Example(
        "y", None, "describe", group="y",
        objects=(Annotated("dog", ("brown",)), Annotated("cup"), Annotated("man")),
        relations=((0, "left", 1), (2, "holding", 1)), labels={"task": "describe"},
    )  # fmt: skip
    names, kinds = ("dog", "cat", "cup", "man"), {"dog": "animal", "cat": "animal"}

    def read(text):
        found = claims(text, example, names, ENGLISH, kinds)
        return {c.statement: (c.truth, c.said, c.delta) for c in found if c.said != "none"}

    assert read("The dog is to the right of the cup.")["the dog is right of the cup"] == (
        "no", "yes", 1.0,
    )  # fmt: skip
    assert read("The cup holding the man.")["the cup holding the man"] == ("no", "yes", 1.0)
    assert read("A blue cat.") == {"there is a cat": ("no", "yes", 0.5)}  # no colour of what is not
    assert read("A cat and a dog.")["there is a cat"] == ("no", "yes", 1.0)  # the dog is named
    assert read("No dog.")["there is a dog"] == ("yes", "no", 0.5)
    assert "the cup is red" not in read("A red cup.")  # its colour is not known


def test_open_answers():
    reader = Reader(ENGLISH)

    def read(kind, truth, text):
        example = Example("z", None, "what", answer=truth, group="z",
                          labels={"task": "open", "kind": kind})  # fmt: skip
        (row,) = reader.rows(example, Reply(text))
        return row["said"], row["delta"]

    assert read("colour", "red", "It is blue.") == ("blue", severity.colour("blue", "red"))
    assert read("colour", "red", "red or blue")[0] == "red"
    assert read("colour", "red", "maybe blue or green")[0] == "none"
    assert read("spatial", "left", "to the right") == ("right", 1.0)
    assert read("count", "4", "There are two.") == ("2", 0.5)
    assert read("count", "4", "many")[0] == "none"


def test_rows_are_json(tmp_path):
    out = tmp_path / "b"
    assert main(["build-bench", "--graphs", "scenes:relation:4:0", "--out", str(out)]) == 0
    for line in (out / "rows.jsonl").read_text().splitlines():
        assert {"id", "image", "prompt", "labels"} <= set(json.loads(line))
