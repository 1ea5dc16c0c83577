"""Layer against layer: values, nulls, intervals, stores, several models' activations."""

import numpy as np
import pytest
import torch

from lvlm_interp import alignment as al
from lvlm_interp.activations.extract import extract
from lvlm_interp.alignment.bundles import bundler_of, over_blocks
from lvlm_interp.data.sources import load_examples
from lvlm_interp.errors import UsageError
from tests.alignment.conftest import collected

BETWEEN = ("image_mean", "caption")


@pytest.fixture(scope="module")
def data():
    return collected()


@pytest.fixture(scope="module")
def found(data):
    return al.profile(
        data, BETWEEN, n_permutations=39, n_subsamples=10, metrics=["cka", "mutual_knn", "rsa"]
    )


def side(data, layer, position):
    return data[f"text.{layer}.resid_post"][:, position].astype(float)


def test_every_pair_is_the_metric_of_its_layers(data, found):
    for metric in ("cka", "mutual_knn", "rsa"):
        matrix = found.matrix(metric)
        assert list(matrix.index) == list(matrix.columns) == list(data.sites)
        for i, j in ((0, 1), (1, 1), (2, 0)):
            x, y = side(data, i, "image_mean"), side(data, j, "caption")
            assert matrix.iloc[i, j] == pytest.approx(getattr(al, metric)(x, y), abs=1e-6)


def test_the_layer_with_the_relation_is_found_and_noise_is_not(found):
    best = found.best.set_index("metric")
    assert (best["site"] == "text.1.resid_post").all()
    assert (best["p"] == 1 / 40).all() and (best["p_within"] == 1 / 40).all()
    assert (best["low"] < best["value"]).all() and (best["value"] < best["high"]).all()
    assert (best["threshold"] > found.table.frame.groupby("metric")["null"].mean()).all()
    assert "aligned beyond classes" in found.sentence and "39" not in found.sentence
    noise = al.profile(collected(noise=(90.0, 90.0), seed=1), BETWEEN, n_permutations=39)
    assert (noise.best["score"] == 0).all() and "no alignment is shown" in noise.sentence


def test_the_best_pair_is_judged_by_the_best_of_each_permutation(data):
    layers = [[side(data, i, p) for i in range(3)] for p in BETWEEN]
    orders = al.permutations(64, 50, 3)
    expected = al.calibrated("rsa", *layers, orders=orders)
    found = al.profile(data, BETWEEN, metrics=["rsa"], n_permutations=50, seed=3, classes=None)
    row = found.best.iloc[0]
    assert row["threshold"] == pytest.approx(expected.threshold, abs=1e-6)
    assert row["p"] == expected.p and row["within"] is None
    assert "no label allowed" in found.sentence


def test_classes_by_name_by_mapping_and_by_themselves(data, found):
    assert set(found.nulls["label"]) == {"n_objects", "wrong"} - {"wrong"}
    named = al.profile(data, BETWEEN, n_permutations=19, classes="n_objects", n_subsamples=0)
    own = {"mine": data.labels["n_objects"]}
    mapped = al.profile(data, BETWEEN, n_permutations=19, classes=own, n_subsamples=0)
    np.testing.assert_array_equal(named.nulls["p"], mapped.nulls["p"])
    assert set(mapped.nulls["label"]) == {"mine"} and named.table.frame["low"].isna().all()
    with pytest.raises(UsageError, match="no label 'n_object' here"):
        al.profile(data, BETWEEN, classes=["n_object"])


def test_agreement_of_a_class_alone_is_said_to_be_one():
    rng = np.random.default_rng(0)
    kind = np.arange(120) % 6
    data = collected(n=120, noise=(60.0,), extra={"kind": [f"k{k}" for k in kind]})
    site = next(iter(data._pooled))
    data._pooled[site] = (8 * np.eye(12)[kind][:, None] + rng.standard_normal((120, 2, 12))).astype(
        np.float32
    )
    found = al.profile(data, BETWEEN, metrics=["mutual_knn"], n_permutations=99)
    row = found.best.iloc[0]
    assert row["p"] == 0.01 and row["within"] == "kind" and row["p_within"] > 0.05
    assert "may be no more than that class" in found.sentence


