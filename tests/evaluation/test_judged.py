"""Benchmarks with a judge: the published readings, their traps, and ours beside."""

import pytest

from lvlm_interp.errors import DataError
from lvlm_interp.evaluation import score
from lvlm_interp.evaluation.cceval import listed
from lvlm_interp.evaluation.hallusion import correctness_of
from lvlm_interp.evaluation.ratings import (
    gavie_ratings,
    llava_pair,
    mmhal_rating,
    mmhal_rating_strict,
)
from tests.evaluation.files import write_json, write_lines


def hallusion_rows():
    rows = []
    for kind, figure, question, truth in [
        ("VD", "0", "0", "1"), ("VD", "0", "1", "0"), ("VD", "1", "0", "0"), ("VD", "1", "1", "1"),
        ("VS", "0", "0", "1"), ("VS", "1", "0", "0"),
    ]:  # fmt: skip
        rows.append(
            {
                "category": kind, "subcategory": "math", "visual_input": "1", "set_id": "0",
                "figure_id": figure, "question_id": question, "question": f"Is {kind} so?",
                "gt_answer": truth, "gt_answer_details": "", "filename": None,
            }
        )  # fmt: skip
    return rows


def test_hallusionbench_by_hand(tmp_path):
    rows = hallusion_rows()
    write_json(tmp_path / "truth" / "HallusionBench.json", rows)
    verdicts = ["correct", "not correct", "Incorrect.", "correct", "unclear", "unclear"]
    answers = [
        {**row, "model_prediction": "yes", "gpt4v_output_gpt_check": verdict}
        for row, verdict in zip(rows, verdicts, strict=True)
    ]
    file = write_json(tmp_path / "a.json", answers[::-1])
    found = score("hallusionbench", file, tmp_path / "truth", n_resamples=20)
    got = {name: each.estimate for name, each in found.scores.items()}
    # Right: VD 0/0, VD 0/1 ("not correct" counts), VD 1/1 and the unclear VS 0/0.
    assert got["aAcc"] == round(100 * 4 / 6, 4)
    assert got["fAcc"] == round(100 * 1 / 3, 4)  # VD 0 alone; VS 0 is no figure
    assert got["qAcc"] == round(100 * 1 / 3, 4)  # VD question 1
    assert found.controls["always no"]["aAcc"] == 50.0
    assert found.own["rule"] == "hallusionbench-strict"
    assert any("not correct" in note for note in found.notes)
    bare = [{k: v for k, v in a.items() if k != "gpt4v_output_gpt_check"} for a in answers]
    with pytest.raises(DataError, match="6 of 6 answers have no judge's word"):
        score("hallusionbench", write_json(tmp_path / "b.json", bare), tmp_path / "truth")


def test_verdicts_by_substring():
    assert [correctness_of(t) for t in ("Correct", "incorrect", "not correct", "unsure")] == [
        "1", "0", "1", "2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "theirs", "ours"),
    [("Rating: 4, good", 4, 4), ("Rating: **4**", None, 4), ("rating: 2 or rating: 3", None, None),
     ("none", None, None), ("Rating: 10", 1, None), ("Rating: 6", 6, 6)],
)  # fmt: skip
def test_ratings_of_mmhal(text, theirs, ours):
    assert mmhal_rating(text) == theirs
    assert mmhal_rating_strict(text) == ours


def mmhal(folder, n=16):
    rows = [
        {"question": f"What is it, number {i}?", "gt_answer": "a thing", "image_id": f"x{i}",
         "image_src": f"http://host/x{i}.jpg", "question_type": "t"} for i in range(n)
    ]  # fmt: skip
    write_json(folder / "response_template.json", rows)
    return rows


def test_mmhal_by_hand(tmp_path):
    rows = mmhal(tmp_path / "truth")
    texts = [f"Rating: {i % 7}" for i in range(15)] + ["Rating: **5**"]
    responses = [{"choices": [{"message": {"content": text}}]} for text in texts]
    file = write_json(tmp_path / "responses.json", responses)
    found = score("mmhal", file, tmp_path / "truth", n_resamples=20)
    ratings = [i % 7 for i in range(15)] + [0]
    assert found.scores["score"].estimate == pytest.approx(sum(ratings) / 16)
    assert found.scores["hallucination_rate"].estimate == pytest.approx(
        sum(rating < 3 for rating in ratings) / 16
    )
    assert found.scores["adversarial/score"].estimate == pytest.approx((1 + 2) / 2)
    assert found.unparsed == 1 and found.own["differ"] == 1
    named = [
        {**row, "model_answer": "a", "judge_reply": text}
        for row, text in zip(rows, texts, strict=True)
    ]
    other = score(
        "mmhal", write_json(tmp_path / "n.json", named[::-1]), tmp_path / "truth", n_resamples=0
    )
    assert other.scores["score"].estimate == found.scores["score"].estimate
    assert any("in order" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8 9\nwhy", (8, 9)), ("8,9", (8, 9)), ("8, 9", (-1, -1)), ("8", (-1, -1)), ("a b", (-1, -1)),
     ("8.5 7", (8.5, 7))],
)  # fmt: skip
def test_pairs_of_llava_bench(text, expected):
    assert llava_pair(text) == expected


