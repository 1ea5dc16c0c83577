"""A user's JSONL in the manner of POPE, with boxes: to pairs, and to how often each edit tells."""

import json

import numpy as np
import pytest

import lvlm_interp as li
from lvlm_interp.data.build_pairs import answers_changed, build_pairs
from lvlm_interp.errors import DataError

BOXED = ("mask", "blur", "mean", "exchange")
WORDS = {"circle": "square", "triangle": "cross", "star": "ring", "heart": "diamond"}
N = 16


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The file as a user has it: images beside it, a question, a label, and a box."""
    folder = tmp_path_factory.mktemp("pope")
    lines = []
    for number, pair in enumerate(li.scenes.pairs("object", N, seed=3, kind="evidence")):
        pair.clean.open_image().save(folder / f"{number}.png")
        row = {"question_id": number, "image": f"{number}.png", "text": pair.clean.prompt}
        lines.append({**row, "label": pair.answer, "foil": pair.foil, "box": list(pair.box)})
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.fixture(scope="module")
def model():
    return li.load_model("scenes-balanced")


def test_the_table_says_how_often_each_edit_and_its_control_changed_the_answer(rows, model):
    pairs = [pair for way in (*BOXED, "noise", "image") for pair in build_pairs(rows, way)]
    pairs += [pair for way in BOXED for pair in build_pairs(rows, way, control=True)]
    table = answers_changed(model, pairs)
    shown = table.mean(by=["metric", "made", "control"], cluster="group")
    changed = shown[shown.metric == "answer changed"].set_index("made")
    ways = {*BOXED, "noise", "image", *(f"{way} of a random box" for way in BOXED)}
    assert set(changed.index) == ways and set(changed.n) == {N}
    assert changed.control.tolist() == ["random" in made for made in changed.index]
    assert ((changed.low <= changed.estimate) & (changed.estimate <= changed.high)).all()
    # Without the thing that was asked about the answer turns, and elsewhere the edit does little.
    boxed = [changed.estimate[way] for way in BOXED]
    random = [changed.estimate[f"{way} of a random box"] for way in BOXED]
    assert np.mean(boxed) > np.mean(random)


def test_words_of_the_question_are_exchanged(rows, model):
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    for line in lines:
        line["image"] = str(rows.parent / line["image"])
    fitting = [
        line
        for line in lines
        if any(word in line["text"].split() for pair in WORDS.items() for word in pair)
    ]
    pairs = build_pairs(fitting, "prompt", words=WORDS)
    assert pairs and all(pair.clean.prompt != pair.corrupt.prompt for pair in pairs)
    table = answers_changed(model, pairs)
    assert set(table.frame.made) == {"prompt"}
    result = li.patching.activation_patch(
        model, pairs[:2], "text.*.resid_post", "last", progress=False
    )
    assert set(result.table.frame.corruption) == {"prompt"}


@pytest.fixture(scope="module")
def said(rows):
    """What a model said of each scene, with a word in it that is wrong."""
    lines = [json.loads(line) for line in rows.read_text().splitlines()][:2]
    caption = {"text": "describe the image .", "caption": "a red circle , a ring .", "word": "ring"}
    return [
        {"id": line["question_id"], "image": str(rows.parent / line["image"]), **caption}
        | {"box": line["box"]}
        for line in lines
    ]


def test_a_hallucinated_word_is_the_position_and_its_foil_a_candidate(said, model):
    pairs = build_pairs(said, "mask", candidates=["ring", "circle", "star"])
    for pair in pairs:
        assert (pair.answer, pair.foil) == ("star", "ring")
        for side in (pair.clean, pair.corrupt):
            assert side.reply == "a red circle , a"
    inputs = model.prepare(pairs[0].clean)
    words = model.tokenizer.decode(inputs["input_ids"][0].tolist()).split()
    assert words[-5:] == ["a", "red", "circle", ",", "a"]
    # The position is the one at which the caption's next word was said: a forced run agrees.
    whole = [*inputs["input_ids"][0].tolist(), model.answer_id("ring", "a red circle , a")]
    assert model.tokenizer.decode(whole).split()[-1] == "ring"
    result = li.patching.activation_patch(
        model, pairs, "text.*.resid_post", "last", engine="full", progress=False
    )
    logits = model.last_logits(inputs)[0]
    ids = [model.answer_id(word, "a red circle , a") for word in ("star", "ring")]
    expected = float(logits[ids[0]] - logits[ids[1]])
    assert result.table.frame.m_clean.iloc[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"word": None}, "needs the 'word'"),
        ({"word": "heart"}, "'heart' is not in the caption"),
        ({"candidates": []}, "expected 'candidates'"),
        ({"candidates": "star"}, "a list of words"),
        ({"candidates": ["circle", "ring"]}, "none of the candidates circle, ring fits"),
    ],
)
def test_wrong_captions_are_named(said, change, message):
    with pytest.raises(DataError, match=f"Row '0'.*{message}"):
        build_pairs([{**said[0], **change}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: it is not valid JSON"),
        ("[1]", "line 1: expected a JSON object"),
        ("", "holds no row"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        build_pairs(path)
    with pytest.raises(DataError, match="no such file of rows"):
        build_pairs(tmp_path / "none.jsonl")
