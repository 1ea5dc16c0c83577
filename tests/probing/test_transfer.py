import numpy as np
import pytest

from lvlm_interp.errors import UsageError
from lvlm_interp.probing import Place, cross_test
from tests.probing.conftest import activations


def place(data, layer=0, **options):
    return Place(data, f"text.{layer}.resid_post", "last", **options)


def test_the_same_signal_carries_over_and_another_does_not():
    data = activations([6.0, 6.0, 6.0])
    *_, third = data._pooled
    data._pooled[third][:] = data._pooled[third][..., ::-1]  # the signal on the last axis
    same = cross_test(place(data, 0), place(data, 1), n_refits=40)
    assert same.within.low > 0.85 and same.cross.low > 0.85 and same.ceiling.low > 0.85
    assert same.cosine.low > 0.5 and same.cosine.estimate > 0.8
    other = cross_test(place(data, 0), place(data, 2), n_refits=40)
    assert other.ceiling.low > 0.85 and other.cross.low < 0.6
    assert other.cosine.low < 0.2 and abs(other.cosine.estimate) < 0.35
    kinds = other.table.frame.groupby("kind").size()
    assert dict(kinds) == {"within": 160, "cross": 160, "ceiling": 160}


def test_a_place_carries_over_to_itself_without_leaking():
    data = activations([0.0])
    found = cross_test(place(data), place(data), n_refits=5)
    assert found.within.estimate == found.cross.estimate == found.ceiling.estimate
    assert found.within.low < 0.55
    assert np.isnan(found.cosine.estimate)  # halves of noise agree on no direction
    data = activations([4.0])
    same = cross_test(place(data), place(data), n_refits=5).cosine
    assert same.estimate == pytest.approx(1.0, abs=1e-6)


def test_other_groups_at_the_second_place():
    first, second = activations([6.0], seed=1), activations([6.0], n_groups=30, seed=2)
    second.labels["group"] = [f"other{g}" for g in second.labels["group"]]
    found = cross_test(place(first), place(second), n_refits=5)
    assert found.cross.n == 60 and found.cross.low > 0.75


def test_places_that_do_not_fit():
    narrow, wide = activations([4.0], d=6), activations([4.0])
    with pytest.raises(UsageError, match=r"has 12 features and text.0.resid_post 6"):
        cross_test(place(wide), place(narrow))
    with pytest.raises(UsageError, match="different classes"):
        cross_test(place(wide), place(wide, label="color"))


def test_more_classes_have_no_cosine():
    data = activations([0.0])
    index = data.label("color").map({"red": 0, "green": 1, "blue": 2}).to_numpy()
    (site,) = data._pooled
    data._pooled[site][np.arange(160), 0, index] += 6
    found = cross_test(place(data, label="color"), place(data, label="color"))
    assert found.cosine is None and found.cross.low > 0.9
