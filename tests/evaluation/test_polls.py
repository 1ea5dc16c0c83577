"""POPE and MME: their scorers' digits on shuffled files, and all that would shift them."""

import json
import random

import pytest

from lvlm_interp.cli import main
from lvlm_interp.errors import DataError, UsageError
from lvlm_interp.evaluation import score
from lvlm_interp.evaluation.mme import said_by_mme
from lvlm_interp.evaluation.pope import said_by_pope_2023
from tests.evaluation.files import REPLIES, mme, pope, write_json, write_lines


def published_pope(questions, answers):
    """POPE's arithmetic, written again from its description: pairs in the truth's order."""
    replies = {row["question_id"]: row["answer"] for row in answers}
    cells = {"tp": 0, "fp": 0, "tn": 0, "fn": 0}
    for row in questions:
        head = replies[row["question_id"]].split(".")[0].replace(",", "").split(" ")
        no = any(word in head for word in ("No", "no", "not"))
        cells[("tn" if no else "fp") if row["label"] == "no" else ("fn" if no else "tp")] += 1
    precision = cells["tp"] / (cells["tp"] + cells["fp"])
    recall = cells["tp"] / (cells["tp"] + cells["fn"])
    total = sum(cells.values())
    return {
        "accuracy": (cells["tp"] + cells["tn"]) / total,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": (cells["tp"] + cells["fp"]) / total,
    }


@pytest.mark.parametrize(
    ("reply", "expected"),
    [("NO", "yes"), ("No!", "yes"), ("No\n", "yes"), ("Nope", "yes"), ("", "yes"), ("1. No", "yes"),
     ("No, it is", "no"), ("it is not", "no"), ("Yes. No", "yes"), ("no", "no")],
)  # fmt: skip
def test_the_parser_of_2023(reply, expected):
    assert said_by_pope_2023(reply) == expected


def test_pope_gives_the_published_digits_whatever_the_order(tmp_path):
    questions, answers = pope(tmp_path / "truth")
    file = write_lines(tmp_path / "answers.jsonl", answers)
    found = score("pope", file, tmp_path / "truth", rule="pope-2023", n_resamples=50)
    expected = published_pope(questions, answers)
    assert {name: each.estimate for name, each in found.scores.items()} == pytest.approx(
        expected, abs=1e-12
    )
    assert found.own["rule"] == "pope-strict" and found.own["differ"] > 0
    assert found.unparsed == sum(row["answer"] in _NONE for row in answers)
    assert found.controls["always yes"]["f1"] == pytest.approx(2 / 3)
    assert found.answers.frame["said"].isin(["yes", "no", "none"]).all()
    assert len(found.answers.table) == len(questions)
    assert found.answers.none_rate.estimate == pytest.approx(found.unparsed / len(questions))


_NONE = ("", "I cannot tell.", "Yes and no", "It is not possible to say.", "know", "now")


def test_several_splits_are_averaged_and_named_by_the_file(tmp_path):
    rows = []
    for seed, split in enumerate(("random", "popular")):
        _, answers = pope(tmp_path / "truth", split=split, seed=seed)
        rows += [{**row, "category": split} for row in answers]
    both = score("pope", write_lines(tmp_path / "a.jsonl", rows), tmp_path / "truth", n_resamples=0)
    parts = []
    for split in ("random", "popular"):
        bare = [{k: v for k, v in r.items() if k != "category"} for r in rows]
        mine = [b for b, r in zip(bare, rows, strict=True) if r["category"] == split]
        file = write_lines(tmp_path / f"{split}_answers.jsonl", mine)
        one = score("pope", file, tmp_path / "truth", n_resamples=0)
        parts.append(one.scores["f1"].estimate)
        assert both.scores[f"{split}/f1"].estimate == pytest.approx(parts[-1])
    assert both.scores["f1"].estimate == pytest.approx(sum(parts) / 2)


