"""Closed forms, invariances, and implementations that share no code with ours."""

import math
import re
from functools import cache

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from lvlm_interp import alignment as al
from lvlm_interp.alignment.neighbours import nearest
from lvlm_interp.errors import UsageError

X = np.array([(1, 0), (2, 1), (0, 3), (-1, 1), (-2, -2)], dtype=float)
Y = np.array([(1, 1, 0), (0, 2, 1), (3, 0, 1), (-1, 0, 0), (0, -2, -1)], dtype=float)


def circle(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


A, B = circle(0, 10, 25, 90, 120, 200), circle(0, 25, 10, 90, 200, 120)


def related(n=40, dx=6, dy=9, noise=0.7, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dx))
    y = x @ rng.standard_normal((dx, dy)) + noise * rng.standard_normal((n, dy))
    return x + 2, y - 1


CLOSED = {
    "mutual k 1": (lambda: al.mutual_knn(A, B, 1), 0),
    "mutual k 2": (lambda: al.mutual_knn(A, B, 2), 5 / 6),
    "cycle k 1": (lambda: al.cycle_knn(A, B, 1), 1 / 3),
    "cycle k 2": (lambda: al.cycle_knn(A, B, 2), 1),
    "cka, circle": (lambda: al.cka(A, B, debiased=False), 0.832177),
    "debiased cka, circle": (lambda: al.cka(A, B), 0.906758),
    "cka": (lambda: al.cka(X, Y, debiased=False), 0.756719),
    "hsic": (lambda: al.hsic(X @ X.T, Y @ Y.T), 2.066667),
    "hsic xx": (lambda: al.hsic(X @ X.T, X @ X.T), 8.666667),
    "hsic yy": (lambda: al.hsic(Y @ Y.T, Y @ Y.T), 6.133333),
    "debiased cka": (lambda: al.cka(X, Y), 0.283463),
    "procrustes": (lambda: al.procrustes(X, Y), 0.637464),
    "angular": (lambda: al.procrustes(X, Y, angular=True), 0.648783),
    "rsa": (lambda: al.rsa(X, Y), 0.591357),
    "rbf cka": (lambda: al.cka(X, Y, "rbf", debiased=False), 0.819825),
    "uniformity": (lambda: al.alignment_uniformity(X, X).uniformity_x, -2.188848),
    "frechet": (
        lambda: al.frechet_gaussians(
            np.array([1.0, 0]), np.diag([4.0, 1]), np.zeros(2), np.diag([1.0, 9])
        ),
        6,
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name):
    function, expected = CLOSED[name]
    assert function() == pytest.approx(expected, abs=1e-6)


INVARIANT = {
    "mutual_knn": lambda x, y: al.mutual_knn(x, y, 5),
    "cka": al.cka,
    "cka biased": lambda x, y: al.cka(x, y, debiased=False),
    "rbf": lambda x, y: al.cka(x, y, "rbf"),
    "svcca": lambda x, y: al.svcca(x, y, threshold=1.0),
    "rsa": al.rsa,
    "procrustes": lambda x, y: 1 - al.procrustes(x, y),
}


@pytest.mark.parametrize("name", INVARIANT)
def test_rotations_and_scales_change_nothing_and_a_copy_is_perfect(name):
    metric = INVARIANT[name]
    x, y = related()
    rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    assert metric(x, y) == pytest.approx(metric(3 * x @ rotation, y), abs=1e-9)
    assert metric(x, 0.5 * x @ rotation) == pytest.approx(1, abs=1e-6)
    order = np.random.default_rng(2).permutation(len(x))
    assert metric(x[order], y[order]) == pytest.approx(metric(x, y), abs=1e-9)


@pytest.mark.parametrize("name", ["cka", "rbf", "svcca", "rsa", "procrustes"])
def test_means_change_nothing(name):
    x, y = related()
    assert INVARIANT[name](x + 7, y) == pytest.approx(INVARIANT[name](x, y), abs=1e-9)


def test_numpy_and_torch_are_one():
    x, y = related()
    for metric in (al.mutual_knn, al.cka, al.rsa):
        assert metric(torch.tensor(x), torch.tensor(y)) == metric(x, y)


def test_noise_wider_than_long_fools_biased_cka_alone():
    rng = np.random.default_rng(0)
    pairs = [rng.standard_normal((2, 60, 128)) for _ in range(8)]
    biased = np.mean([al.cka(x, y, debiased=False) for x, y in pairs])
    assert biased == pytest.approx(128 / (128 + 60), abs=0.01)
    assert np.mean([al.cka(x, y) for x, y in pairs]) == pytest.approx(0, abs=0.02)
    assert np.mean([al.rsa(x, y, compare="cosine") for x, y in pairs]) > 0.97
    assert abs(np.mean([al.rsa(x, y) for x, y in pairs])) < 0.1


def brute_neighbours(x, k, unit):
    x = x / np.linalg.norm(x, axis=1, keepdims=True) if unit else x
    return [
        sorted((j for j in range(len(x)) if j != i), key=lambda j: -(x[i] @ x[j]))[:k]
        for i in range(len(x))
    ]


@pytest.mark.parametrize("variant", ["paper", "platonic"])
def test_neighbour_metrics_are_those_of_plain_loops(variant):
    (x, y), k = related(), 5
    a, b = (brute_neighbours(side, k, variant == "paper") for side in (x, y))
    pairs = list(zip(a, b, strict=True))
    options = {"k": k, "variant": variant}
    mutual = np.mean([len(set(p) & set(q)) / k for p, q in pairs])
    assert al.mutual_knn(x, y, **options) == pytest.approx(mutual, abs=1e-12)
    assert al.overlaps(x, y, **options).mean() == pytest.approx(mutual, abs=1e-12)
    cycle = np.mean([any(i in a[j] for j in b[i]) for i in range(len(x))])
    assert al.cycle_knn(x, y, **options) == pytest.approx(cycle, abs=1e-12)
    lcs = np.mean([common(tuple(p), tuple(q)) for p, q in pairs])
    assert al.lcs_knn(x, y, **options) == pytest.approx(lcs, abs=1e-12)
    edit = np.mean([1 - edits(tuple(p), tuple(q)) / k for p, q in pairs])
    assert al.edit_knn(x, y, **options) == pytest.approx(edit, abs=1e-12)


@cache
def common(p, q):
    if not p or not q:
        return 0
    if p[0] == q[0]:
        return 1 + common(p[1:], q[1:])
    return max(common(p[1:], q), common(p, q[1:]))


@cache
def edits(p, q):
    if not p or not q:
        return len(p) + len(q)
    return min(edits(p[1:], q[1:]) + (p[0] != q[0]), edits(p[1:], q) + 1, edits(p, q[1:]) + 1)


def loop_hsic(k, l):  # noqa: E741
    """Song et al. 2012, eq. 4: the mean over tuples of distinct rows, in plain loops."""
    n = len(k)
    off = [(i, j) for i in range(n) for j in range(n) if i != j]
    pairs = sum(k[i, j] * l[j, i] for i, j in off) / (n * (n - 1))
    quads = triples = 0.0
    for i, j in off:
        for q in range(n):
            if q in (i, j):
                continue
            triples += k[i, j] * l[j, q]
            quads += k[i, j] * sum(l[q, r] for r in range(n) if r not in (i, j, q))
    quads /= n * (n - 1) * (n - 2) * (n - 3)
    return pairs + quads - 2 * triples / (n * (n - 1) * (n - 2))


def test_the_debiased_hsic_is_the_mean_over_distinct_tuples():
    k, l = np.random.default_rng(3).standard_normal((2, 7, 7))  # noqa: E741
    k, l = k + k.T, l + l.T  # noqa: E741
    assert al.hsic(k, l) == pytest.approx(loop_hsic(k, l), abs=1e-12)


def formula(k, l):  # noqa: E741
    """Song et al. 2012, eq. 5, written as traces and quadratic forms."""
    n, one = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    both = np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (both - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


@pytest.mark.parametrize("variant", ["paper", "platonic"])
@pytest.mark.parametrize("debiased", [True, False])
def test_cknna_by_its_masks(variant, debiased):
    (x, y), k = related(n=14), 4
    if variant == "paper":
        x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y))
    n = len(x)
    masks = []
    for side in (x, y):
        gram = side @ side.T
        mask = np.zeros((n, n))
        for i in range(n):
            others = [j for j in range(n) if j != i or not debiased]
            for j in sorted(others, key=lambda j: -gram[i, j])[:k]:
                mask[i, j] = 1
        masks.append((mask, gram))
    (mx, gx), (my, gy) = masks

    def measure(a, b):
        if debiased:
            return formula(a, b)
        centre = np.eye(n) - 1 / n
        return np.trace(a @ centre @ b @ centre)

    both = measure(mx * my * gx, mx * my * gy)
    own = measure(mx * gx, mx * gx) * measure(my * gy, my * gy)
    expected = both / (math.sqrt(own) + (1e-6 if variant == "platonic" else 0))
    assert al.cknna(x, y, k, debiased=debiased, variant=variant) == pytest.approx(
        expected, abs=1e-9
    )