def test_llava_bench_averages_what_it_cannot_read(tmp_path):
    questions = [
        {"question_id": i, "image": "a.jpg", "text": f"Question number {i}?", "category": "conv"}
        for i in range(3)
    ]
    write_lines(tmp_path / "truth" / "questions.jsonl", questions)
    reviews = [
        {"question_id": 0, "category": "llava_bench_conv", "content": "8 6\nok"},
        {"question_id": 2, "category": "llava_bench_conv", "content": "8, 9"},
        {"question_id": 1, "category": "llava_bench_conv", "content": "9 9"},
    ]
    found = score(
        "llava-bench", write_lines(tmp_path / "r.jsonl", reviews), tmp_path / "truth", n_resamples=0
    )
    reference, model = round((8 - 1 + 9) / 3, 3), round((6 - 1 + 9) / 3, 3)
    assert found.scores["score"].estimate == round(model / reference * 100, 1)
    assert found.own["scores"]["score"]["estimate"] == pytest.approx(
        100 * (6 + 9 + 9) / (8 + 8 + 9)
    )
    assert found.unparsed == 1
    lost = [{**row, "content": "sorry"} for row in reviews]
    nothing = score(
        "llava-bench", write_lines(tmp_path / "l.jsonl", lost), tmp_path / "truth", n_resamples=0
    )
    assert nothing.scores["score"].estimate == 100.0
    assert nothing.own["scores"]["score"]["estimate"] is None


def test_gavie_and_haelm(tmp_path):
    text = (
        "Relevancy:\nscore of the answer1: 8\nreason: x\nAccuracy:\nscore of the answer1: **6**\n"
    )
    assert gavie_ratings(text) == (8, 6)
    assert gavie_ratings("Accuracy: 11") == (None, None)
    questions = [{"image_id": f"{i}", "question": f"What is in picture {i}?"} for i in range(2)]
    write_json(tmp_path / "gavie" / "evaluation_set.json", questions)
    rows = [
        {**questions[1], "answer": "a", "judge_reply": text},
        {**questions[0], "answer": "b", "judge_reply": "Relevancy: 4\nAccuracy: no"},
    ]
    found = score("gavie", write_json(tmp_path / "g.json", rows), tmp_path / "gavie", n_resamples=0)
    assert found.scores["relevancy"].estimate == 6 and found.scores["accuracy"].n == 1
    assert found.unparsed == 1
    captions = [{"image": f"{i}.jpg", "reference caption": ["a"]} for i in range(3)]
    write_json(tmp_path / "haelm" / "eval.json", captions)
    replies = [
        {"image": f"{i}.jpg", "output": "A dog.", "judge_reply": word}
        for i, word in enumerate(("yes", "no", "The answer is yes"))
    ]
    judged = score(
        "haelm", write_json(tmp_path / "h.json", replies), tmp_path / "haelm", n_resamples=0
    )
    assert judged.scores["hallucination_rate"].estimate == 0.5 and judged.unparsed == 1
    assert judged.own["scores"]["hallucination_rate"]["estimate"] == pytest.approx(2 / 3)


def test_cceval_by_hand(tmp_path):
    truth = {"1": {"gt_objs": ["dog", "tree", "sky"]}, "2": {"gt_objs": ["cat", "cat", "mat"]}}
    write_json(tmp_path / "truth" / "vg_info_100.json", truth)
    rows = [
        {"image_id": 2, "text": "A cat on a mat.", "objects": "['cat', 'mat']",
         "hallucinated": "[]", "uncovered": "cannot say"},
        {"image_id": 1, "text": "A dog, a [kite], a [tree].", "objects": "Objects: [dog, kite]",
         "hallucinated": "['kite']", "uncovered": "[tree, sky]"},
    ]  # fmt: skip
    file = write_json(tmp_path / "a.json", rows)
    found = score("cceval", file, tmp_path / "truth", n_resamples=0)
    got = {name: each.estimate for name, each in found.scores.items()}
    assert got["chair_i_n"] == pytest.approx(1 / 4)
    assert got["chair_i"] == pytest.approx(1 / 5)  # the brackets add the tree
    assert got["coverage"] == pytest.approx(
        1 - 2 / 5
    )  # the unreadable one leaves nothing uncovered
    assert found.unparsed == 1
    assert found.own["scores"]["coverage"]["estimate"] == pytest.approx(1 - 2 / 3)


def test_lists_of_cceval():
    assert listed("[]") == [""] and listed("none") is None
    assert listed("x ['a', \"b\"] [c]") == ["a", '"b"'] and listed("[a,\nb]") is None
