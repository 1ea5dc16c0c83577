"""What a guess gets that never looks at the image, from counts that can be done by hand."""

import numpy as np
import pytest

from lvlm_interp.errors import UsageError
from lvlm_interp.probing import Place, cross_test, sweep
from lvlm_interp.probing.chance import chance_of
from lvlm_interp.probing.design import _check_folds
from tests.probing.conftest import activations

FOLDS = 4


def two_questions(n=160):
    """Half of the pairs are about red and blue, half about circle and square."""
    pair = np.arange(n) // 2
    truth = 2 * (pair % 2) + np.arange(n) % 2
    return truth, pair, pair % FOLDS


def test_truths_that_stand_in_one_pair_compete():
    truth, pair, fold = two_questions()
    assert chance_of(truth, pair, fold, None, FOLDS) == 0.5
    mixed = np.random.default_rng(0).permutation(truth)
    assert chance_of(mixed, pair, fold, None, FOLDS) == 0.25  # all four meet, over some pairs
    assert chance_of(truth, np.arange(160), fold, None, FOLDS) == 0.25  # no pairs


def test_what_the_words_of_the_question_tell_is_chance():
    rng = np.random.default_rng(1)
    asked = rng.integers(2, size=400)
    fold, alone = np.arange(400) % FOLDS, np.arange(400)
    truth = np.where(rng.random(400) < 0.8, asked, 1 - asked)  # one question is mostly yes
    names = np.array(["is there a dog ?", "is there a cat ?"])[asked]
    assert chance_of(truth, alone, fold, names, FOLDS) == pytest.approx(0.8, abs=0.05)
    free = rng.integers(2, size=400)
    assert chance_of(free, alone, fold, names, FOLDS) == 0.5


def test_a_probe_that_knows_the_question_alone_is_not_above_chance():
    truth, pair, _ = two_questions()
    names = [("red", "blue", "circle", "square")[each] for each in truth]
    data = activations([0.0], n_groups=80, d=64, extra={"truth": names})
    (site,) = data._pooled
    data._pooled[site][:, 0, 0] += 4 * (pair % 2)
    found = sweep(data, label="truth", controls=(), n_folds=FOLDS, progress=False)
    best = found.best().balanced_accuracy
    assert found.design.chance == 0.5 and best.estimate > 0.3
    assert best.low < found.design.chance and found.summary.pvalue.iloc[0] > 0.01


def test_scores_of_sites_in_other_units_are_ranked_within_folds():
    data = activations([2.0, 2.0], n_groups=150)
    first, second = data._pooled
    data._pooled[second][:] = 100 * data._pooled[first] + 3
    found = sweep(data, label="present", controls=(), probe="mean_difference", progress=False)
    area = found.best().auroc
    assert found.summary.auroc.to_numpy() == pytest.approx(area.estimate, abs=0.01)


def test_a_part_of_a_split_without_a_class_is_refused_in_a_sentence():
    codes, fold = np.array([0, 1, 0, 1, 0, 0]), np.array([0, 0, 1, 1, 2, 2])
    with pytest.raises(UsageError, match=r"Where fold 0 of 3 .* 'half' is 'b': give more groups"):
        _check_folds("half", ("a", "b"), codes, fold, 3)


def test_the_cosine_of_one_direction_in_independent_noise_is_one():
    held = 0
    for seed in range(3):
        first, second = (activations([3.0], n_groups=60, d=64, seed=2 * seed + k) for k in (0, 1))
        places = [Place(data, "text.0.resid_post", "last") for data in (first, second)]
        cosine = cross_test(*places, n_refits=16).cosine
        assert cosine.low <= cosine.estimate <= cosine.high
        held += cosine.high >= 0.95 and cosine.estimate > 0.8
    assert held >= 2
