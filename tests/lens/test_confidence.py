import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tests_lens_models import scenes

from lvlm_interp.errors import UsageError
from lvlm_interp.lens import auroc, internal_confidence, localise, logit_lens

WORDS = ["ring", "circle", "square"]


def light_up(model, inputs, at, word, gain=200.0):
    """An edit behind the last layer that makes some positions say a word."""
    direction = model.hf.get_output_embeddings().weight[model.answer_id(word)].detach()

    def edit(value):
        new = value.clone()
        for row, positions in enumerate(at):
            new[row, positions] += gain * direction
        return new

    return {f"text.{model.n_layers - 1}.resid_post": edit}


def test_confidence_is_the_largest_lens_probability(model, examples, inputs):
    found = internal_confidence(model, examples, WORDS, batch_size=2).table
    lens = logit_lens(model, inputs, words=WORDS)
    part = found.select(metric="internal_confidence").frame
    for row, word in enumerate(WORDS):
        values = lens.prob(word)[:, lens.selection.rows == row]
        assert part["value"][row] == pytest.approx(values.max(), rel=1e-4)
        site, token = np.unravel_index(values.argmax(), values.shape)
        assert part["layer"][row] == site
        assert len(part["position"][row]) and token >= 0
    output = found.select(metric="output_probability").frame["value"]
    expected = model.last_logits(inputs).softmax(-1)[:, model.answer_id("yes")]
    np.testing.assert_allclose(output, expected.detach().numpy(), atol=1e-6)


def test_detection_separates_lit_from_unlit_words(model):
    some = scenes(12)
    inputs = model.prepare(some)
    lit = [tokens.image[:2] if row % 2 else [] for row, tokens in enumerate(inputs.tokens)]
    with model.edit(light_up(model, inputs, lit, "ring")):
        found = internal_confidence(model, some, ["ring"] * 12)
    table = found.detect([row % 2 == 1 for row in range(12)]).frame.set_index("score")
    assert table.loc["internal_confidence", "value"] == 1.0
    assert table.loc["shuffled", "low"] < 0.5 < table.loc["shuffled", "high"]
    with pytest.raises(UsageError, match="Expected 12 labels"):
        found.detect([True])


def test_auroc_against_sklearn():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 9, 80).astype(float), rng.random(80) > 0.4
    found = auroc(scores, labels, np.repeat(np.arange(20), 4))
    assert found.estimate == pytest.approx(roc_auc_score(labels, scores))
    assert found.low < found.estimate < found.high and found.n == 80
    with pytest.raises(UsageError, match="all are of one kind"):
        auroc(scores, np.ones(80, bool))


def test_localisation_of_planted_words(model):
    some = scenes(8)
    inputs = model.prepare(some)
    at = [
        tokens.positions("object", example.boxes)
        for tokens, example in zip(inputs.tokens, some, strict=True)
    ]
    with model.edit(light_up(model, inputs, at, "ring")):
        found = localise(model, some, ["ring"] * 8, batch_size=8)
    means = found.summary().set_index(["method", "metric"])["estimate"]
    assert means["logit lens", "pointing"] == 1.0
    assert means["logit lens", "auroc"] == 1.0
    assert means["logit lens", "iou"] > 0.95
    assert means["chance", "pointing"] == pytest.approx(4 / 36)
    # The plant is behind every attention pattern, so attention must know nothing of it.
    plain = localise(model, some, ["ring"] * 8, batch_size=8)
    for one, other in zip(found.heats["attention"], plain.heats["attention"], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)
    lens = plain.summary().set_index(["method", "metric"])["estimate"]
    assert lens["logit lens", "auroc"] < 0.9


def test_masks_and_boxes_of_whole_cells_agree(model):
    some = scenes(2)
    masks = []
    for example in some:
        mask = np.zeros((48, 48), bool)
        left, top, right, bottom = example.boxes["object"]
        mask[top:bottom, left:right] = True
        masks.append(mask)
    boxes = localise(model, some, ["ring", "red"])
    pixels = localise(model, some, ["ring", "red"], masks=masks)
    for one, other in zip(boxes.truths, pixels.truths, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.sum() == 4
    empty = [np.zeros((48, 48), bool)] * 2
    with pytest.raises(UsageError, match="covers 0 of 36 patches"):
        localise(model, some, ["ring", "red"], masks=empty)