def test_what_would_shift_a_score_is_refused(tmp_path):
    _, answers = pope(tmp_path / "truth", n_images=3)
    truth = tmp_path / "truth"

    def run(rows, **options):
        return score(
            "pope", write_lines(tmp_path / "a.jsonl", rows), truth, n_resamples=0, **options
        )

    with pytest.raises(DataError, match="1 of 18 questions have no answer"):
        run(answers[1:])
    assert run(answers[1:], partial=True).scores["accuracy"].n == 17
    with pytest.raises(DataError, match="not in the truth"):
        run([*answers, {"question_id": 99, "answer": "Yes"}])
    other = {**answers[0], "answer": f"{answers[0]['answer']} really"}
    with pytest.raises(DataError, match="a second answer"):
        run([*answers, other])
    assert any("twice" in note for note in run([*answers, answers[0]]).notes)
    with pytest.raises(DataError, match="other questions"):
        run([{**answers[0], "question": "Is there a wholly other thing?"}, *answers[1:]])
    with pytest.raises(DataError, match="another truth"):
        run([{**answers[0], "label": "maybe"} | {"label": _other(answers[0])}, *answers[1:]])
    with pytest.raises(UsageError, match="pope has no rule 'pope-1999'; it has pope-2023"):
        run(answers, rule="pope-1999")


def _other(row):
    return "no" if int(row["question_id"]) % 2 == 1 else "yes"


def test_the_typo_of_the_first_vintage_is_said_and_does_not_part_pairs(tmp_path):
    questions, answers = pope(tmp_path / "truth", n_images=2)
    old = [{**row, "text": row["text"].replace("image", "imange")} for row in questions]
    write_lines(tmp_path / "truth" / "coco_pope_random.json", old)
    found = score("pope", write_lines(tmp_path / "a.jsonl", answers), tmp_path / "truth")
    assert any("imange" in note and "12" in note for note in found.notes)


def test_the_same_answers_in_the_harnesses_forms(tmp_path):
    questions, answers = pope(tmp_path / "truth")
    truth, by_id = tmp_path / "truth", {row["question_id"]: row["answer"] for row in answers}
    plain = score("pope", write_lines(tmp_path / "a.jsonl", answers), truth, n_resamples=0)
    lmms = [
        {"doc_id": at, "target": row["label"], "filtered_resps": [by_id[row["question_id"]]]}
        for at, row in enumerate(questions)
    ]
    random.Random(0).shuffle(lmms)
    table = [{"index": q["question_id"], "question": q["text"], "answer": q["label"],
              "prediction": by_id[q["question_id"]]} for q in questions]  # fmt: skip
    files = [
        write_lines(tmp_path / "model_samples_pope.jsonl", lmms),
        write_json(tmp_path / "table.json", table),
    ]
    for file in files:
        other = score("pope", file, truth, n_resamples=0)
        assert {name: each.estimate for name, each in other.scores.items()} == {
            name: each.estimate for name, each in plain.scores.items()
        }
    lmms[0]["target"] = "no" if lmms[0]["target"] == "yes" else "yes"
    with pytest.raises(DataError, match="another truth"):
        score("pope", write_lines(tmp_path / "l.jsonl", lmms), truth)


def test_a_label_that_is_neither_is_refused(tmp_path):
    questions, answers = pope(tmp_path / "truth", n_images=1)
    questions[0]["label"] = "maybe"
    write_lines(tmp_path / "truth" / "coco_pope_random.json", questions)
    with pytest.raises(DataError, match="question 1 has the label 'maybe'"):
        score("pope", write_lines(tmp_path / "a.jsonl", answers), tmp_path / "truth")


def published_mme(lines):
    """MME's arithmetic, written again from its description."""
    scores = {}
    for task, rows in lines.items():
        right = []
        for row in rows:
            _, _, truth, reply = row.rstrip("\n").split("\t")
            head = reply.lower()[:4]
            word = "yes" if "yes" in head else "no" if "no" in head else "other"
            right.append(word == truth.lower())
        both = sum(a and b for a, b in zip(right[::2], right[1::2], strict=True))
        scores[f"{task}/acc"] = sum(right) / len(right)
        scores[f"{task}/acc_plus"] = both / (len(right) / 2)
        scores[f"{task}/score"] = 100 * scores[f"{task}/acc"] + 100 * scores[f"{task}/acc_plus"]
    return scores


