"""A judge on the loopback that answers well, badly, slowly and with errors."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lvlm_interp.cli import main
from lvlm_interp.errors import UsageError
from lvlm_interp.evaluation.judge import Judge, JudgeError, Prompt
from lvlm_interp.evaluation.judge_prompts import wording_of
from tests.evaluation.files import write_json

PROMPTS = [Prompt(f"p{i}", f"Question {i}?", system="Judge.") for i in range(4)]


class Server:
    """Serves the replies that are lined up: a text, a status code, raw bytes, or a wait."""

    def __init__(self, plan=(), default="Rating: 4"):
        self.plan, self.default, self.seen = list(plan), default, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append((self.path, body, self.headers.get("Authorization")))
                step = outer.plan.pop(0) if outer.plan else outer.default
                if isinstance(step, float):
                    threading.Event().wait(step)
                    step = outer.default
                if isinstance(step, int):
                    self.send_error(step)
                    return
                raw = step if isinstance(step, bytes) else json.dumps(
                    {"choices": [{"message": {"content": step}}]}
                ).encode()  # fmt: skip
                try:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(raw)
                except OSError:
                    pass  # the judge's client did not wait

            def log_message(self, *args):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/v1"


def judge(server, **options):
    return Judge(server.url, "a-judge", wait=0.01, timeout=5, **options)


def test_it_asks_each_once_and_keeps_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with Server() as server:
        asked = judge(server, key_variable="MY_KEY")
        first = asked.ask(PROMPTS[:2], tmp_path / "j.jsonl", progress=False)
        again = asked.ask(PROMPTS, tmp_path / "j.jsonl", progress=False)
        assert len(server.seen) == 4
    assert [each.reply for each in first] == ["Rating: 4"] * 2
    assert [each.id for each in again] == ["p0", "p1", "p2", "p3"]
    path, body, key = server.seen[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert body["model"] == "a-judge" and body["messages"][0]["role"] == "system"
    rows = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert {"prompt", "reply", "model", "temperature", "max_tokens", "id"} <= set(rows[0])
    assert "secret" not in (tmp_path / "j.jsonl").read_text()


def test_passing_faults_are_tried_again(tmp_path):
    with Server([500, b"not json", 429, "Rating: 5"]) as server:
        (found,) = judge(server).ask(PROMPTS[:1], tmp_path / "j.jsonl", progress=False)
    assert found.reply == "Rating: 5" and len(server.seen) == 4


def test_what_fails_for_good_is_missing_and_asked_again_the_next_time(tmp_path):
    with Server([503] * 3) as server:
        lost = judge(server, tries=3).ask(PROMPTS[:2], tmp_path / "j.jsonl", progress=False)
        assert lost[0].reply is None and "503" in lost[0].error and lost[1].reply == "Rating: 4"
        found = judge(server).ask(PROMPTS[:2], tmp_path / "j.jsonl", progress=False)
    assert [each.reply for each in found] == ["Rating: 4"] * 2 and len(server.seen) == 5


def test_a_slow_judge_is_given_up_and_tried_again(tmp_path):
    with Server([0.5]) as server:
        asked = Judge(server.url, "a-judge", wait=0.01, timeout=0.2)
        (found,) = asked.ask(PROMPTS[:1], tmp_path / "j.jsonl", progress=False)
    assert found.reply == "Rating: 4"


def test_a_wrong_key_stops_at_once_and_loses_nothing(tmp_path):
    with Server(["Rating: 1", 401]) as server:
        with pytest.raises(JudgeError, match=r"401 .* the key in OPENAI_API_KEY"):
            judge(server).ask(PROMPTS, tmp_path / "j.jsonl", progress=False)
        assert len(server.seen) == 2
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == 1


def test_a_judge_that_is_down_is_said(tmp_path):
    down = Judge("http://127.0.0.1:9/v1", "a-judge", wait=0.01, tries=2)
    (found,) = down.ask(PROMPTS[:1], tmp_path / "j.jsonl", progress=False)
    assert found.reply is None and "cannot be reached" in found.error


def test_the_cost_is_known_before_and_capped(tmp_path):
    with Server() as server:
        dear = judge(server, price=(1000.0, 2000.0), max_tokens=100)
        expected = (4 * len("Question 0?Judge.") / 3 * 1000 + 400 * 2000) / 1e6
        assert dear.cost(PROMPTS) == pytest.approx(expected)
        with pytest.raises(JudgeError, match="nothing was asked"):
            dear.ask(PROMPTS, tmp_path / "j.jsonl", max_cost=0.5, progress=False)
        with pytest.raises(UsageError, match="price"):
            judge(server).ask(PROMPTS, tmp_path / "j.jsonl", max_cost=1, progress=False)
        assert not server.seen


def test_a_line_that_was_cut_is_asked_again(tmp_path):
    path = tmp_path / "j.jsonl"
    with Server() as server:
        judge(server).ask(PROMPTS[:2], path, progress=False)
        path.write_bytes(path.read_bytes()[:-20])
        judge(server).ask(PROMPTS[:2], path, progress=False)
        assert len(server.seen) == 3
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["p0", "p1"]


def test_a_local_model_takes_the_endpoints_place(tmp_path):
    local = Judge("", "mine", complete=lambda messages: messages[-1]["content"].upper())
    (found,) = local.ask(PROMPTS[:1], tmp_path / "j.jsonl", progress=False)
    assert found.reply == "QUESTION 0?"


def test_the_command_judges_and_the_score_is_had_offline(tmp_path, capsys):
    rows = [
        {"question": f"What is it, number {i}?", "gt_answer": "a thing", "image_id": f"x{i}",
         "image_src": f"x{i}.jpg"} for i in range(3)
    ]  # fmt: skip
    truth = write_json(tmp_path / "truth" / "response_template.json", rows).parent
    answers = write_json(
        tmp_path / "answers.json",
        [{"question": row["question"], "image_src": row["image_src"], "model_answer": "a dog"}
         for row in rows],
    )  # fmt: skip
    out = tmp_path / "judged.jsonl"
    words = ["judge", "mmhal", "--answers", str(answers), "--truth", str(truth), "--out", str(out),
             "--model", "a-judge"]  # fmt: skip
    with Server(["Rating: 6", "I would rather not", "Rating: 1"]) as server:
        assert main([*words, "--url", server.url, "--price", "1,2"]) == 0
        shown = capsys.readouterr().out
        assert "dollars" in shown and "3 prompts" in shown
        assert "a dog" in server.seen[0][1]["messages"][-1]["content"]
    scored = ["score", "mmhal", "--answers", str(out), "--truth", str(truth), "--rule",
              "mmhal-strict", "--json", str(tmp_path / "s.json"), "--n-resamples", "0"]  # fmt: skip
    assert main(scored) == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["scores"]["score"]["estimate"] == 3.5 and scores["unparsed"] == 1


def test_prompts_of_the_user_are_checked(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Is {answer} right about {image}?")
    with pytest.raises(UsageError, match="fields image; mmhal has contents"):
        wording_of("mmhal", path)
    path.write_text("Rate {answer}.")
    assert wording_of("mmhal", path).name == "mine.txt"
    with pytest.raises(UsageError, match="pope has no judge here"):
        wording_of("pope")
