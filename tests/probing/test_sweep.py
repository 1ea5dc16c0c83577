import numpy as np
import pytest
from sklearn.linear_model import Perceptron

from lvlm_interp.errors import SiteError, UsageError
from lvlm_interp.probing import sweep
from lvlm_interp.probing.design import MAIN, SHUFFLED, TYPES, design_of
from lvlm_interp.probing.fitting import Problem, fit_problem, probe_of
from lvlm_interp.probing.summary import summary_of
from tests.probing.conftest import activations


@pytest.fixture(scope="module")
def data():
    return activations([0.0, 6.0, 1.0])


@pytest.fixture(scope="module")
def found(data):
    return sweep(data, label="present", progress=False)


def test_planted_signal_is_found_and_the_controls_are_at_chance(found):
    by_site = found.summary.set_index("site")
    strong, none = by_site.loc["text.1.resid_post"], by_site.loc["text.0.resid_post"]
    assert strong.balanced_accuracy_low > 0.85 and strong.pvalue_adjusted < 1e-6
    assert none.balanced_accuracy_low < 0.5 < none.balanced_accuracy_high
    assert none.pvalue_adjusted > 0.05
    assert strong.selectivity_low > 0.2 and strong.auroc_low > 0.9
    assert (by_site.pvalue_adjusted >= by_site.pvalue).all()


def test_shuffled_labels_sit_at_chance_and_their_interval_covers_it():
    """Over seeds, at a site without signal and at one with it."""
    found = []
    for seed in range(12):
        data = activations([0.0, 5.0], n_groups=80, seed=seed)
        result = sweep(
            data,
            label="present",
            controls=("shuffled_labels",),
            grid={"C": [0.01]},
            seed=seed,
            progress=False,
        )
        found.append(result.summary[["shuffled", "shuffled_low", "shuffled_high"]].to_numpy())
    estimate, low, high = np.concatenate(found).T
    assert abs(estimate.mean() - 0.5) < 0.03
    assert ((low <= 0.5) & (high >= 0.5)).mean() >= 0.87  # of 24; the rate itself has its own test


def test_no_group_is_on_both_sides_of_a_fold(found):
    frame = found.table.frame
    assert (frame.groupby("group")["fold"].nunique() == 1).all()
    assert set(frame["fold"]) == set(range(5))
    counts = frame.groupby(["site", "control", "draw", "example"], dropna=False).size()
    assert (counts == 1).all() and set(frame["control"]) == {MAIN, SHUFFLED, TYPES}


