import filecmp
import json
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
import torch

from lvlm_interp.activations.extract import Extraction, extract
from lvlm_interp.activations.memory import collect
from lvlm_interp.activations.store import open_store, verify_store
from lvlm_interp.data.sources import load_examples
from lvlm_interp.errors import StoreError
from tests.activations.conftest import tiny_model

WHAT = {
    "sites": "vision.*.resid_post,text.*.resid_post,text.*.z",
    "positions": "object,last,image_all",
}


@pytest.fixture(scope="module")
def data():
    return load_examples("scenes:object:70:4")


@pytest.fixture(scope="module")
def whole(model, data, tmp_path_factory):
    """A store of 140 examples in two units, the second one ragged."""
    path = tmp_path_factory.mktemp("store") / "acts"
    extract(model, data, **WHAT, out=path, progress=False)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "acts")
    return tmp_path / "acts"


def same(first, second):
    """Whether two folders hold the same files with the same bytes."""
    names = [
        sorted(p.relative_to(f).as_posix() for p in f.rglob("*") if p.is_file())
        for f in (first, second)
    ]
    return names[0] == names[1] and all(
        filecmp.cmp(first / name, second / name, shallow=False) for name in names[0]
    )


def test_the_store_reads_what_collect_holds(model, data, whole):
    store = open_store(whole)
    memory = collect(model, data, WHAT["sites"], WHAT["positions"], progress=False)
    assert len(store) == 140 and store.sites == memory.sites
    rows = np.array([139, 3, 127, 128])
    for site in store.sites:
        here, there = store[site], memory[site]
        assert (here.shape, here.dtype, here.positions) == (
            there.shape,
            there.dtype,
            there.positions,
        )
        np.testing.assert_array_equal(here[:], there[:])
        np.testing.assert_array_equal(here[120:133, "object"], there[120:133, "object"])
        np.testing.assert_array_equal(here[rows, ["object"]], there[rows, ["object"]])
        np.testing.assert_array_equal(here[5:50:7], there[5:50:7])
        np.testing.assert_array_equal(here[-2], there[-2])
        for got, expected in zip(here.tokens("image_all"), there.tokens("image_all"), strict=True):
            np.testing.assert_array_equal(got, expected)
    assert store.labels.equals(memory.labels)
    assert torch.equal(store.to_torch("text.1.z", "last"), memory.to_torch("text.1.z", "last"))
    assert store[store.sites[0]][3:3].shape == (0, 1, 24)


def test_token_maps_come_along(model, data, whole):
    maps = open_store(whole).token_maps(unit=1)
    tokens = model.prepare(data[128]).tokens[0]
    assert list(maps["ids"][0]) == tokens.ids.tolist()
    assert list(maps["row"][0]) == tokens.row.tolist()


def test_bfloat16_is_stored_and_sliced(data, tmp_path):
    model = tiny_model(dtype=torch.bfloat16)
    store = extract(model, data[:4], **WHAT, out=tmp_path / "s", progress=False)
    assert store["text.0.z"].dtype == np.dtype(ml_dtypes.bfloat16)
    found = store["text.0.z"][1:3, "last"]
    assert found.dtype == np.dtype(ml_dtypes.bfloat16)
    tensor = store.to_torch("text.0.z", "last")
    assert tensor.dtype == torch.bfloat16
    np.testing.assert_array_equal(tensor[1:3].float().numpy(), found.astype(np.float32))
    X, _, _ = store.to_sklearn("text.0.z", "last", label="truth")
    assert X.dtype == np.float32 and np.isfinite(X).all()


def test_float16_is_warned_against(model, data, tmp_path):
    with pytest.warns(UserWarning, match="float16 overflows"):
        extract(model, data[:2], **WHAT, out=tmp_path / "s", dtype="float16", progress=False)


