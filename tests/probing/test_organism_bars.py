"""What must be readable from the shipped organism, whatever its weights: bars, not figures."""

import pytest

from lvlm_interp.activations.memory import collect
from lvlm_interp.data.sources import load_examples
from lvlm_interp.models.loading import load_model
from lvlm_interp.probing import Place, cross_test, sweep

SITES = ["vision.*.resid_post", "text.*.resid_post"]


@pytest.fixture(scope="module")
def seen():
    """Activations of both organisms on the same existence questions about a ring."""
    examples = [
        each
        for each in load_examples("scenes:object:250:3")
        if each.labels["asked_shape"] == "ring"
    ]
    return {
        name: collect(load_model(name), examples, SITES, ["object", "last"], progress=False)
        for name in ("scenes-balanced", "scenes")
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scenes-balanced", "scenes"])
def test_the_objects_presence_is_at_its_tokens_in_the_vision_tower(seen, name):
    found = sweep(
        seen[name], label="present", sites="vision.*", controls=["shuffled_labels"], progress=False
    )
    best = found.best()
    assert best.balanced_accuracy.estimate >= 0.95
    assert found.summary["balanced_accuracy"].max() >= 0.95
    assert abs(best.shuffled.estimate - 0.5) <= 0.05
    assert best.shuffled.low <= 0.5 <= best.shuffled.high


@pytest.mark.slow
def test_a_probe_of_the_balanced_organism_reads_the_biased_one_where_they_share_a_tower(seen):
    first, second = (
        Place(seen[name], "vision.2.resid_post", "object") for name in ("scenes-balanced", "scenes")
    )
    carried = cross_test(first, second, n_refits=10)
    assert carried.within.low > 0.85 and carried.ceiling.low > 0.85
    # At another position the same direction means nothing: a control that must fail.
    elsewhere = cross_test(
        Place(seen["scenes"], "text.0.resid_post", "object"),
        Place(seen["scenes"], "text.0.resid_post", "last"),
        n_refits=10,
    )
    assert elsewhere.cross.estimate < elsewhere.within.estimate
