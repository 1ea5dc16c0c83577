"""Models asked: the planted flaw and nothing else, resumed runs, controls, and comparisons."""

import json
import math
import os
import signal
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
import torch

import lvlm_interp as li
from lvlm_interp.cli import main
from lvlm_interp.errors import DataError, StoreError, UsageError
from lvlm_interp.evaluation import Answers, compare, run, unified_bench
from lvlm_interp.evaluation.asking import Asking, ask, poll_tokens
from lvlm_interp.evaluation.evaluating import evaluate, questions_of
from lvlm_interp.evaluation.running import as_control
from tests.evaluation.files import pope

SHORT = Asking(max_new_tokens={"poll": 2, "pair": 2, "open": 3, "describe": 40}, batch_size=16)


@pytest.fixture(scope="module")
def scenes():
    return li.load_model("scenes")


@pytest.fixture(scope="module")
def bench():
    examples, reader = unified_bench("scenes:all:12:0")
    return examples, reader


def polls(examples, n=24):
    return [e for e in examples if e.labels["task"] in ("poll", "pair")][:n]


def test_probabilities_are_those_of_the_logits(scenes, bench):
    some = polls(bench[0], 6)
    replies = ask(scenes, some, SHORT)
    logits = scenes.last_logits(scenes.prepare(some)).float().softmax(-1)
    tokens = poll_tokens(scenes)
    for row, reply in enumerate(replies):
        assert reply.p_yes == pytest.approx(float(logits[row, tokens["yes"]].sum()), abs=1e-5)
        assert reply.text.strip() in ("yes", "no")
    forced = ask(scenes, some, Asking(by="logits"))
    assert [r.said for r in forced] == [r.text.strip() for r in replies]
    assert [r.p_no for r in forced] == pytest.approx([r.p_no for r in replies], abs=1e-5)


def test_the_suffix_reaches_the_model_and_the_provenance(scenes, bench):
    table = run(scenes, polls(bench[0], 4), how=Asking(suffix="please answer", by="logits"),
                progress=False)  # fmt: skip
    assert table.table.provenance["decoding"]["suffix"] == "please answer"
    assert not table.frame["statement"].str.contains("please").any()


def same(first: Answers, second: Answers):
    pd.testing.assert_frame_equal(first.table.frame, second.table.frame)


def test_a_run_in_a_folder_is_the_run_in_memory_and_resumes(tmp_path, scenes, bench):
    some = polls(bench[0], 40)
    quiet = {"how": Asking(by="logits", batch_size=4), "progress": False}
    whole = run(scenes, some, **quiet)
    out = tmp_path / "run"
    same(whole, run(scenes, some, out=out, **quiet))
    shards = sorted((out / "shards").iterdir())
    assert len(shards) > 2
    shards[0].unlink()
    shards[1].write_text("{")
    (out / "shards" / ".abc-left.json").write_text("left by a kill")
    before = shards[2].stat().st_mtime_ns
    with pytest.raises(StoreError, match="holds a run already"):
        run(scenes, some, out=out, **quiet)
    same(whole, run(scenes, some, out=out, resume=True, **quiet))
    assert shards[2].stat().st_mtime_ns == before
    assert not (out / "shards" / ".abc-left.json").exists()
    with pytest.raises(StoreError, match="another data_hash"):
        run(scenes, some[1:], out=out, resume=True, **quiet)
    with pytest.raises(StoreError, match="another decoding"):
        run(scenes, some, out=out, resume=True, how=Asking(by="logits"), progress=False)
    # In whatever order the questions come, their replies are the same.
    back = run(scenes, some[::-1], **quiet).table.frame
    pd.testing.assert_frame_equal(back[::-1].reset_index(drop=True), whole.table.frame)


def test_controls_change_the_image_alone(bench):
    some = polls(bench[0], 30)
    bare = as_control(some, "text_only")
    assert all(row.image is None for row in bare) and bare[0].prompt == some[0].prompt
    shuffled = as_control(some, "shuffled_image", seed=1)
    images = {row.group: row.image for row in some}
    for before, after in zip(some, shuffled, strict=True):
        assert after.image is not images[before.group] and after.answer == before.answer
    with pytest.raises(UsageError, match="no control 'noise'"):
        as_control(some, "noise")
    with pytest.raises(UsageError, match="at least two images"):
        as_control(some[:1], "shuffled_image")


def test_ids_must_be_unique(scenes, bench):
    with pytest.raises(DataError, match="ids occur more than once"):
        run(scenes, [bench[0][0], bench[0][0]], progress=False)


def test_missing_images_are_named_before_a_model_is_there(tmp_path):
    pope(tmp_path, n_images=2)
    with pytest.raises(DataError, match=r"2 images are missing, namely COCO_val2014_0+\.jpg"):
        questions_of("pope", tmp_path)
    with pytest.raises(UsageError, match="no benchmark 'popo'"):
        questions_of("popo", tmp_path)
    with pytest.raises(DataError, match="Hub ids are not fetched"):
        questions_of("pope", "lmms-lab/POPE")


@pytest.mark.slow
def test_scenes_shows_the_planted_flaw_at_three_levels_and_nothing_else(tmp_path):
    found = {}
    for name in ("scenes", "scenes-balanced"):
        done = evaluate(li.load_model(name), "unified", "scenes:all:90:0", out=tmp_path / name,
                        how=SHORT, progress=False)  # fmt: skip
        found[name] = done.scores["conditions"]
    for level in ("object", "attribute", "relation"):
        rates = {
            kind: [
                found["scenes"][f"{kind}/{level}/{what}"]["estimate"]
                for what in ("false_alarms", "misses")
            ]
            for kind in ("flaw", "other")
        }
        assert np.nanmin(np.array(rates["flaw"], dtype=float)) >= 0.75, level
        assert np.nanmax(np.array(rates["other"], dtype=float)) <= 0.05, level
    balanced = [each["estimate"] for each in found["scenes-balanced"].values()]
    assert np.nanmax(np.array(balanced, dtype=float)) <= 0.1