def test_the_platonic_epsilon_eats_small_features_and_only_there():
    x, y = related(n=30)
    small = 1e-3 * x, 1e-3 * y
    assert al.cka(*small) == pytest.approx(al.cka(x, y), abs=1e-9)
    assert al.cka(*small, variant="platonic") < 0.5 * al.cka(x, y)
    assert al.cka(x, y, variant="platonic") == pytest.approx(al.cka(x, y), abs=1e-6)


def test_sigma_rules():
    x, y = related(n=20)
    distances = ((x[:, None] - x[None]) ** 2).sum(-1)
    for rule, spread in (
        ("median", np.median(distances[distances > 0])),
        ("median_all", np.median(distances)),
        (1.7, 1.7**2),
    ):
        found = al.kernel_matrix(x, "rbf", sigma=rule)
        np.testing.assert_allclose(found, np.exp(-distances / (2 * spread)), atol=1e-12)
    rows = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(
        al.kernel_matrix(x, "rbf", sigma="platonic"), np.exp(rows @ rows.T - 1), atol=1e-12
    )
    assert len({round(al.cka(x, y, "rbf", sigma=s), 6) for s in ("median", "median_all", 1.7)}) == 3


def test_platonic_features_are_clamped_once_over_all_layers():
    features = np.random.default_rng(0).standard_normal((12, 3, 5))
    limit = np.quantile(np.abs(features).reshape(12, -1), 0.95, axis=1).mean()
    expected = features.clip(-limit, limit)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(al.platonic_features(features), expected)
    limit = np.sort(np.abs(features), axis=None)[int(0.95 * features.size)]
    exact = al.platonic_features(features, exact=True)
    clipped = features.clip(-limit, limit)
    np.testing.assert_allclose(exact, clipped / np.linalg.norm(clipped, axis=-1, keepdims=True))


