import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lvlm_interp.probing import LeaceEraser


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    y = rng.integers(3, size=300)
    mixing = rng.standard_normal((8, 8))
    X = rng.standard_normal((300, 8)) @ mixing + 2 * np.eye(8)[:3][y] + 5
    return X, y


def test_nothing_linear_is_left_and_a_probe_did_learn_before(data):
    X, y = data
    before = LogisticRegression(max_iter=2000).fit(X, y)
    assert before.score(X, y) > 0.6
    eraser = LeaceEraser().fit(X, y)
    erased = eraser.transform(X)
    Z = np.eye(3)[y]
    covariance = (erased - erased.mean(0)).T @ (Z - Z.mean(0)) / len(X)
    assert np.abs(covariance).max() < 1e-10
    means = np.stack([erased[y == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(means, np.tile(X.mean(0), (3, 1)), atol=1e-9)
    after = LogisticRegression(max_iter=2000, C=1e6).fit(erased, y)
    prior = np.bincount(y) / len(y)
    np.testing.assert_allclose(after.predict_proba(erased), np.tile(prior, (300, 1)), atol=1e-3)
    assert eraser.rank_ == 2


def test_it_equals_the_oblique_projection(data):
    """Theorem 4.2: P has the kernel of Sigma_xz's columns and is Sigma_xx-orthogonal to them."""
    X, y = data
    Z = np.eye(3)[y]
    centred = X - X.mean(0)
    sxx, sxz = centred.T @ centred / len(X), centred.T @ (Z - Z.mean(0)) / len(X)
    columns = sxz[:, :2]  # the three sum to zero
    inverse = np.linalg.inv(sxx)
    removed = columns @ np.linalg.inv(columns.T @ inverse @ columns) @ columns.T @ inverse
    np.testing.assert_allclose(LeaceEraser().fit(X, y).removed_, removed, atol=1e-9)


def test_no_eraser_of_the_same_effect_changes_less(data):
    X, y = data
    eraser = LeaceEraser().fit(X, y)
    change = ((eraser.transform(X) - X) ** 2).sum()
    sxz = np.stack([X[y == k].mean(0) - X.mean(0) for k in range(2)], axis=1)
    q, _ = np.linalg.qr(sxz)
    orthogonal = X - (X - X.mean(0)) @ q @ q.T
    means = np.stack([orthogonal[y == k].mean(0) for k in range(3)])
    assert np.ptp(means, axis=0).max() < 1e-9
    assert change < ((orthogonal - X) ** 2).sum()


def test_it_erases_where_the_covariance_is_singular(data):
    X, y = data
    wide = np.hstack([X, X[:, :2], np.ones((300, 1))])
    erased = LeaceEraser().fit(wide, y).transform(wide)
    means = np.stack([erased[y == k].mean(0) for k in range(3)])
    assert np.ptp(means, axis=0).max() < 1e-8


def test_erasing_twice_is_erasing_once_and_the_edit_does_the_same(data):
    X, y = data
    eraser = LeaceEraser().fit(X, y)
    once = eraser.transform(X)
    np.testing.assert_allclose(eraser.transform(once), once, atol=1e-9)
    value = torch.tensor(X).reshape(100, 3, 8)
    np.testing.assert_allclose(eraser.edit()(value).reshape(300, 8).numpy(), once, atol=1e-9)
    at = torch.zeros(100, 3, dtype=torch.bool)
    at[:, 1] = True
    edited = eraser.edit(at)(value)
    assert torch.equal(edited[:, 0], value[:, 0])
    np.testing.assert_allclose(edited[:, 1].numpy(), once.reshape(100, 3, 8)[:, 1], atol=1e-9)
