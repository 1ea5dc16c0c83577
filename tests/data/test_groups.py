"""Groups: what shares a picture is never split, whatever the file is called."""

import json
import shutil

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import lvlm_interp as li
from lvlm_interp.data.groups import components, with_groups

PAIR = {"prompt": "is it ?", "answer": "yes", "foil": "no", "level": "object"}


@pytest.fixture
def folder(tmp_path):
    for index in range(6):
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "0.png")
    shutil.copy(tmp_path / "1.png", tmp_path / "copy.png")
    return tmp_path


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=3), max_size=12))
def test_components_are_those_of_an_independent_graph_library(keys):
    graph = nx.Graph()
    graph.add_nodes_from(range(len(keys)))
    graph.add_edges_from((i, key) for i, own in enumerate(keys) for key in own)
    found = components(keys)
    for part in nx.connected_components(graph):
        rows = [node for node in part if isinstance(node, int)]
        assert len({found[row] for row in rows}) <= 1
    n = sum(any(isinstance(x, int) for x in part) for part in nx.connected_components(graph))
    assert len(set(found)) == n


def groups_of(folder, *pairs):
    path = folder / "pairs.jsonl"
    lines = [PAIR | {"clean": a, "corrupt": b} for a, b in pairs]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path, [pair.group for pair in li.load_pairs(path)]


def test_pairs_that_share_an_image_by_name_path_link_or_pixels_are_one_group(folder):
    path, found = groups_of(
        folder,
        ("0.png", "1.png"),
        ("1.png", "0.png"),
        ("./0.png", "2.png"),
        ("link.png", "3.png"),
        ("copy.png", "3.png"),
        ("4.png", "5.png"),
    )
    assert len(set(found[:5])) == 1 and found[5] != found[0]
    assert [each.group for each in li.load_examples(path)] == [g for g in found for _ in range(2)]


def test_a_chain_of_pairs_is_one_group_and_a_named_group_stays(folder):
    _, found = groups_of(folder, ("0.png", "1.png"), ("1.png", "2.png"), ("2.png", "3.png"))
    assert len(set(found)) == 1
    rows = [{"image": f"{name}.png", "prompt": "is it ?"} for name in (0, 0, 1)]
    rows[0]["group"] = "mine"
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    mine, shared, other = (each.group for each in li.load_examples(folder / "rows.jsonl"))
    assert mine == shared == "mine" != other


def test_examples_in_memory_get_groups_on_their_way_into_a_store(folder, tmp_path):
    model = li.load_model("scenes", selfcheck=False)
    image = Image.open(folder / "0.png").resize((48, 48))
    examples = [li.Example(str(i), image.copy(), "is there a ring ?") for i in range(2)]
    examples.append(li.Example("2", Image.new("RGB", (48, 48), "red"), "is there a ring ?"))
    found = li.collect(model, examples, ["text.0.resid_post"], ["last"], progress=False)
    first, second, third = found.labels["group"]
    assert first == second != third


def test_rows_that_exchange_images_stay_in_small_groups():
    rng = np.random.default_rng(0)
    rows = [
        li.Example(str(i), rng.integers(0, 255, (8, 8, 3), np.uint8), "is it ?", answer="yes")
        for i in range(6)
    ]
    pairs = li.build_pairs(rows, "image")
    assert len({pair.group for pair in pairs}) == 3
    assert [pair.group for pair in with_groups(pairs)] == [pair.group for pair in pairs]


def test_noise_reads_at_chance_where_pairs_occur_both_ways(folder):
    """With (a, b) and (b, a) apart, a probe reads pure noise off the repeated image."""
    rng = np.random.default_rng(0)
    n = 40
    for index in range(n):
        values = rng.integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(values).save(folder / f"n{index}.png")
    pairs = [(f"n{i}.png", f"n{i + 1}.png") for i in range(0, n, 2)]
    path, _ = groups_of(folder, *[each for a, b in pairs for each in ((a, b), (b, a))])
    examples = li.load_examples(path)
    label = {f"n{i}.png": int(rng.integers(2)) for i in range(n)}
    y = np.array([label[each.image.name] for each in examples])
    groups = np.array([each.group for each in examples])
    pixels = np.array([np.asarray(each.open_image()).ravel() for each in examples], float)
    right = []
    for group in set(groups):
        held = groups == group
        distance = ((pixels[held][:, None] - pixels[~held][None]) ** 2).sum(-1)
        right += list(y[~held][distance.argmin(1)] == y[held])
        assert distance.min() > 0  # nothing held out was trained on
    assert abs(np.mean(right) - 0.5) < 0.25
