import jaxtyping
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from lvlm_interp.probing import (
    LeaceEraser,
    LogisticProbe,
    MeanDifferenceProbe,
    MLPProbe,
    RidgeProbe,
)

PROBES = [LogisticProbe(), RidgeProbe(), MeanDifferenceProbe(), MLPProbe(hidden=8)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([*PROBES, LeaceEraser()])
def test_the_scikit_learn_contract(estimator, check, monkeypatch):
    # The contract passes values of any type to constructors; other tests check types.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    check(estimator)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=150)
    X = rng.standard_normal((150, 6)) * [1, 5, 0.2, 1, 1, 30] + 3
    X[np.arange(150), y] += [3.0, 15.0, 0.6][0] * np.array([1, 5, 0.2])[y]
    return X, np.array(["a", "b", "c"])[y], np.arange(150) // 3


@pytest.mark.parametrize("classes", ["abc", "ab"])
def test_logistic_is_scikit_learns_on_standardised_features(data, classes):
    X, y, _ = data
    keep = np.isin(y, list(classes))
    X, y = X[keep], y[keep]
    ours = LogisticProbe(C=0.3, tol=1e-8).fit(X, y)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, tol=1e-8)).fit(X, y)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-6)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)


def test_ridge_is_scikit_learns_on_standardised_features(data):
    X, y, _ = data
    ours = RidgeProbe(alpha=3).fit(X, y)
    theirs = make_pipeline(StandardScaler(), RidgeClassifier(alpha=3)).fit(X, y)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-9)


def test_the_mean_difference_is_the_nearest_mean(data):
    X, y, _ = data
    fitted = MeanDifferenceProbe().fit(X, y)
    means = np.stack([X[y == name].mean(axis=0) for name in "abc"])
    nearest = ((X[:, None] - means[None]) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(fitted.predict(X), np.array(list("abc"))[nearest])
    two = np.isin(y, ["a", "b"])
    binary = MeanDifferenceProbe().fit(X[two], y[two])
    np.testing.assert_array_equal(
        binary.predict(X[two]),
        np.array(["a", "b"])[((X[two, None] - means[:2]) ** 2).sum(-1).argmin(1)],
    )
    gap = means[1] - means[0]
    np.testing.assert_allclose(binary.direction_, gap / np.linalg.norm(gap))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("probe", [LogisticProbe(), RidgeProbe(), MLPProbe(hidden=4)], ids=str)
def test_balanced_weights_move_the_threshold_to_the_rare_class(probe):
    rng = np.random.default_rng(1)
    y = (rng.random(400) < 0.1).astype(int)
    X = rng.standard_normal((400, 3)) + y[:, None] * 0.8
    rare = {
        weight: (probe.set_params(class_weight=weight).fit(X, y).predict(X) == 1).mean()
        for weight in (None, "balanced")
    }
    assert rare["balanced"] > rare[None] + 0.1


@pytest.mark.parametrize("probe", PROBES[:3], ids=lambda probe: type(probe).__name__)
def test_probes_work_in_pipelines_and_cross_validation(data, probe):
    X, y, groups = data
    pipeline = make_pipeline(StandardScaler(), probe)
    predicted = cross_val_predict(pipeline, X, y, groups=groups, cv=GroupKFold(5))
    assert (predicted == y).mean() > 0.6
    names = probe.get_params()
    if "C" in names:
        search = GridSearchCV(probe, {"C": [0.01, 1.0]}, cv=3).fit(X, y)
        assert search.best_params_["C"] in (0.01, 1.0)


def test_many_classes_have_no_direction(data):
    X, y, _ = data
    with pytest.raises(AttributeError, match="3 classes have no one direction"):
        _ = LogisticProbe().fit(X, y).direction_


@pytest.mark.parametrize("probe", [LogisticProbe, RidgeProbe, MLPProbe])
def test_a_weight_for_each_class_is_taken_by_its_name(probe):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((80, 4)), np.array(["ring", "star"] * 40)
    sure = {
        name: probe(class_weight=weights).fit(X, y).predict(X)
        for name, weights in {
            "ring": {"ring": 1000.0, "star": 0.001},
            "star": {"ring": 0.001, "star": 1000.0},
        }.items()
    }
    assert all((said == name).all() for name, said in sure.items())