def test_svcca_is_the_generalised_eigenvalue_problem():
    from scipy.linalg import eigh

    x, y = related(n=80, noise=2.0)
    x, y = x - x.mean(0), y - y.mean(0)
    sxx, syy, sxy = x.T @ x, y.T @ y, x.T @ y
    values = eigh(sxy @ np.linalg.solve(syy, sxy.T), sxx, eigvals_only=True)
    expected = np.sqrt(values.clip(0)).mean()
    assert al.svcca(x, y, threshold=1.0) == pytest.approx(expected, abs=1e-9)
    assert al.svcca(x, y, variant="platonic", dims=6) > 0


def test_rsa_agrees_with_rsatoolbox():
    rsatoolbox = pytest.importorskip("rsatoolbox")
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm, compare

    assert rsatoolbox is not None
    x, y = related(n=25)
    rdms = [calc_rdm(Dataset(side), method="euclidean") for side in (x, y)]
    assert al.rsa(x, y) == pytest.approx(compare(*rdms, method="spearman").item(), abs=1e-6)
    for ours, theirs in (("pearson", "corr"), ("cosine", "cosine")):
        found = al.rsa(x, y, distance="sqeuclidean", compare=ours)
        assert found == pytest.approx(compare(*rdms, method=theirs).item(), abs=1e-6)