def test_leaking_groups_would_flatter_the_probe():
    """Labels follow the group, features only identify it: rows leak, groups do not."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 4)
    labels = {"random": list(rng.integers(2, size=40)[groups])}
    data = activations([0.0], n_groups=80, d=60, extra=labels)
    data.labels["scene"] = [f"g{g}" for g in groups]
    (site,) = data._pooled
    data._pooled[site][:] = rng.standard_normal((40, 1, 60))[groups] * 5
    row_wise = sweep(data, label="random", group="example", controls=(), progress=False)
    grouped = sweep(data, label="random", group="scene", controls=(), progress=False)
    assert row_wise.summary.balanced_accuracy[0] > 0.7
    assert grouped.summary.balanced_accuracy[0] < 0.65


def test_a_sweep_without_a_group_raises(data):
    for group in (None, ""):
        with pytest.raises(UsageError, match="needs a group"):
            sweep(data, label="present", group=group)
    with pytest.raises(UsageError, match="no label 'scene'"):
        sweep(data, label="present", group="scene")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"label": "presnt"}, "did you mean 'present'"),
        ({"label": "present", "controls": ["shufled"]}, "no control 'shufled'"),
        ({"label": "present", "controls": ["untrained"]}, "needs its activations"),
        ({"label": "present", "probe": "svm"}, "no probe 'svm'; there are logistic"),
        ({"label": "present", "grid": {"D": [1]}}, "cannot take these settings"),
        ({"label": "present", "positions": ["object"]}, "no position 'object'.*they have last"),
        ({"label": "present", "where": "nope == 1"}, "is no condition on the labels"),
        ({"label": "present", "where": "group == 's0'"}, "in 1 groups only, and 5 folds"),
        ({"label": "present", "where": "present"}, "has 1 values"),
        ({"label": "example"}, "has 160 values"),
        ({"label": "present", "n_folds": 2}, "n_folds=2 is too few.*at least 3"),
        ({"label": "present", "n_shuffles": 1}, "n_shuffles=1 is too few.*at least 2"),
    ],
)
def test_wrong_requests_name_what_to_do(data, options, says):
    with pytest.raises(UsageError, match=says):
        sweep(data, progress=False, **options)


def test_an_unknown_site_raises(data):
    with pytest.raises(SiteError, match="nearest site"):
        sweep(data, label="present", sites="text.9.resid_post")


def test_the_control_task_has_one_label_per_type_shared_by_all_folds(data, found):
    codes, types = found.design.codes[TYPES], data.label("type")
    for kind in set(types):
        assert len(set(codes[types == kind])) == 1
    assert set(codes) == {0, 1}
    shuffled = found.design.codes[SHUFFLED]
    assert sorted(shuffled) == sorted(found.design.codes[MAIN])
    assert (shuffled != found.design.codes[MAIN]).mean() > 0.3


def test_a_probe_that_memorises_types_has_no_selectivity():
    data = activations([0.0], n_groups=150, d=12)
    types = data.label("type").to_numpy()
    (site,) = data._pooled
    data._pooled[site][:, 0] = np.eye(12)[[int(t[1:]) for t in types]]
    found = sweep(data, label="present", progress=False)
    row = found.summary.iloc[0]
    assert row.selectivity < -0.4 and row.balanced_accuracy < 0.6


def test_the_site_is_chosen_on_training_folds(data, found):
    best = found.best()
    assert (best.site, best.position) == ("text.1.resid_post", "last")
    assert set(best.per_fold) == {("text.1.resid_post", "last", None)}
    assert best.to_dict()["accuracy"]["estimate"] == pytest.approx(
        found.summary.set_index("site").balanced_accuracy["text.1.resid_post"]
    )
    assert found.best(sites="text.0.*").site == "text.0.resid_post"
    with pytest.raises(UsageError, match="No problem of this sweep"):
        found.best(positions="object")


def test_choosing_among_noise_does_not_look_like_knowledge():
    """The best of several noise sites is above chance on held-out rows; the nested choice not."""
    wins = []
    for seed in range(6):
        data = activations([0.0, 0.0, 0.0], n_groups=30, d=3, seed=seed)
        found = sweep(data, label="present", controls=(), progress=False, grid={"C": [0.1]})
        wins.append(
            (found.summary.balanced_accuracy.max(), found.best().balanced_accuracy.estimate)
        )
    flattering, honest = np.mean(wins, axis=0)
    assert honest < flattering and honest < 0.56


def test_heads_where_and_three_classes(model):
    data = activations([0.0, 4.0, 0.0])
    found = sweep(data, label="color", where="present", progress=False)
    assert found.design.chance == pytest.approx(1 / 3)
    assert set(found.summary.n) == {80} and found.summary.auroc.isna().all()
    assert found.best().auroc is None


def test_any_scikit_learn_classifier_is_a_probe(data):
    found = sweep(
        data, label="present", sites="text.1.*", probe=Perceptron(), controls=(), progress=False
    )
    assert found.summary.balanced_accuracy[0] > 0.8


@pytest.mark.parametrize("probe", ["ridge", "mean_difference"])
def test_probes_by_name(data, probe):
    found = sweep(data, label="present", sites="text.1.*", probe=probe, progress=False)
    assert found.summary.balanced_accuracy[0] > 0.9


@pytest.mark.slow
def test_two_processes_give_the_same_table(data, found):
    again = sweep(data, label="present", n_jobs=2, progress=False)
    assert again.table.frame.equals(found.table.frame)


def test_rows_without_the_position_are_left_out():
    data = activations([4.0, 4.0])
    first, _ = data._pooled
    data._pooled[first][:20] = np.nan
    found = sweep(data, label="present", progress=False)
    assert list(found.summary.n) == [140, 160]
    assert found.best().site == "text.1.resid_post"


def test_the_direction_is_the_planted_one(found):
    direction = found.direction("text.1.resid_post")
    assert direction.vector[0] > 0.9
    assert direction.gap == pytest.approx(6.0, abs=0.6)
    with pytest.raises(UsageError, match="has no probe at"):
        found.direction("text.1.resid_post", "object")


def test_every_shuffle_is_in_the_table_and_their_mean_in_the_summary(found):
    frame = found.table.frame
    shuffled = frame[(frame.control == SHUFFLED) & (frame.site == "text.1.resid_post")]
    assert sorted(shuffled.draw.unique()) == [0, 1, 2, 3, 4]
    assert frame[frame.control == MAIN].draw.isna().all()
    assert sorted(frame[frame.control == TYPES].draw.unique()) == [0, 1, 2]
    by_class = shuffled.groupby(["draw", "truth"])["value"].mean().groupby("draw").mean()
    row = found.summary.set_index("site").loc["text.1.resid_post"]
    assert row.shuffled == pytest.approx(by_class.mean())
    between = 1.96 * by_class.std(ddof=1) / 5**0.5  # the spread is in the interval, at least
    assert row.shuffled_high - row.shuffled >= 0.999 * between
    assert row.shuffled - row.shuffled_low == pytest.approx(row.shuffled_high - row.shuffled)
    assert found.best().shuffled.estimate == pytest.approx(by_class.mean())


@pytest.mark.slow
def test_the_interval_of_shuffled_labels_covers_chance():
    """On simulated sets without signal."""
    estimator, grid = probe_of("logistic", {"C": [0.1]})
    covered = []
    for seed in range(200):
        data = activations([0.0], n_groups=40, seed=seed)
        design = design_of(
            data, label="present", group="group", controls=(SHUFFLED,), n_folds=5, seed=seed
        )
        features = data["text.0.resid_post"].rows_at("last")
        problem = Problem(MAIN, "text.0.resid_post", "last", None, *features)
        outcome = fit_problem(problem, design, estimator, grid)
        interval = summary_of([outcome], design).iloc[0]
        covered.append(interval.shuffled_low <= 0.5 <= interval.shuffled_high)
    assert np.mean(covered) >= 0.93