def test_heads_are_layers_of_their_own():
    data = collected(heads=True)
    found = al.profile(data, BETWEEN, heads=True, metrics=["cka"], n_permutations=9, n_subsamples=0)
    frame = found.table.frame
    assert len(frame) == 81 and set(frame["head"]) == {0, 1, 2}
    one = frame[(frame["site"] == "text.1.z") & (frame["other_site"] == "text.2.z")]
    one = one[(one["head"] == 2) & (one["other_head"] == 0)]["value"].item()
    x = data["text.1.z"][:, "image_mean", 2]
    assert one == pytest.approx(al.cka(x, data["text.2.z"][:, "caption", 0]), abs=1e-6)
    whole = al.profile(data, BETWEEN, metrics=["cka"], n_permutations=9, n_subsamples=0)
    assert len(whole.table) == 9


def test_two_sets_of_activations_are_joined_by_example():
    x, y = collected(seed=1), collected(seed=1)
    order = np.random.default_rng(0).permutation(64)[:50]
    for site in y._pooled:
        y._pooled[site] = y._pooled[site][order]
    y._labels = y._labels.iloc[order].reset_index(drop=True)
    joined = al.profile(x, BETWEEN, y=y, n_permutations=9, n_subsamples=0)
    keep = np.sort(order)
    expected = al.cka(side(x, 1, "image_mean")[keep], side(x, 1, "caption")[keep])
    assert joined.n == 50
    assert joined.matrix("cka").iloc[1, 1] == pytest.approx(expected, abs=1e-6)
    y._labels["example"] = "other"
    with pytest.raises(UsageError, match="twice"):
        al.profile(x, BETWEEN, y=y)


def test_rows_without_a_position_are_left_out():
    data = collected()
    for values in data._pooled.values():
        values[:10, 1] = np.nan
    assert al.profile(data, BETWEEN, n_permutations=9, n_subsamples=0).n == 54
    for values in data._pooled.values():
        values[:62, 0] = np.nan
    with pytest.raises(UsageError, match="at least 4 examples with both positions, got 2 of 64"):
        al.profile(data, BETWEEN)
    with pytest.raises(UsageError, match="no site here has the position 'object'"):
        al.profile(data, ("object", "caption"))


def test_blocks_change_nothing():
    rng = np.random.default_rng(0)
    left, right = (torch.tensor(rng.standard_normal((m, 20, 5))) for m in (5, 4))
    for name in ("cka", "lcs_knn"):
        bundler = bundler_of(name, 3)
        tables = [
            over_blocks(
                bundler, left.__getitem__, right.__getitem__, (5, 4), bundler.table, n=20, budget=b
            )
            for b in (1, 10_000, 10**9)
        ]
        np.testing.assert_allclose(tables[0], tables[2], atol=1e-6)
        np.testing.assert_allclose(tables[1], tables[2], atol=1e-6)


def test_a_store_gives_what_memory_gives(model, tmp_path):
    examples = load_examples("scenes:object:12:1")
    options = {"sites": "text.*.resid_post,projector.out", "progress": False}
    options["positions"] = list(BETWEEN)
    store = extract(model, examples, out=tmp_path / "store", **options)
    found = al.profile(store, BETWEEN, k=3, n_permutations=19)
    assert len(found.table) == 2 * 3 * 2 and found.n == 24
    assert set(found.table.frame["tower"]) == {"projector", "text"}
    assert found.table.provenance["n_permutations"] == 19


@pytest.mark.slow
def test_intervals_cover():
    """The half-sample jackknife covers the mean over draws of n = 120 from one population."""
    mix = np.random.default_rng(7).standard_normal((6, 9))  # one population: the draws differ alone

    def draw(seed):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((120, 6))
        return x + 2, x @ mix + 0.7 * rng.standard_normal((120, 9)) - 1

    truth = np.mean([al.cka(*draw(1000 + s)) for s in range(200)])
    hits = []
    for seed in range(100):
        x, y = draw(seed)
        data = collected(n=120, noise=(1.0,))
        site = next(iter(data._pooled))
        y = np.concatenate([y, np.zeros((120, 3))], axis=1)
        both = np.stack([np.concatenate([x, np.zeros((120, 6))], axis=1), y], axis=1)
        data._pooled[site] = both.astype(np.float32)
        row = al.profile(data, BETWEEN, metrics=["cka"], n_permutations=9, classes=None, seed=seed)
        hits.append(row.best["low"].item() <= truth <= row.best["high"].item())
    assert 0.88 <= np.mean(hits) <= 0.99