def test_an_interrupted_run_is_finished_bit_by_bit(model, data, whole, tmp_path, monkeypatch):
    out = tmp_path / "acts"
    calls = []

    def stop(self, unit, chunk):
        calls.append(unit)
        if unit == 1:
            raise KeyboardInterrupt
        return original(self, unit, chunk)

    original = Extraction.write
    monkeypatch.setattr(Extraction, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        extract(model, data, **WHAT, out=out, progress=False)
    with pytest.raises(StoreError, match=r"is not finished: 1 of 2 units"):
        open_store(out)
    monkeypatch.setattr(Extraction, "write", original)
    with pytest.raises(StoreError, match="holds a store already"):
        extract(model, data, **WHAT, out=out, progress=False)
    (out / "000" / "units" / ".000001-abcd1234.jsonl").write_text("left by a kill")
    before = (out / "000" / "text.z" / "c" / "0").stat().st_mtime_ns
    extract(model, data, **WHAT, out=out, resume=True, progress=False)
    assert (out / "000" / "text.z" / "c" / "0").stat().st_mtime_ns == before
    assert calls == [0, 1] and same(out, whole)


def test_resume_starts_afresh_where_nothing_is(model, data, tmp_path):
    store = extract(model, data[:3], **WHAT, out=tmp_path / "new", resume=True, progress=False)
    assert len(store) == 3


def test_a_missing_file_is_named_and_never_read_as_zeros(copy):
    path = copy / "000" / "text.z" / "c" / "2" / "0" / "0" / "0" / "0"
    path.unlink()
    store = open_store(copy)
    assert np.isfinite(store["text.0.z"][:32]).all()
    with pytest.raises(StoreError, match=re.escape(f"{path} is missing")):
        store["text.0.z"][40]
    assert verify_store(copy) == ["000/text.z/c/2/0/0/0/0: it is missing"]


@pytest.mark.parametrize("where", [100, -100, -3])
def test_a_flipped_byte_is_found_and_mended(model, data, copy, whole, where):
    path = copy / "000" / "text.z" / "c" / "2" / "0" / "0" / "0" / "0"
    raw = bytearray(path.read_bytes())
    raw[where] ^= 1
    path.write_bytes(raw)
    store = open_store(copy)
    with pytest.raises(StoreError, match="rows 32 to 47 is damaged"):
        for site in ("text.0.z", "text.1.z"):
            store[site][32:48]
    assert verify_store(copy) == ["000/text.z/c/2/0/0/0/0: its content is not what was written"]
    verify_store(copy, repair=True)
    extract(model, data, **WHAT, out=copy, resume=True, progress=False)
    assert same(copy, whole) and verify_store(copy) == []


@pytest.mark.parametrize("name", ["zarr.json", "c/0/0/0/0/0"])
def test_a_file_cut_short_is_made_again(model, data, copy, whole, name):
    path = copy / "000" / "text.z" / name
    path.write_bytes(path.read_bytes()[:-1] if name[0] == "c" else b"")
    assert any("text.z" in problem for problem in verify_store(copy))
    verify_store(copy, repair=True)
    extract(model, data, **WHAT, out=copy, resume=True, progress=False)
    assert same(copy, whole)


def test_a_damaged_label_file_is_named(copy):
    path = copy / "000" / "units" / "000001.jsonl"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(StoreError, match=re.escape(f"{path} is missing or damaged")):
        _ = open_store(copy).labels


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sites": "text.*.z"}, "another sites"),
        ({"positions": "object,last"}, "another positions"),
        ({"dtype": "bfloat16"}, "another dtype: it has float32, this run bfloat16"),
        ({"batch_size": 8}, "another batch_size"),
        ({"missing": "nan"}, "another missing"),
    ],
)
def test_it_refuses_to_mix_settings(model, data, whole, change, says):
    with pytest.raises(StoreError, match=says):
        extract(model, data, **(WHAT | change), out=whole, resume=True, progress=False)


def test_it_refuses_another_model_or_data_set(model, data, whole):
    with pytest.raises(StoreError, match="another model weight_hash"):
        extract(tiny_model(seed=1), data, **WHAT, out=whole, resume=True, progress=False)
    with pytest.raises(StoreError, match=r"another data set: it has .*\(140 examples\).*\(10 exam"):
        extract(model, data[:10], **WHAT, out=whole, resume=True, progress=False)


def test_it_refuses_a_folder_that_is_no_store(model, data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="not empty and no activation store"):
        extract(model, data, **WHAT, out=tmp_path, resume=True, progress=False)
    with pytest.raises(StoreError, match="is no activation store: it has no manifest"):
        open_store(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(StoreError, match="reads format 1"):
        open_store(tmp_path)


def test_more_examples_can_be_appended(model, data, copy):
    more = load_examples("scenes:relation:3:9")
    with pytest.raises(StoreError, match=r"holds the example .* already"):
        extract(model, data[:2], **WHAT, out=copy, append=True, progress=False)
    store = extract(model, more, **WHAT, out=copy, append=True, progress=False)
    assert len(store) == 146 and list(store.labels["example"][140:]) == [e.id for e in more]
    alone = collect(model, more, WHAT["sites"], WHAT["positions"], progress=False)
    for site in store.sites:
        np.testing.assert_array_equal(store[site][140:], alone[site][:])
        mixed = store[site][[145, 0, 141], "object"]
        np.testing.assert_array_equal(mixed[[0, 2]], alone[site][[5, 1], "object"])
        values, rows = store[site].tokens("image_all")
        np.testing.assert_array_equal(
            values[rows == 143], alone[site].tokens("image_all")[0][108:144]
        )
    assert verify_store(copy) == []


def test_sweeping_up_leaves_files_that_are_not_ours(model, data, copy):
    mine = [copy / ".pre-commit-notes", copy / "part-000" / ".my-notes.txt"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    units = copy / open_store(copy).manifest.parts[0].name / "units"
    (units / ".000000-abc123.jsonl").write_text("left by a killed run")
    extract(model, data, **WHAT, out=copy, resume=True, progress=False)
    assert all(path.read_text() == "mine" for path in mine)
    assert not (units / ".000000-abc123.jsonl").exists()


def test_repair_deletes_nothing_outside_of_the_store(copy, tmp_path):
    outside = tmp_path / "precious.txt"
    outside.write_text("mine")
    marker = next(copy.rglob("units/*.json"))
    fields = json.loads(marker.read_text())
    for name in ("../precious.txt", str(outside)):
        marker.write_text(json.dumps({**fields, "files": {name: [1, "0"]}}))
        problems = verify_store(copy, repair=True)
        assert outside.read_text() == "mine" and "is damaged" in problems[0]
