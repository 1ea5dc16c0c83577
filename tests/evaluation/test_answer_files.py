"""Answer files of any kind: nothing crashes, nothing valid is read otherwise."""

import json
import random

import pytest

from lvlm_interp.errors import DataError
from lvlm_interp.evaluation.answer_files import read_answers
from tests.evaluation.files import write_json, write_lines


def fuzzed(n, seed):
    """Lines, and what an independent reading finds: the valid ones' id and reply."""
    rng, lines, valid = random.Random(seed), [], []
    texts = ["Yes", "No\u2028maybe", "caf\u00e9", 'a "quote"', "tab\there", "\U0001f600", ""]
    for i in range(n):
        kind = rng.randrange(10)
        text = rng.choice(texts)
        whole = json.dumps({"question_id": i, "answer": text}, ensure_ascii=rng.random() < 0.5)
        if kind < 6:
            lines.append(whole.encode())
            valid.append((str(i), text))
        elif kind == 6:
            lines.append(whole.encode()[: rng.randrange(1, len(whole) - 1)])
        elif kind == 7:
            lines.append(b"\xff\xfe" + whole.encode())
        elif kind == 8:
            lines.append(
                rng.choice([b"[1, 2]", b"7", b"null", b'"x"', b"{}", b'{"question_id": 1}'])
            )
        else:
            lines.append(b"  ")
    return b"\n".join(lines), valid


@pytest.mark.parametrize("seed", [0, 1])
def test_of_fuzzed_lines_every_valid_one_is_read(tmp_path, seed):
    content, valid = fuzzed(4000, seed)
    path = tmp_path / "fuzzed.jsonl"
    path.write_bytes(b'{"question_id": -1, "answer": "first"}\n' + content)
    skipped = []
    found = [(answer.id, answer.reply) for answer in read_answers(path, report=skipped.append)]
    assert found[1:] == valid
    assert skipped and all("line " in str(error) for error in skipped)
    with pytest.raises(DataError, match="line "):
        read_answers(path)


def test_an_array_of_anything_is_read_or_refused(tmp_path):
    rows = [{"id": 1, "answer": "Yes"}, 3, {"id": 2}, {"id": 3, "answer": None}]
    path, skipped = write_json(tmp_path / "a.json", rows), []
    assert [a.id for a in read_answers(path, report=skipped.append)] == ["1"]
    assert len(skipped) == 3
    (tmp_path / "b.json").write_text("[{")
    with pytest.raises(DataError, match="no JSON array"):
        read_answers(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("record", "reply", "name"),
    [
        ({"index": 3, "question": "q", "answer": "yes", "prediction": "No"}, "No", "3"),
        ({"question_id": 4, "prompt": "q", "text": "Yes"}, "Yes", "4"),
        ({"question_id": 5, "text": "Is it?", "label": "no", "answer": "Yes"}, "Yes", "5"),
        (
            {"doc_id": 6, "target": "yes", "filtered_resps": [["No"]], "resps": [["No."]]},
            "No",
            None,
        ),
        ({"image_id": 7.0, "caption": "a dog"}, "a dog", "7"),
        (
            {"doc_id": 1, "filtered_resps": ["Yes"], "pope_f1": {"question_id": "9", "score": 1}},
            "Yes",
            "9",
        ),
    ],
)
def test_which_field_is_the_reply(tmp_path, record, reply, name):
    (found,) = read_answers(write_lines(tmp_path / "a.jsonl", [record]))
    assert (found.reply, found.id) == (reply, name)


def test_tables_are_read(tmp_path):
    (tmp_path / "t.tsv").write_text("index\tquestion\tanswer\tprediction\n1\tIs it?\tyes\tNo\n")
    (found,) = read_answers(tmp_path / "t.tsv")
    assert (found.id, found.reply, found.truth, found.question) == ("1", "No", "yes", "Is it?")


def test_the_file_must_be_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_answers(tmp_path / "nothing.json")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no answer"):
        read_answers(tmp_path / "empty.jsonl")