def test_procrustes_is_the_distance_after_the_best_rotation():
    from scipy.linalg import orthogonal_procrustes

    x, y = related(n=30, dx=6, dy=6)
    x, y = (side - side.mean(0) for side in (x, y))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    rotation, _ = orthogonal_procrustes(x, y)
    assert al.procrustes(x, y) == pytest.approx(np.linalg.norm(x @ rotation - y), abs=1e-9)
    padded = np.concatenate([x, np.zeros((30, 3))], axis=1)
    assert al.procrustes(padded, y) == pytest.approx(al.procrustes(x, y), abs=1e-9)
    assert al.procrustes(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_agrees_with_the_matrix_square_root():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 5)) * 2, rng.standard_normal((50, 5)) + 1
    sx, sy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(sx @ sy).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sx + sy - 2 * root)
    assert al.frechet(x, y) == pytest.approx(expected, abs=1e-9)
    assert al.frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_mir_scales_by_the_text_and_replaces_outliers():
    rng = np.random.default_rng(0)
    vision = [rng.standard_normal((60, 4)) + layer for layer in range(3)]
    text = [2 * rng.standard_normal((70, 4)) for _ in range(3)]
    plain = sum(
        al.frechet(v / s, t / s)
        for v, t in zip(vision, text, strict=True)
        for s in [np.linalg.norm(t, axis=1).mean()]
    )
    assert al.mir(vision, text) == pytest.approx(math.log10(plain), abs=0.1)
    doubled = al.mir([9 * v for v in vision], [9 * t for t in text])
    assert doubled == pytest.approx(al.mir(vision, text), abs=1e-9)
    spiked = [v.copy() for v in vision]
    spiked[0][5] *= 1000
    assert al.mir(spiked, text) == pytest.approx(al.mir(vision, text), abs=0.1)


def test_raw_cosine_follows_the_means_and_not_the_pairing():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 50, 8)) + 4
    assert al.cosine(x, y) > 0.9 and al.cosine(x, y, kind="wrong") > 0.9
    assert abs(al.cosine(x, y, kind="centred")) < 0.15
    assert al.cosine(x, y, kind="retrieval") < 0.2
    near = x + 0.1 * rng.standard_normal(x.shape)
    assert al.cosine(x, near, kind="retrieval") == 1.0
    assert al.modality_gap(x, x) == 0.0 and al.modality_gap(x, -x) > 1.8


def test_uniformity_counts_pairs_once_or_all():
    found = al.alignment_uniformity(A, B)
    chord = np.linalg.norm(A - B, axis=1)
    assert found.alignment == pytest.approx((chord**2).mean(), abs=1e-12)
    everything = al.alignment_uniformity(A, B, variant="resi").uniformity_x
    n = len(A)
    expected = math.log((n + n * (n - 1) * math.exp(found.uniformity_x)) / n**2)
    assert everything == pytest.approx(expected, abs=1e-12)


def test_local_cka_is_cka_of_the_base_with_one_pair_more():
    x, y = related(n=24)
    base, query = slice(0, 18), slice(18, 24)
    table = al.local_cka(x[base], y[base], x[query], y[query])
    for s, t in ((0, 0), (2, 5)):
        left = np.concatenate([x[query][s : s + 1], x[base]])
        right = np.concatenate([y[query][t : t + 1], y[base]])
        expected = al.cka(left, right, "rbf", debiased=False)
        assert table[s, t] == pytest.approx(expected, abs=1e-9)


def test_matching_finds_a_rotated_copy():
    x, _ = related(n=30)
    y = x @ np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0]
    base, query = slice(0, 20), slice(20, 30)
    table = al.local_cka(x[base], y[base], x[query], y[query])
    assert al.matched(table) == al.matched(table, how="assignment") == 1.0
    found = al.qap(x[base], y[base], x[query], y[query], n_starts=3)
    np.testing.assert_array_equal(found, np.arange(10))


def test_vocabulary_against_words_of_other_places():
    words = np.eye(6)
    lies = np.array([0, 1, 2, 3, 4, 5, 0, 1])
    tokens = words[lies] + 5
    named = np.eye(6, dtype=bool)[lies]
    found = al.vocabulary(tokens, words, named)
    assert found.share == 1.0 and found.n == 8
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    expected = np.mean([lies[i] == lies[j] for i, j in pairs])
    assert found.control == pytest.approx(expected, abs=1e-12)
    mixed = words[[0]] * 2 + words[[3]]
    both = np.array([[False, False, False, True, False, False]])
    assert al.vocabulary(mixed, words, both, how="lens").share == 0.0
    pursuit = al.vocabulary(mixed, words, both, how="pursuit", n_words=2)
    assert pursuit.share == 1.0 and pursuit.chosen.tolist() == [[0, 3]]