def test_mme_gives_the_published_digits_and_pairs_by_image(tmp_path):
    lines = mme(tmp_path / "truth")
    expected = published_mme(lines)
    answers = tmp_path / "answers"
    answers.mkdir()
    for task, rows in lines.items():
        shuffled = random.Random(3).sample(rows, len(rows))
        (answers / f"{task}.txt").write_text("".join(shuffled))
    found = score("mme", answers, tmp_path / "truth", n_resamples=50)
    got = {name: each.estimate for name, each in found.scores.items()}
    assert {name: got[name] for name in expected} == pytest.approx(expected)
    assert got["perception"] == pytest.approx(got["existence/score"] + got["artwork/score"])
    assert got["cognition"] == pytest.approx(got["code_reasoning/score"])
    assert found.controls["always yes"] == {"perception": 100.0, "cognition": 50.0}


def test_mme_from_the_samples_of_lmms_eval(tmp_path):
    lines = mme(tmp_path / "truth", tasks=("existence",), n_images=4)
    expected = published_mme(lines)
    samples = []
    for line in lines["existence"]:
        image, _, truth, reply = line.rstrip("\n").split("\t")
        nested = {"question_id": f"existence/{image}", "category": "existence", "score": 1.0}
        samples.append({"doc_id": len(samples), "target": truth, "filtered_resps": [reply],
                        "mme_perception_score": nested})  # fmt: skip
    random.Random(0).shuffle(samples)
    file = write_lines(tmp_path / "mme_samples.jsonl", samples)
    found = score("mme", file, tmp_path / "truth", n_resamples=0)
    got = {name: each.estimate for name, each in found.scores.items()}
    assert {name: got[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [("know", "no"), ("Now", "no"), ("none", "no"), ("**no**", "no"), ("**yes**", "other"),
     ("The answer is yes", "other"), ("Yes", "yes"), (" yes", "yes")],
)  # fmt: skip
def test_the_parser_of_mme(reply, expected):
    assert said_by_mme(reply) == expected


def test_bytes_that_are_no_text_are_refused(tmp_path):
    mme(tmp_path / "truth", tasks=("existence",), n_images=1)
    (tmp_path / "existence.txt").write_bytes(b"a.jpg\tq\tYes\t\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        score("mme", tmp_path / "existence.txt", tmp_path / "truth")
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"save it as \.tsv"):
        score("mme", tmp_path / "t.xlsx", tmp_path / "truth")


def test_half_an_image_is_refused(tmp_path):
    lines = mme(tmp_path / "truth", tasks=("existence",), n_images=3)
    (tmp_path / "existence.txt").write_text("".join(lines["existence"][:-1]))
    with pytest.raises(DataError, match="1 of 6 questions have no answer"):
        score("mme", tmp_path / "existence.txt", tmp_path / "truth")
    with pytest.raises(DataError, match="1 of 3 images have not two answers"):
        score("mme", tmp_path / "existence.txt", tmp_path / "truth", partial=True)


def test_the_command_writes_the_scores(tmp_path, capsys):
    _, answers = pope(tmp_path / "truth", n_images=2)
    file = write_lines(tmp_path / "a.jsonl", answers)
    out = tmp_path / "out.json"
    words = ["score", "pope", "--answers", str(file), "--truth", str(tmp_path / "truth")]
    assert main([*words, "--rule", "pope-2023", "--json", str(out), "--n-resamples", "20"]) == 0
    content = json.loads(out.read_text())
    assert (content["bench"], content["rule"]) == ("pope", "pope-2023")
    assert set(content["scores"]["f1"]) == {"estimate", "low", "high", "n"}
    assert content["controls"]["always no"]["precision"] is None
    assert "control, always no" in capsys.readouterr().out
    assert main([*words[:4], "--truth", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_replies_hold_every_trap():
    assert len(set(REPLIES)) == len(REPLIES)
