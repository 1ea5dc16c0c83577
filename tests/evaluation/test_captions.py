"""CHAIR and AMBER: words by the published rules, digits, and what is refused."""

import pytest

from lvlm_interp.errors import DataError, UsageError
from lvlm_interp.evaluation import score
from lvlm_interp.evaluation.amber_words import amber_nouns, match
from lvlm_interp.evaluation.chair_words import (
    CLASSES,
    mentions_by_lemma,
    mentions_by_pattern,
    own_mentions,
)
from lvlm_interp.evaluation.singular import pattern_singular
from lvlm_interp.evaluation.tokens import word_tokens
from tests.evaluation.files import coco, write_json, write_lines


def names(mentions):
    return [mention.name for mention in mentions]


def test_the_vocabulary_is_cocos():
    assert len(CLASSES) == 80 and CLASSES[0] == "person" and CLASSES[-1] == "toothbrush"


@pytest.mark.parametrize(
    ("caption", "pattern", "lemma"),
    [
        ("Two buses and a bus.", ["bus"], ["bus", "bus"]),
        ("a minibus", [], ["bus"]),
        ("ties", [], ["tie"]),
        ("men with vases and smartphones", ["person", "vase", "cell phone"], []),
        ("a motor bike, a cheesecake, an iPhone", [], []),
        ("hot dogs and teddy bears", ["hot dog", "teddy bear"], ["hot dog", "teddy bear"]),
        ("baby elephants", ["elephant"], ["elephant"]),
        ("a passenger train on a train track", ["train"], ["train"]),
        ("the seat of the toilet", ["toilet"], ["toilet"]),
        ("a man seated", ["person"], ["person", "chair"]),
        ("wine glasses", ["wine glass"], ["wine glass"]),
        ("no dog, an orange shirt", ["dog", "orange"], ["dog", "orange"]),
        ("a dog. a cat", ["dog", "cat"], ["dog", "cat"]),
        ("a dog-shaped man/woman", [], []),
        ("the man's dogs' knives", ["person", "dog", "knife"], ["person", "dog", "knife"]),
    ],
)
def test_mentions_by_both_published_rules(caption, pattern, lemma):
    assert names(mentions_by_pattern(caption)) == pattern
    assert names(mentions_by_lemma(caption)) == lemma


def test_a_part_of_speech_that_was_guessed_is_told():
    assert [m.guessed for m in mentions_by_lemma("a man seated")] == [False, True]
    assert not any(m.guessed for m in mentions_by_lemma("two dogs ride on buses"))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("no dog, an orange shirt", []),
        ("an orange and a banana", ["orange", "banana"]),
        ("a motor bike, a cheesecake, an iPhone", ["motorcycle", "cake", "cell phone"]),
        ("a dog beside a dog without a cat", ["dog"]),
        ("men, buses, vases, smartphones", ["person", "bus", "vase", "cell phone"]),
    ],
)
def test_our_mentions(caption, expected):
    assert names(own_mentions(caption)) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [("bus", "bu"), ("buses", "bus"), ("ties", "ty"), ("women", "woman"), ("knives", "knife"),
     ("canoes", "cano"), ("gloves", "glove"), ("mice", "mouse"), ("scissors", "scissors"),
     ("people", "person"), ("doggies", "doggies"), ("puppies", "puppy"), ("calves", "calf"),
     ("mothers-in-law", "mother-in-law"), ("dogs'", "dog's"), ("geese", "goose")],
)  # fmt: skip
def test_singulars_of_pattern(word, expected):
    assert pattern_singular(word) == expected


def test_tokens_are_cut_as_nltk_cuts_them():
    text = "it's a dog. (two) \"cats\", isn't 3,5 men/women; a red-orange u.s. bus... ok"
    assert word_tokens(text) == [
        "it", "'s", "a", "dog", ".", "(", "two", ")", '"', "cats", '"', ",", "is", "n't", "3,5",
        "men/women", ";", "a", "red-orange", "u.s.", "bus", "...", "ok",
    ]  # fmt: skip


def test_chair_by_hand(tmp_path):
    coco(tmp_path / "coco")
    captions = [
        {"image_id": 42, "caption": "A man and a dog near a cat and another cat."},
        {"image_id": 73, "caption": "A woman on a sofa."},
    ]
    file = write_json(tmp_path / "captions.json", captions)
    found = score("chair", file, tmp_path / "coco", rule="chair-lemma", n_resamples=20)
    got = {name: each.estimate for name, each in found.scores.items()}
    # Six mentions, two of them a cat; image 42 holds person, dog, bench; 73 person, couch.
    assert got == pytest.approx({"chair_s": 1 / 2, "chair_i": 2 / 6, "recall": 4 / 5})
    assert found.controls["says nothing"]["recall"] == 0
    assert found.controls["names every class"]["recall"] == 1
    assert found.controls["first 10 words"]["chair_i"] == pytest.approx(1 / 5)
    own = found.own["scores"]["chair_i"]["estimate"]
    assert own == pytest.approx(1 / 5) and found.own["differ"] == 0


def test_ids_of_coco(tmp_path):
    coco(tmp_path / "coco")

    def run(name):
        rows = [{"image_id": name, "caption": "a dog"}, {"image_id": 73, "caption": "a cat"}]
        return score("chair", write_json(tmp_path / "c.json", rows), tmp_path / "coco")

    assert any("1 image ids are text" in note for note in run("42").notes)
    assert run("COCO_val2014_000000000042.jpg").scores["chair_s"].estimate == 0.5
    with pytest.raises(DataError, match="not in the truth"):
        run(7)
    with pytest.raises(DataError, match="is no COCO image"):
        run("lighthouse")