def test_pursuit_fits_all_words_anew():
    from sklearn.linear_model import OrthogonalMatchingPursuit

    rng = np.random.default_rng(0)
    words, tokens = rng.standard_normal((20, 8)), rng.standard_normal((5, 8))
    atoms = words / np.linalg.norm(words, axis=1, keepdims=True)
    found = al.vocabulary(tokens, words, np.zeros((5, 20), bool), how="pursuit", n_words=3).chosen
    for token, chosen in zip(tokens, found, strict=True):
        model = OrthogonalMatchingPursuit(n_nonzero_coefs=3, fit_intercept=False).fit(
            atoms.T, token
        )
        assert set(np.flatnonzero(model.coef_)) == set(chosen)


def test_clip_score_in_the_units_of_the_paper_and_of_torchmetrics():
    images, texts = circle(0, 0, 0), circle(60, 90, 180)
    assert al.clip_score(images, texts) == pytest.approx(2.5 * 0.5 / 3, abs=1e-9)
    assert al.clip_score(images, texts, variant="torchmetrics") == 0.0
    assert al.clip_score(images[:2], texts[:2], variant="torchmetrics") == pytest.approx(25)


def test_clip_embeddings_of_a_model_with_a_text_tower():
    from PIL import Image
    from transformers import BatchFeature, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    side = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    side["num_attention_heads"] = 2
    config = CLIPConfig(
        text_config=CLIPTextConfig(vocab_size=40, eos_token_id=2, **side).to_dict(),
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **side).to_dict(),
        projection_dim=8,
    )
    torch.manual_seed(0)
    clip, seen = CLIPModel(config).eval(), []

    def processor(images, text, **_):
        seen.extend(text)
        pixels = torch.stack([torch.tensor(np.array(i)).permute(2, 0, 1) / 255 for i in images])
        ids = torch.tensor([[3, 4 + len(t) % 30, 2] for t in text])
        return BatchFeature({"pixel_values": pixels.float(), "input_ids": ids})

    pictures = [Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue")]
    images, texts = al.clip_embeddings(clip, processor, pictures, ["a", "bb", "ccc"], batch_size=2)
    assert images.shape == texts.shape == (3, 8)
    assert seen[0] == "A photo depicts a"
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)


@given(st.integers(4, 12), st.integers(1, 3), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_neighbour_lists_hold_k_others(n, k, seed):
    lists = nearest(np.random.default_rng(seed).standard_normal((n, 3)), k)
    assert lists.shape == (n, k)
    assert all(len(set(row)) == k and i not in row for i, row in enumerate(lists))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: al.cka(X, Y[:3]), "got 5 and 3 rows"),
        (lambda: al.cka(X[0], Y), "matrix of examples by features"),
        (lambda: al.cka(X * np.nan, Y), "got 5 rows of x with NaN"),
        (lambda: al.cka(X[:3], Y[:3]), "at least 4 pairs"),
        (lambda: al.cka(X, Y, "poly"), "'linear' or 'rbf'"),
        (lambda: al.cka(X, Y, "rbf", sigma="mean"), "sigma must be"),
        (lambda: al.cka(X, Y, variant="other"), "'paper' or 'platonic'"),
        (lambda: al.mutual_knn(X, Y, 5), "1 <= k <= n - 1 = 4"),
        (lambda: al.mutual_knn(X, Y, 2, variant="other"), "variant must be"),
        (lambda: al.cknna(X, Y, 1), "k of at least 2"),
        (lambda: al.cosine(X, Y), "one space, got widths 2 and 3"),
        (lambda: al.cosine(X, X, kind="other"), "kind must be"),
        (lambda: al.rsa(X, Y, compare="other"), "compare must be"),
        (lambda: al.svcca(X, Y, threshold=0), "0 < threshold <= 1"),
        (lambda: al.mir([], []), "got 0 and 0"),
        (lambda: al.frechet(X, Y), "one space"),
        (lambda: al.vocabulary(X, Y, np.zeros((5, 5), bool)), "in one space"),
        (lambda: al.matched(np.eye(2), how="other"), "how must be"),
        (lambda: al.clip_score(X, X, variant="other"), "variant must be"),
    ],
)
def test_what_cannot_be_measured_is_said(call, words, monkeypatch):
    # As users run it: here the annotations would refuse an unknown word before we do.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UsageError, match=re.escape(words)):
        call()
