"""Three sources of answers: efficiency, image-off runs, shipped models whose source is known."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

import lvlm_interp as li
from lvlm_interp.attribution.image_off import Runner, image_unread
from lvlm_interp.attribution.replies import reply_tokens, token_logprobs
from lvlm_interp.errors import UsageError
from tests.models import processors, zoo

FAMILIES = (
    "llava",
    "llava_next",
    "qwen2_vl",
    "qwen3_vl",
    "gemma3",
    "internvl",
    "mllama",
    "smolvlm",
)


def picture(seed: int, side: int = 24) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def rows(n: int, prompt: str = "look here . is there a dog ?", question: str | None = None):
    return [
        li.Example(
            id=str(i),
            image=picture(i),
            prompt=prompt,
            answer=("yes", "no")[i % 2],
            foil=("no", "yes")[i % 2],
            group=str(i),
            question=question,
        )
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def scenes():
    return li.load_model("scenes", selfcheck=False)


@pytest.fixture(scope="module")
def balanced():
    return li.load_model("scenes-balanced", selfcheck=False)


@pytest.mark.parametrize(
    ("name", "image_off"), [*((name, "grey") for name in FAMILIES), ("llava", "knockout")]
)
def test_the_sources_add_up_to_the_run_in_every_family(name, image_off):
    model = li.wrap(zoo.build(name), processors.build(name), selfcheck=False)
    examples = rows(3, question="is there a dog ?")
    replies = ["yes", "a dog", "no"]
    found = li.attribution.three_sources(
        model, examples, image_off=image_off, replies=replies, against_foil=False
    )
    totals = found.by_example()
    whole = [float(each.sum()) for each in token_logprobs(model, examples, replies)]
    np.testing.assert_allclose(totals["sum"], whole, atol=1e-5)
    parts = totals[["image", "prompt", "prior"]].sum(axis=1)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert (totals["image"].abs() > 1e-6).all()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "mllama"])
def test_with_the_image_unread_another_image_changes_nothing(name):
    model = li.wrap(zoo.build(name), processors.build(name), selfcheck=False)
    first, second = rows(2)
    logits = []
    with image_unread(model, first, "yes"):
        for image in (first.image, second.image):
            row = li.Example(id="0", image=image, prompt=first.prompt, reply="yes")
            logits.append(model.last_logits(model.prepare([row])))
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    moved = model.last_logits(model.prepare([first])) - model.last_logits(model.prepare([second]))
    assert moved.abs().max() > 1e-4


def test_tokens_of_a_reply_are_scored_as_the_model_would_go_on(scenes):
    example = li.scenes.pairs("object", 1, seed=0)[0].clean
    reply = "a red circle"
    logprobs = token_logprobs(scenes, [example], [reply])[0]
    ids = reply_tokens(scenes, example, reply)
    assert [scenes.tokenizer.decode([i]) for i in ids] == reply.split()
    said = ""
    for token, value in zip(reply.split(), logprobs, strict=True):
        row = li.Example(id="0", image=example.image, prompt=example.prompt, reply=said)
        logits = scenes.last_logits(scenes.prepare([row])).log_softmax(-1)
        assert float(logits[0, scenes.answer_id(token, said)]) == pytest.approx(
            float(value), abs=1e-4
        )
        said = f"{said} {token}".strip()


def test_a_batch_scores_as_single_rows(scenes):
    examples = [pair.clean for pair in li.scenes.pairs("all", 6, seed=1)]
    replies = ["yes", "a red circle", "no", "blue", "left", "a"]
    together = token_logprobs(scenes, examples, replies)
    for example, reply, value in zip(examples, replies, together, strict=True):
        torch.testing.assert_close(value, token_logprobs(scenes, [example], [reply])[0])


def existence(n: int):
    """One question on scenes with and without a ring."""
    found = []
    for pair in _evidence():
        if pair.clean.prompt == "is there a ring ?":
            found += [pair.clean, pair.corrupt]
    assert len(found) >= n
    return found[:n]


@cache
def _evidence():
    return li.scenes.pairs("object", 250, seed=0, kind="evidence")


def test_a_model_without_a_flaw_answers_from_the_image(balanced):
    found = li.attribution.three_sources(balanced, existence(24))
    assert set(found.table.frame["image_off"]) == {"balanced"}
    dominant = found.dominant()
    assert (dominant["source"] == "image").mean() >= 0.95
    means = found.means().set_index("source")
    assert abs(means.loc["prior", "estimate"]) < 1.0 < 5.0 < means.loc["image", "estimate"]
    assert np.isnan(means.loc["prompt", "estimate"])


def test_an_empty_picture_is_evidence_and_other_scenes_are_not(balanced):
    """FACTS: yes - no with the image off is about -11 without it, about 0 over other scenes."""
    examples = [e for e in existence(24) if e.answer == "yes"]
    prior = {
        name: li.attribution.three_sources(
            balanced, examples, image_off=name, pool=existence(24), replies=["yes"] * len(examples)
        )
        .means()
        .set_index("source")
        .loc["prior", "estimate"]
        for name in ("balanced", "text_only", "grey")
    }
    assert prior["text_only"] < -8 and prior["grey"] < -8
    assert abs(prior["balanced"]) < 1.0


def test_the_shipped_flaw_comes_from_the_image(scenes):
    pairs = li.scenes.pairs("object", 12, seed=2, kind="trigger")
    found = li.attribution.three_sources(
        scenes, [pair.corrupt for pair in pairs], pool=existence(32), replies=["yes"] * 12
    )
    assert (found.dominant()["source"] == "image").all()


def test_too_few_donors_fall_back_by_name(scenes):
    found = li.attribution.three_sources(scenes, existence(4))
    assert set(found.table.frame["image_off"]) == {"mean"}


def test_balanced_costs_a_run_over_the_donors_once_a_question(scenes):
    examples = existence(24)
    runner = Runner(scenes, pool=examples)
    runner.off("balanced", examples, ["yes"] * 24)
    assert runner.count.rows <= 32


def test_wrong_input_is_one_sentence(scenes):
    examples = existence(2)
    with pytest.raises(UsageError, match="expected one of balanced"):
        li.attribution.three_sources(scenes, examples, image_off="black")
    with pytest.raises(UsageError, match="list of examples is empty"):
        li.attribution.three_sources(scenes, [])
    with pytest.raises(UsageError, match="one per example"):
        li.attribution.three_sources(scenes, examples, replies=["yes"])
    with pytest.raises(ValueError, match="must stand inside prompt"):
        li.Example(id="0", image=None, prompt="is it ?", question="what ?")


def test_the_command_writes_tables_and_a_sentence(tmp_path, capsys):
    from lvlm_interp.cli import main

    data = "scenes:object:4:0:trigger"
    assert not main(["attribute", "scenes", "--data", data, "--out", str(tmp_path), "--n", "6"])
    said = capsys.readouterr().out
    assert main(["attribute", "scenes"]) == 2
    assert "needs --data" in capsys.readouterr().err
    assert "image off: mean" in said and "prompt not tested" in said
    frame = li.ResultTable.read_parquet(tmp_path / "sources.parquet").frame
    assert frame["example"].nunique() == 6
    assert {"answers.csv", "means.csv"} <= {path.name for path in tmp_path.iterdir()}