def test_annotations_that_lack_something_are_named(tmp_path):
    coco(tmp_path)
    broken = {"images": [], "categories": [], "annotations": [{"image_id": 1, "category_id": 5}]}
    write_json(tmp_path / "instances_val2014.json", broken)
    file = write_json(tmp_path / "c.json", [{"image_id": 42, "caption": "a dog"}])
    with pytest.raises(DataError, match="unknown 5"):
        score("chair", file, tmp_path)


ASSOCIATION = {"forest": ["tree", "leave"], "tree": ["forest", "leave"], "dog": [], "sky": [],
               "person": ["man", "woman"], "cat": [], "kite": []}  # fmt: skip


def exact(first, second):
    return first == second


def test_associates_are_hit_before_truths():
    hits = match(["tree"], ["forest", "tree"], ["cat"], ASSOCIATION, frozenset(), exact)
    assert (hits.covered, hits.truths, hits.unsafe) == (1, 2, 0)
    imagined = match(["cat", "kite"], ["dog"], ["cat"], ASSOCIATION, frozenset({"kite"}), exact)
    assert (imagined.imagined, imagined.unsafe, imagined.nouns) == (1, 1, 2)


def test_nouns_of_a_description():
    vocabulary = frozenset(ASSOCIATION) | {"water", "building", "can", "sunglasses"}
    reply = "Dogs and cats. Two dogs are building to water; a cat can sit in sunglasses."
    assert amber_nouns(reply, vocabulary) == ["cat", "dog", "cat"]


def amber(folder):
    annotations = [
        {"id": 1, "type": "generative", "truth": ["forest", "dog"], "hallu": ["cat"]},
        {"id": 2, "type": "generative", "truth": ["sky"], "hallu": ["kite", "person"]},
        {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 4, "type": "discriminative-attribute-state", "truth": "yes"},
        {"id": 5, "type": "discriminative-attribute-state", "truth": "no"},
        {"id": 6, "type": "relation", "truth": "no"},
    ]
    write_json(folder / "annotations.json", annotations)
    write_json(folder / "relation.json", ASSOCIATION)
    (folder / "safe_words.txt").write_text("kite\n")


def test_amber_by_hand(tmp_path):
    amber(tmp_path / "truth")
    answers = [
        {"id": 1, "response": "A dog and a cat under trees."},
        {"id": 2, "response": "The sky with a kite and a man."},
        {"id": 3, "response": "No"},
        {"id": 4, "response": "Yes"},
        {"id": 5, "response": "no"},
        {"id": 6, "response": "No, there is not."},
    ]
    vectors = tmp_path / "vectors.txt"
    words = [*ASSOCIATION, "tree", "leave", "man", "woman"]
    vectors.write_text(
        "".join(
            f"{w} {' '.join(str(float(i == j)) for j in range(16))}\n" for i, w in enumerate(words)
        )
    )
    file = write_json(tmp_path / "a.json", answers)
    found = score("amber", file, tmp_path / "truth", vectors=vectors, n_resamples=20)
    got = {name: each.estimate for name, each in found.scores.items()}
    # Nouns: dog cat tree | sky kite man; unsafe: cat, man.
    assert got["chair"] == round(2 / 6.001 * 100, 1)
    assert got["cover"] == round(3 / 3.001 * 100, 1)
    assert got["hal"] == round(100 - 0 / 2.001 * 100, 1)
    assert got["cog"] == round(2 / 3.001 * 100, 1)
    # "no" in small letters and the sentence are neither: two of four right, one "No" said.
    assert got["accuracy"] == round(2 / 4.001 * 100, 1)
    precision, recall = round(1 / 1.001 * 100, 1), round(1 / 3.001 * 100, 1)
    f1 = round(
        2 * (precision / 100) * (recall / 100) / (precision / 100 + recall / 100 + 1e-4) * 100, 1
    )
    assert (got["precision"], got["recall"], got["f1"]) == (precision, recall, f1)
    assert got["score"] == pytest.approx((100 - got["chair"] + f1) / 2)
    assert found.own["scores"]["accuracy"]["estimate"] == round(4 / 4.001 * 100, 1)
    assert found.own["differ"] == 2
    always = found.controls["always no, says nothing"]
    assert always["f1"] > got["f1"] and always["hal"] == round(100 - 2 / 2.001 * 100, 1)


def test_amber_never_stands_in_for_the_vectors(tmp_path):
    amber(tmp_path / "truth")
    file = write_lines(
        tmp_path / "a.jsonl", [{"id": 1, "response": "a dog"}, {"id": 2, "response": ""}]
    )
    with pytest.raises(UsageError, match="en_core_web_lg vectors"):
        score("amber", file, tmp_path / "truth")
    assert (
        score("amber", file, tmp_path / "truth", rule="amber-words").scores["chair"].estimate == 0
    )


def test_amber_parts_are_scored_apart(tmp_path):
    amber(tmp_path / "truth")
    rows = [{"id": 4, "response": "Yes"}, {"id": 5, "response": "No"}]
    found = score("amber", write_json(tmp_path / "a.json", rows), tmp_path / "truth")
    assert "chair" not in found.scores and found.scores["attribute/accuracy"].n == 2
    with pytest.raises(DataError, match="1 of 2 questions have no answer"):
        score("amber", write_json(tmp_path / "a.json", rows[:1]), tmp_path / "truth")
