"""The null: exact values, size without a relation, classes, the fast path beside the slow one."""

import numpy as np
import pandas as pd
import pytest
import torch

from lvlm_interp import alignment as al
from lvlm_interp.alignment.measures import METRICS, measure_of
from lvlm_interp.alignment.null import judge
from lvlm_interp.alignment.shifts import shifted_pairs
from lvlm_interp.errors import UsageError
from tests.alignment.test_metrics import related


def test_threshold_and_p_by_hand():
    null = np.array([0.1, 0.2, 0.3, 0.4])
    score, tau, p = judge(0.35, null, alpha=0.4)  # the ceil(.6 * 5) = 3rd of .1 .2 .3 .35 .4
    assert (score, tau, p) == (pytest.approx(0.05 / 0.7), 0.3, 2 / 5)
    assert judge(0.4, null)[2] == 2 / 5  # a tie counts
    assert judge(0.05, null)[0] == 0.0
    score, tau, p = judge(0.1, null + 0.1, best=0.0, sign=-1, alpha=0.4)  # a distance
    assert tau == pytest.approx(0.3) and p == 1 / 5 and score == pytest.approx(2 / 3)


def test_threshold_is_the_191st_of_201():
    null = np.linspace(0, 1, 200)
    assert judge(2.0, null, best=3.0)[1] == np.sort(np.append(null, 2.0))[190]


@pytest.mark.parametrize("name", METRICS)
def test_moving_the_index_is_permuting_the_rows(name):
    x, y = related(n=24, dx=6, dy=6)
    options = {"k": 4} if "knn" in name or name == "cknna" else {}
    measure = measure_of(name, **options)
    order = np.random.default_rng(0).permutation(24)
    moved = measure.value(measure.prepare(x), measure.move(measure.prepare(y), order))
    plain = getattr(al, name)(x, y[order], **options)
    assert moved == pytest.approx(plain, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cka", {"debiased": False}),
        ("cka", {"kernel": "rbf"}),
        ("cka", {"kernel": "rbf", "debiased": False, "sigma": "median_all"}),
        ("cka", {"variant": "platonic", "debiased": False}),
        ("rsa", {"compare": "cosine"}),
        ("rsa", {"compare": "pearson", "distance": "cosine"}),
        ("mutual_knn", {"variant": "platonic", "k": 3}),
    ],
)
def test_the_options_of_a_metric_reach_its_null(name, options):
    x, y = related(n=20)
    orders = al.permutations(20, 5)
    found = al.calibrated(name, x, y, orders=orders, **options)
    metric = getattr(al, name)
    assert found.raw == pytest.approx(metric(x, y, **options), abs=1e-9)
    expected = [metric(x, y[order], **options) for order in orders]
    np.testing.assert_allclose(found.null, expected, atol=1e-9)


def test_it_agrees_with_the_reference_package():
    reference = pytest.importorskip("calibrated_similarity")
    x, y = related(n=40, noise=2.5)
    orders = al.permutations(40, 60, seed=3)
    layers = [x[:, :3], x], [y[:, :4], y, y[:, 2:]]

    def in_turn():
        rows = iter(orders)
        return lambda n, device: torch.tensor(next(rows))

    for name in ("mutual_knn", "cka"):
        metric = getattr(al, name)
        as_tensors = [[torch.tensor(each) for each in side] for side in layers]
        score, p, tau = reference.calibrate(
            torch.tensor(x), torch.tensor(y), metric, K=60, perm_fn=in_turn()
        )
        ours = al.calibrated(metric, x, y, orders=orders)
        np.testing.assert_allclose([ours.score, ours.p, ours.threshold], [score, p, tau], atol=1e-6)
        score, p, tau = reference.calibrate_layers(*as_tensors, metric, K=60, perm_fn=in_turn())
        ours = al.calibrated(metric, *layers, orders=orders)
        np.testing.assert_allclose([ours.score, ours.p, ours.threshold], [score, p, tau], atol=1e-6)


def test_any_function_can_be_calibrated():
    x, y = related()
    found = al.calibrated(lambda a, b: float(abs(np.corrcoef(a[:, 0], b[:, 0])[0, 1])), x, y)
    assert 0 < found.p <= 1 and len(found.null) == 200 and found.n == 40


def by_class(n=240, k=6, seed=0):
    """Two sides that agree on the class alone."""
    rng = np.random.default_rng(seed)
    classes = np.arange(n) % k
    return *(8 * np.eye(k)[classes] + rng.standard_normal((2, n, k))), classes


