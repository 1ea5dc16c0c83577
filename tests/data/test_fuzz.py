"""Fuzzed files: of valid lines all are read as an independent parse reads them, the rest is named.

The fast tier draws small files; the second tier draws 1e5 lines and 1e3 images.
"""

import io
import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lvlm_interp.data.jsonl import read_objects
from lvlm_interp.data.sources import load_examples
from lvlm_interp.errors import DataError, InputError
from lvlm_interp.models.inputs.images import open_image

WIDTH, HEIGHT = 64, 48
WORDS = ["ring", "caf\u00e9", "\u72d7", "is\u2028it", "a\x85b", "\U0001f436", 'q"uote', "tab\tbed"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz")
    for index in range(4):
        Image.new("RGB", (WIDTH, HEIGHT), (index, 0, 0)).save(path / f"{index}.png")
    return path


def valid_row(rng, number):
    """A row that the format allows, with every field that chance puts in."""
    left, top = rng.randrange(WIDTH - 1), rng.randrange(HEIGHT - 1)
    box = [left, top, rng.randrange(left + 1, WIDTH + 1), rng.randrange(top + 1, HEIGHT + 1)]
    words = lambda: " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 5)))  # noqa: E731
    row = {"image": f"{rng.randrange(4)}.png", "prompt": words(), "id": f"r{number}"}
    things = [{"name": words(), "attributes": [words()], "box": box} for _ in range(2)]
    more = {
        "answer": rng.choice(["yes", "No", "red", "3"]),
        "level": rng.choice(["object", "attribute", "relation"]),
        "group": rng.choice(["g", 7]),
        "reply": words(),
        "boxes": {"object": box},
        "objects": things,
        "relations": [[0, words(), 1]],
        "labels": {"n": rng.randrange(10**6), "x": rng.random(), "deep": {"a": [1, None, True]}},
    }
    row |= {name: value for name, value in more.items() if rng.random() < 0.5}
    if "objects" not in row:
        row.pop("relations", None)
    return row


def broken(rng, row):
    """The bytes of a row with one fault."""
    text = json.dumps(row).encode()
    faults = [
        lambda: text[: rng.randrange(1, len(text) - 1)],
        lambda: text[:-1] + b', "prompt": "again"}',
        lambda: text[:-1] + b', "box": [NaN, 0, 5, 5]}',
        lambda: json.dumps(row | {"image": "none.png"}).encode(),
        lambda: json.dumps(row | {"boxes": {"object": [0, 0, 900, 900]}}).encode(),
        lambda: json.dumps(row | {"prompt": rng.choice([5, [], {}, " ", True])}).encode(),
        lambda: json.dumps(row | {rng.choice("abcdef") * 3: 1}).encode(),
        lambda: text.replace(b'"prompt"', b'"prompt\xff"'),
        lambda: b"[" * rng.randrange(1, 3000),
        lambda: json.dumps([row]).encode(),
    ]
    return rng.choice(faults)()


def check(folder, seed, n):
    """Writes n lines, of which a third is broken, and compares what is read with json.loads."""
    rng = random.Random(seed)
    path = folder / f"rows{seed}.jsonl"
    truth, bad = {}, set()
    with path.open("wb") as file:
        file.write(rng.choice([b"", b"\xef\xbb\xbf"]))
        for number in range(1, n + 1):
            row = valid_row(rng, number)
            if rng.random() < 1 / 3:
                line = broken(rng, row)
                bad.add(number)
            else:
                line = json.dumps(row, ensure_ascii=rng.random() < 0.5).encode()
                truth[row["id"]] = json.loads(line)
            file.write(line + rng.choice([b"\n", b"\r\n"]))
    refused = []
    try:
        found = load_examples(path, skip_bad=True, report=refused.append)
    except DataError as error:
        assert not truth and "no usable line" in str(error)
        return
    finally:
        path.unlink()
    assert [each.id for each in found] == list(truth)
    for each in found:
        row = truth[each.id]
        assert each.image == folder / row["image"] and each.prompt == row["prompt"]
        assert (each.answer, each.level) == (row.get("answer"), row.get("level"))
        assert each.reply == row.get("reply", "")
        assert {k: list(v) for k, v in each.boxes.items()} == row.get("boxes", {})
        things = row.get("objects", [])
        assert [thing.name for thing in each.objects] == [thing["name"] for thing in things]
        assert [list(thing.box) for thing in each.objects] == [thing["box"] for thing in things]
        assert [list(relation) for relation in each.relations] == row.get("relations", [])
        own = {"truth": row["answer"]} if "answer" in row else {}
        assert dict(each.labels) == own | row.get("labels", {})
        assert "group" not in row or each.group == str(row["group"])
    lines = [int(re.search(r"line (\d+)", str(error)).group(1)) for error in refused]
    assert set(lines) == bad and len(lines) == len(bad)
    for error in refused:
        assert "field '" in str(error) or re.search(r"line \d+: (it|its|expected) ", str(error))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9))
def test_valid_lines_are_read_and_broken_ones_named(folder, seed):
    check(folder, seed, 20)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(folder, data):
    path = folder / "any.jsonl"
    path.write_bytes(data)
    try:
        for where, fields in read_objects(path):
            assert str(path) in where
            if not isinstance(fields, DataError):
                assert isinstance(fields, dict)
                json.dumps(fields, allow_nan=False).encode()
    except DataError as error:
        assert str(path) in str(error)


PICTURES = [
    (kind, mode)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP")
    for mode in ("RGB", "L", "1", "P", "RGBA", "CMYK", "LA", "I;16", "F")
]


def spoilt_pictures(rng, n):
    """Files of images with bytes changed or cut; those that no encoder makes are left out."""
    whole = []
    for kind, mode in PICTURES:
        buffer = io.BytesIO()
        try:
            Image.new("RGB", (9, 7), (200, 20, 90)).convert(mode).save(buffer, kind)
        except (OSError, ValueError, KeyError):
            continue
        whole.append(buffer.getvalue())
    for _ in range(n):
        data = bytearray(whole[rng.integers(len(whole))])
        for _ in range(rng.integers(0, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        if rng.random() < 0.3:
            del data[rng.integers(len(data)) :]
        yield bytes(data)


def look_at(pictures):
    opened = 0
    for data in pictures:
        try:
            image = open_image(data)
        except InputError as error:
            assert len(str(error)) < 600
            continue
        assert image.mode == "RGB" and min(image.size) > 0
        opened += 1
    return opened


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_spoilt_images_are_opened_or_refused():
    assert look_at(spoilt_pictures(np.random.default_rng(0), 150)) > 20


@pytest.mark.slow
def test_a_hundred_thousand_lines(folder):
    for seed in range(10):
        check(folder, seed, 10_000)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_thousand_images():
    assert look_at(spoilt_pictures(np.random.default_rng(1), 1000)) > 150
