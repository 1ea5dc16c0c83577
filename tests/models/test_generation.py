"""Generation with edits, caches per step, knockout, and what cannot be generated from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lvlm_interp.errors import InputError
from lvlm_interp.models.loading import load_model
from lvlm_interp.organisms import pairs as scenes
from lvlm_interp.patching import knocked_out
from tests.models import zoo
from tests.models.test_families import QUESTION, model_of, picture

EXACT: Any = {"atol": 1e-5, "rtol": 1e-5}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("name", zoo.tiered(zoo.BUILDERS))
def test_each_step_has_its_cache(name: str) -> None:
    """Cache i is what a forward over everything that was said holds at that position."""
    model = model_of(name)
    inputs = model.prepare([(picture(), QUESTION)])
    more = {"max_new_tokens": 3, "eos_token_id": None, "return_dict_in_generate": True}
    sites = ["text.*.resid_post", "text.0.pattern"]
    out, caches = model.generate_with_cache(inputs, sites, **more)
    n = inputs["input_ids"].shape[1]
    assert out.sequences.shape[1] == n + 3 and len(caches) == 3
    assert caches[0]["text.1.resid_post"].shape[1] == n
    tensors = {key: value for key, value in inputs.tensors.items() if key != "position_ids"}
    said = out.sequences[:, n : n + 2]
    tensors["input_ids"] = torch.cat([inputs["input_ids"], said], 1)
    for key in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
        if key in tensors:
            fill = int(key == "attention_mask")
            tensors[key] = torch.cat([tensors[key], torch.full_like(said, fill)], 1)
    if "cross_attention_mask" in tensors:
        mask = tensors["cross_attention_mask"]
        tensors["cross_attention_mask"] = torch.cat([mask, mask[:, -1:], mask[:, -1:]], 1)
    if model.family.bidirectional == "the whole prompt":
        return  # what is said is then part of what looks ahead
    _, whole = model.run_with_cache(tensors, sites)
    for step in (1, 2):
        value = caches[step]["text.1.resid_post"]
        assert value.shape[1] == 1
        torch.testing.assert_close(
            value[:, 0], whole["text.1.resid_post"][:, n + step - 1], **EXACT
        )
        assert caches[step]["text.0.pattern"].shape[-2] == 1


def test_scores_come_out_as_transformers_gives_them() -> None:
    model = model_of("llava")
    inputs = model.prepare([(picture(), QUESTION)])
    more = {"max_new_tokens": 2, "eos_token_id": None}
    out = model.generate(inputs, return_dict_in_generate=True, output_scores=True, **more)
    assert len(out.scores) == 2
    torch.testing.assert_close(out.scores[0], model.last_logits(inputs), **EXACT)
    words = model.tokenizer.decode(out.sequences[0, -2:], skip_special_tokens=True)
    assert model.generate(inputs, **more) == [words]


def test_rows_padded_on_the_right_are_not_generated_from() -> None:
    model = load_model("scenes", selfcheck=False)
    image = scenes.pairs("object", 1, seed=0)[0].clean.image
    rows = [(image, "describe the image"), (image, "is there a ring left of the red circle ?")]
    with pytest.raises(InputError, match=r"padded on the right.*padding_side='left'"):
        model.generate(model.prepare(rows, padding_side="right"), max_new_tokens=2)
    single = [model.generate(model.prepare([row]), max_new_tokens=4)[0] for row in rows]
    assert model.generate(model.prepare(rows), max_new_tokens=4) == single


def test_what_is_knocked_out_is_not_read_in_any_step() -> None:
    model = model_of("llava")
    inputs = model.prepare([(picture(), QUESTION)])
    image, n = torch.as_tensor(inputs.tokens[0].image), inputs["input_ids"].shape[1]
    with knocked_out(model, inputs, "image_all", layers=[1]):
        _, caches = model.generate_with_cache(
            inputs, "text.*.pattern", max_new_tokens=3, eos_token_id=None
        )
    for step, cache in enumerate(caches):
        pattern = cache["text.1.pattern"][0, :, -1]
        assert pattern.shape[-1] == n + step
        assert pattern[:, image].abs().max() == 0
        torch.testing.assert_close(pattern.sum(-1), torch.ones(4), **EXACT)
        assert cache["text.0.pattern"][0, :, -1][:, image].sum() > 0
    with knocked_out(model, inputs, "image_all", "question", heads=[2]):
        pattern = model.run_with_cache(inputs, "text.0.pattern")[1]["text.0.pattern"][0]
    question = torch.as_tensor(inputs.tokens[0].question)
    assert pattern[2][question[:, None], image].max() == 0
    assert pattern[1][question[:, None], image].min() > 0


# -- inputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_video_placeholders_without_a_video_are_refused(name: str) -> None:
    ids = torch.tensor([[1, 20, 6, 5, 5, 5, 5, 7, 30, 31]])
    with pytest.raises(InputError, match="videos are not read here"):
        model_of(name)({"input_ids": ids})


@pytest.mark.parametrize("name", ["blip_2", "instructblip"])
def test_text_alone_is_refused_where_the_model_takes_none(name: str) -> None:
    with pytest.raises(InputError, match=r"takes no prompt without .*pixel_values"):
        model_of(name).prepare((None, "is it"))


def test_a_qformer_mask_that_is_left_out_is_all_ones() -> None:
    model = model_of("instructblip")
    inputs = model.prepare([(picture(), QUESTION)])
    tensors = {k: v for k, v in inputs.tensors.items() if k != "qformer_attention_mask"}
    torch.testing.assert_close(model(tensors), model(inputs), **EXACT)


def test_cross_attention_without_its_mask_is_refused() -> None:
    model = model_of("mllama")
    inputs = model.prepare([(picture(), QUESTION)])
    tensors = {k: v for k, v in inputs.tensors.items() if k != "cross_attention_mask"}
    with pytest.raises(InputError, match="cross_attention_mask is missing"):
        model(tensors)