def test_agreement_of_classes_alone_does_not_pass_inside_classes():
    x, y, classes = by_class()
    found = al.calibrated("mutual_knn", x, y, {"class": classes}, seed=1)
    assert found.p == 1 / 201 and found.score > 0.05
    inside = found.within["class"]
    assert inside.raw == found.raw and inside.p > 0.05 and inside.score < 0.03
    only = al.calibrated("mutual_knn", x, y, classes, seed=1)
    np.testing.assert_array_equal(only.null, inside.null)


def test_orders_stay_inside_their_classes():
    classes = np.array(["a", "b", "a", None, "b", "a", None])
    for order in al.permutations(7, 20, classes=classes):
        assert sorted(order) == list(range(7))
        assert all(str(classes[i]) == str(classes[j]) for i, j in enumerate(order))
    assert len(np.unique(al.permutations(7, 50), axis=0)) > 40


def test_labels_that_allow_a_null():
    n = 60
    labels = pd.DataFrame(
        {
            "example": [str(i) for i in range(n)],
            "n_objects": np.arange(n) % 3,
            "copy": np.arange(n) % 3,
            "trigger": np.arange(n) < 20,
            "rare": ["x"] * (n - 3) + ["a", "b", "c"],
            "constant": 1,
            "measured": np.linspace(0, 1, n),
        }
    )
    assert list(al.class_nulls(labels)) == ["n_objects", "trigger", "rare"]


@pytest.mark.parametrize("name", ["mutual_knn", "cka"])
def test_size_and_mean_without_a_relation(name):
    """A maximum over 2 x 2 layers, judged by one permutation for all; 100 seeded draws."""
    found = []
    for seed in range(100):
        rng = np.random.default_rng([seed, 7])
        common = rng.standard_normal((2, 40, 4))  # the layers of a side vary together
        x, y = (
            [common[side] + 0.5 * rng.standard_normal((40, 4)) for _ in range(2)]
            for side in range(2)
        )
        found.append(al.calibrated(name, x, y, n_permutations=19, seed=seed))
    rate = np.mean([each.p <= 0.05 for each in found])
    assert 0.01 <= rate <= 0.1
    assert np.mean([each.score for each in found]) < 0.01


@pytest.mark.parametrize("n", [60, 61])
@pytest.mark.parametrize("budget", [1, 10**9])
def test_the_fast_path_is_the_slow_one(n, budget):
    rng = np.random.default_rng(n)
    common = rng.standard_normal((n, 5))
    left, right = (
        [
            common @ rng.standard_normal((5, d)) + i * rng.standard_normal((n, d)) + 20
            for i in range(m)
        ]
        for d, m in ((16, 3), (9, 2))
    )
    found = shifted_pairs(
        lambda i: torch.tensor(left[i]),
        lambda i: torch.tensor(right[i]),
        n,
        sizes=(3, 2),
        k=4,
        n_permutations=12,
        seed=5,
        budget=budget,
    )
    draw = np.random.default_rng(5)
    order, orders = draw.permutation(n), []
    for shift in 1 + draw.permutation(n - 1)[:12]:
        moved = np.empty(n, dtype=int)
        moved[order] = order[(np.arange(n) + shift) % n]
        orders.append(moved)
    for name, metric in (("cka", al.cka), ("mutual_knn", lambda a, b: al.mutual_knn(a, b, 4))):
        raw = [[metric(x, y) for y in right] for x in left]
        null = [[[metric(x, y[o]) for y in right] for x in left] for o in orders]
        np.testing.assert_allclose(found[name].raw, raw, atol=1e-6)
        np.testing.assert_allclose(found[name].null, null, atol=1e-6)


def test_the_fast_path_says_what_it_cannot_do():
    with pytest.raises(UsageError, match="no fast null for 'rsa'"):
        shifted_pairs(
            lambda i: torch.zeros(9, 2),
            lambda i: torch.zeros(9, 2),
            9,
            sizes=(1, 1),
            metrics=["rsa"],
        )
    with pytest.raises(UsageError, match="at least 11 rows for k=10, got 9"):
        shifted_pairs(lambda i: torch.zeros(9, 2), lambda i: torch.zeros(9, 2), 9, sizes=(1, 1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: al.calibrated("ckb", x, x), "no metric 'ckb'"),
        (lambda x: al.calibrated("cka", x, x, depth=3), "cka has no such option"),
        (lambda x: al.calibrated("cka", x, x, n_permutations=0), "at least one permutation"),
        (lambda x: al.calibrated("cka", x, x, np.arange(9)), "every class has one member"),
        (lambda x: al.calibrated("cka", x, x, [1, 2]), "one class per row, got 2 for 9"),
        (lambda x: al.calibrated("cka", [x], [x[:5]]), "got 5 and 9 rows"),
    ],
)
def test_wrong_calls_are_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call(np.random.default_rng(0).standard_normal((9, 3)))
