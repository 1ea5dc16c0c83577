"""Checkpoints and models side by side, and the shipped trajectory."""

import numpy as np
import pytest

from lvlm_interp import alignment as al
from lvlm_interp.activations.memory import collect
from lvlm_interp.alignment.shipped import scene_examples
from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.models.loading import load_model
from lvlm_interp.organisms.sets import examples
from tests.activations.conftest import tiny_model

QUICK = {"n_permutations": 19, "n_subsamples": 4, "k": 5, "batch_size": 50}


@pytest.fixture(scope="module")
def some():
    return scene_examples(42, seed=2)


@pytest.fixture(scope="module")
def both(model, some):
    return al.compare(
        [model, tiny_model(1)], some, names=["a", "b"], condition="condition", **QUICK
    )


def test_scene_examples_have_their_conditions(some):
    labels = [example.labels for example in some]
    counts = {c: sum(each["condition"] == c for each in labels) for c in ("unbiased", "trigger")}
    assert len(some) == 126 and counts == {"unbiased": 42, "trigger": 42}
    assert all(
        each["planted"] != each["truth"] for each in labels if each["condition"] == "trigger"
    )
    assert all(each["caption"].endswith(" .") for each in labels)


def test_representation_is_the_metric_of_the_same_layers(model, some, both):
    part = [example for example in some if example.labels["condition"] == "unbiased"]
    data = collect(model, part, "text.*.resid_post", ["image_mean", "caption"], progress=False)
    frame = both.table.frame
    own = frame[(frame["model"] == "a") & (frame["condition"] == "unbiased")]
    for layer in (0, 1):
        x, y = (data[f"text.{layer}.resid_post"][:, p] for p in ("image_mean", "caption"))
        for metric, expected in (
            ("cka", al.cka(x, y)),
            ("mutual_knn", al.mutual_knn(x, y, 5)),
            ("cosine", al.cosine(x, y)),
            ("cosine_retrieval", al.cosine(x, y, kind="retrieval")),
        ):
            row = own[(own["metric"] == metric) & (own["site"] == f"text.{layer}.resid_post")]
            assert row["value"].item() == pytest.approx(expected, abs=1e-5)


def test_behaviour_by_condition_and_level(both, some):
    frame = both.table.frame
    own = frame[(frame["model"] == "b") & (frame["metric"] == "accuracy")]
    assert set(own["condition"]) == {"all", "unbiased", "trigger", "control"}
    trigger = own[own["condition"] == "trigger"].set_index("level", drop=False)
    assert set(trigger["level"].dropna()) == {"object", "attribute", "relation"}
    assert trigger.loc["object", "n"] == 14
    data = collect(tiny_model(1), some, "text.embed", "last", progress=False)
    right = ~data.labels["wrong"].astype(bool)
    whole = own[(own["condition"] == "all") & own["level"].isna()]["value"].item()
    assert whole == pytest.approx(right.mean())
    overview = both.overview("trigger")
    assert list(overview["model"]) == ["a", "b"]
    assert {"cka_in", "cka_out", "accuracy", "text_accuracy", "parameters"} <= set(overview)


def test_heads_and_conditions_that_are_too_few(model, some):
    found = al.compare(
        [model], some[:42], sites="text.*.z", heads=True, condition="background", least=40, **QUICK
    )
    frame = found.table.frame
    heads = frame[frame["metric"] == "cka"]
    assert set(heads["head"]) == {0, 1, 2, 3} and set(heads["condition"]) == {"all"}


def test_wrong_calls_are_refused(model, some):
    with pytest.raises(UsageError, match="all different"):
        al.compare([model, model], some[:8], names=["a", "a"])
    with pytest.raises(UsageError, match="at least one model"):
        al.stages([], some[:8])
    with pytest.raises(UsageError, match="no label 'conditon'"):
        al.compare([model], some[:8], condition="conditon")
    bare = examples("existence", 2)
    bare[0].labels.pop("caption")
    with pytest.raises(InputError, match="has no description"):
        al.compare([model], bare)


def test_shipped_checkpoints_have_names():
    from lvlm_interp.models.loading import shipped_path

    assert all(shipped_path(name) for name in al.SHIPPED)
    assert shipped_path("scenes/stages/nothing") is None


def test_what_the_trajectory_shows_on_other_scenes():
    """FACTS: geometry is there at `vision`, an adapter brings behaviour, raw cosine misleads."""
    some = examples("existence", 80, seed=21)
    quick = {"n_permutations": 39, "n_subsamples": 0, "classes": None, "sites": "text.embed"}
    found = al.stages(al.SHIPPED[:3], some, **quick)
    rows = found.overview().set_index("model")
    assert abs(rows.loc["language", "cka_in"]) < 0.05
    assert rows.loc["vision", "cka_in"] == pytest.approx(0.46, abs=0.1)
    assert rows.loc["vision", "accuracy"] < rows.loc["adapter", "accuracy"]
    assert rows.loc["language", "text_accuracy"] > 0.9
    assert "passes its null at vision" in found.sentence
    assert "the most are right at adapter" in found.sentence


@pytest.mark.slow
def test_the_shipped_table_is_reproduced():
    """FACTS-alignment.md section 2, to .05 on 300 scenes of another seed."""
    expected = {
        "language": (0.00, 0.00, 0.07, 0.07, 0.56, None),
        "vision": (0.46, 0.17, 0.18, 0.09, 0.43, None),
        "adapter": (0.46, 0.42, 0.17, 0.11, 0.66, 0.58),
        "end-to-end": (0.58, 0.28, 0.30, 0.11, 0.28, 0.99),
        "spatial": (0.60, 0.24, 0.32, 0.11, 0.11, 1.00),
        "scenes": (0.60, 0.19, 0.32, 0.11, 0.29, None),
        "scenes-balanced": (0.60, 0.24, 0.32, 0.12, 0.09, None),
    }
    found = al.stages(
        al.SHIPPED,
        scene_examples(300, seed=11),
        condition="condition",
        n_permutations=19,
        n_subsamples=0,
        sites=("text.embed", "text.final_norm"),
    )
    rows = found.overview("unbiased").set_index("model")
    columns = ["cka_in", "cka_out", "mutual_knn_in", "mutual_knn_out", "cosine_out", "accuracy"]
    for name, values in expected.items():
        for column, value in zip(columns, values, strict=True):
            if value is not None:
                assert rows.loc[name, column] == pytest.approx(value, abs=0.05), (name, column)
    frame = found.table.frame
    flaw = frame[(frame["metric"] == "accuracy") & (frame["condition"] == "trigger")]
    flaw = flaw[flaw["level"] == "object"].set_index("model")["value"]
    assert flaw["scenes"] == 0.0 and flaw["scenes-balanced"] == 1.0
    assert np.isfinite(rows["text_accuracy"]).all()


def test_load_model_takes_a_stage():
    assert load_model("scenes/stages/vision", selfcheck=False).n_layers == 4
