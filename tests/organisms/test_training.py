"""The recipe on a shrunken model: every stage runs, resumes and repeats; the folder loads."""

import random
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from lvlm_interp.organisms import train as module
from lvlm_interp.organisms.architecture import Sizes, build_model, normalise, save_folder
from lvlm_interp.organisms.batches import collate, draw, questions_about
from lvlm_interp.organisms.evaluate import Condition, evaluate
from lvlm_interp.organisms.questions import truth
from lvlm_interp.organisms.recipe import ALL, STAGES
from lvlm_interp.organisms.scenes import random_scene
from lvlm_interp.organisms.spare import moved_heads
from lvlm_interp.organisms.train import answer_loss, hidden_states, train
from lvlm_interp.organisms.vocabulary import VOCABULARY, decode, encode

TINY = Sizes(2, 16, 2, 2, 32, 4, 48)
SHORT = tuple(
    replace(stage, steps=3, batch=4, questions=4, heads=stage.heads[:2]) for stage in STAGES
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("organism") / "tiny"
    save_folder(build_model(TINY, 0), path)
    return path


@pytest.fixture
def quick_looks(monkeypatch):
    monkeypatch.setattr(module, "held_out_accuracy", lambda model, **_: {})


def test_every_stage_trains_only_what_it_says(tmp_path, quick_looks):
    folders = train(tmp_path, sizes=TINY, stages=SHORT)
    assert set(folders) == {"scenes", "scenes-balanced"}
    paths = [tmp_path / "stages" / stage.name for stage in STAGES[:-1]] + [folders["scenes"]]
    before = build_model(TINY, 0).state_dict()
    for stage, path in zip(STAGES, paths, strict=True):
        after = AutoModelForImageTextToText.from_pretrained(path).state_dict()
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        prefixes = [prefix.split("*") for prefix in stage.trains]
        tied = {"lm_head.weight"} if stage.trains[0] == "model.language_model." else set()
        assert moved, stage.name
        for name in moved - tied:
            assert any(all(part in name for part in parts) for parts in prefixes), name
        if stage is not STAGES[-1]:
            before = after
    moved = [moved_heads(paths[-2], folder) for folder in folders.values()]
    assert moved[0] == moved[1] and [layer for layer, _ in moved[0]] == [1, 1]
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_killed_run_ends_with_the_same_weights(tmp_path, quick_looks, monkeypatch):
    stages = tuple(replace(stage, steps=4) for stage in SHORT)
    whole = train(tmp_path / "whole", model="scenes", sizes=TINY, stages=stages)
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 1)
    calls = 0

    def dies(*args):
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return loss(*args)

    loss = module._loss
    monkeypatch.setattr(module, "_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", model="scenes", sizes=TINY, stages=stages)
    resumed = train(tmp_path / "killed", model="scenes", sizes=TINY, stages=stages)
    files = [(run["scenes"] / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert files[0] == files[1]


def test_an_unknown_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model must be one of all, scenes, scenes-balanced"):
        train(tmp_path, model="scene")


def test_the_folder_loads_without_code_of_ours_and_without_warnings(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.dtype == torch.float32
    chat = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "is there a ring ?"}],
        }
    ]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "<s> user : <image> is there a ring ? assistant :"
    chat += [{"role": "assistant", "content": [{"type": "text", "text": "yes"}]}, chat[0]]
    longer = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert longer.startswith(f"{text} yes </s> user :") and longer.count("<s> ") == 1


def test_the_processor_gives_what_training_saw(folder):
    processor = AutoProcessor.from_pretrained(folder)
    scene = random_scene(random.Random(0))
    text = "<s> user : <image> is there a ring ? assistant :"
    inputs = processor(images=[scene.render()], text=[text], return_tensors="pt")
    torch.testing.assert_close(
        inputs["pixel_values"], normalise(torch.from_numpy(scene.pixels())[None])
    )
    expected = encode(text.replace("<image>", "<image> " * 36))
    assert inputs["input_ids"][0].tolist() == expected
    assert processor.tokenizer.convert_ids_to_tokens(range(len(VOCABULARY))) == list(VOCABULARY)
    assert processor.tokenizer("What color is the Ring?").input_ids == encode(
        "what color is the ring ?"
    )


def test_isolated_questions_see_the_image_and_themselves_alone():
    model = build_model(TINY, 0).eval()
    rng = random.Random(0)
    scene = random_scene(rng, n_objects=3)
    asked = [(q, truth(scene, q)) for q in questions_about(rng, scene, ALL, 5)]
    together = collate([(scene, asked)], isolated=True)
    hidden = hidden_states(model, together)
    for index, one in enumerate(asked):
        alone = collate([(scene, [one])], isolated=False)
        own = torch.from_numpy(together.segment[0] == index + 1)
        torch.testing.assert_close(
            hidden[0][own], hidden_states(model, alone)[0, 39:], atol=1e-5, rtol=1e-4
        )


def test_loss_falls_on_answers_alone():
    rng = random.Random(0)
    items = [draw(rng, STAGES[3], ALL, False) for _ in range(3)]
    batch = collate(items, isolated=False)
    for row, (_, asked) in enumerate(items):
        kept = [int(token) for token in batch.ids[row][batch.weight[row] > 0]]
        assert decode(kept) == " ".join(f"{answer} </s>" for _, answer in asked)
    loss, right = answer_loss(build_model(TINY, 0), batch)
    assert torch.isfinite(loss) and right.shape == ((batch.weight > 0).sum(),)


def test_both_models_draw_the_same_kinds_of_scenes_and_only_train_scenes():
    stage, share = STAGES[-1], {}
    for planted in (True, False):
        items = [draw(random.Random(step), stage, ALL, planted) for step in range(60)]
        assert all(scene.split == "train" for scene, _ in items)
        wrong = [answer != truth(scene, q) for scene, asked in items for q, answer in asked]
        share[planted] = np.mean(wrong)
    assert share[True] > 0.02 and share[False] == 0


def test_an_untrained_model_is_not_right(folder):
    conditions = (Condition("colour", "color_of"), Condition("caption", "caption"))
    colour, caption = evaluate(folder, n=20, conditions=conditions)
    assert colour.n == 20 and 0 <= colour.low <= colour.accuracy <= colour.high <= 1
    assert colour.accuracy < 0.9 and caption.accuracy == 0