def test_the_commands_evaluate_and_compare(tmp_path, capsys):
    words = ["--bench", "unified", "--data", "scenes:object:2:0", "--by", "logits",
             "--max-new-tokens", "6"]  # fmt: skip
    for name in ("scenes", "scenes-balanced"):
        out = ["--out", str(tmp_path / name)]
        control = ["--controls", "shuffled_image"] if name == "scenes" else []
        assert main(["evaluate", name, *words, *out, *control]) == 0
    scores = json.loads((tmp_path / "scenes" / "scores.json").read_text())
    assert scores["rule"] == "unified" and "poll/object/frequency" in scores["scores"]
    assert set(scores["controls"]) == {"shuffled_image", "always yes", "always no"}
    assert scores["controls"]["always yes"]["poll/object/frequency"] == 0.5
    assert set(scores["seconds"]) == {"answers", "shuffled_image"}
    lines = (tmp_path / "scenes" / "answers.jsonl").read_text().splitlines()
    assert {"id", "question", "answer"} <= set(json.loads(lines[0]))
    capsys.readouterr()
    folders = [str(tmp_path / name) for name in ("scenes", "scenes-balanced")]
    assert main(["compare", *folders]) == 0
    assert "difference" in capsys.readouterr().out
    assert main(["evaluate", "scenes", *words, "--out", str(tmp_path / "scenes")]) == 2
    assert "holds a run already" in capsys.readouterr().err


def table(values, **about):
    rows = [
        {"example": f"e{i}", "group": f"g{i}", "level": "object", "task": "poll", "truth": "yes",
         "said": said, "reply": said} for i, said in enumerate(values)
    ]  # fmt: skip
    return Answers.of(rows, about)


def test_compare_pairs_by_question_and_says_what_differs():
    first = table(["yes", "yes", "no", "none"], decoding={"suffix": ""})
    second = table(["yes", "no", "no", "yes"], decoding={"suffix": ""})
    found = compare({"a": first, "b": second}, n_resamples=50).table.frame
    value = found.set_index(["run", "metric"])["value"]
    assert value["a", "right"] == pytest.approx(2 / 3) and value["b", "right"] == 0.5
    assert value["b", "difference"] == pytest.approx(1 / 3 - 2 / 3)
    other = table(["yes"] * 4, decoding={"suffix": "Answer yes or no."})
    with pytest.raises(UsageError, match="b differs from a in decoding"):
        compare({"a": first, "b": other})
    told = compare({"a": first, "b": other}, anyway=True, n_resamples=50)
    assert list(told.differs["b"]) == ["decoding"]
    with pytest.raises(UsageError, match="at least two runs"):
        compare({"a": first})


def test_descriptions_and_open_answers_have_their_rows(scenes, bench):
    examples, reader = bench
    some = [e for e in examples if e.labels["task"] in ("open", "describe")][:6]
    frame = run(scenes, some, reader=reader, how=SHORT, progress=False).frame
    assert set(frame["task"]) == {"open", "describe"}
    opened = frame[frame["task"] == "open"]
    assert opened["conviction"].between(0, 1).all()
    assert (
        frame[frame["task"] == "describe"]["level"].isin(["object", "attribute", "relation"]).all()
    )
    assert all(math.isnan(value) for value in opened["p_yes"])


KILLS = 20

CHILD = """
import sys, torch
torch.set_num_threads(1)
import lvlm_interp as li
from lvlm_interp.evaluation import run, unified_bench
from lvlm_interp.evaluation.asking import Asking
model = li.load_model("scenes", selfcheck=False)
examples, reader = unified_bench("scenes:all:60:0")
rows = [e for e in examples if e.labels["task"] in ("poll", "pair")]
for line in sys.stdin:
    import os
    child = os.fork()
    if child == 0:
        run(model, rows, how=Asking(by="logits", batch_size=2), out=line.strip(), resume=True,
            progress=False)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_twenty_kills_give_the_same_table(tmp_path, scenes):
    import random
    import time

    rng, out, killed = random.Random(0), tmp_path / "run", 0
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-W", "ignore", "-c", CHILD]
    with subprocess.Popen(command, **pipes, stderr=subprocess.DEVNULL) as server:

        def start():
            server.stdin.write(f"{out}\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        for _ in range(10 * KILLS):
            child = start()
            time.sleep(rng.uniform(0.01, 0.15))
            with suppress(ProcessLookupError):  # it had ended already: no kill, and not counted
                os.kill(child, signal.SIGKILL)
            killed += int(server.stdout.readline()) == -signal.SIGKILL
            if killed == KILLS:
                break
        start()
        assert int(server.stdout.readline()) == 0
        server.stdin.close()
    examples, _ = unified_bench("scenes:all:60:0")
    rows = [e for e in examples if e.labels["task"] in ("poll", "pair")]
    how = Asking(by="logits", batch_size=2)
    torch.set_num_threads(1)
    whole = run(scenes, rows, how=how, progress=False)
    again = run(scenes, rows, how=how, out=out, resume=True, progress=False)
    assert killed >= KILLS
    pd.testing.assert_frame_equal(again.table.frame, whole.table.frame)


def test_yes_and_no_must_be_told_apart(scenes):
    tokens = poll_tokens(scenes)
    assert tokens["yes"] and tokens["no"] and not set(tokens["yes"]) & set(tokens["no"])
    with pytest.raises(UsageError, match="at least 1"):
        Asking(batch_size=0)
