"""A store survives `kill -9` at any moment; on disk, in another process, at random times."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from lvlm_interp.activations.store import verify_store
from lvlm_interp.organisms.architecture import build_model, build_processor
from tests.activations.conftest import SIZES
from tests.activations.test_store import same

KILLS = 20

SERVER = """
import os, sys, torch
torch.set_num_threads(1)
import pyarrow, tensorstore
from lvlm_interp.activations import manifest
from lvlm_interp.activations.extract import extract
from lvlm_interp.data.sources import load_examples
from lvlm_interp.models.loading import load_model

manifest.UNIT = 16  # more units, so that a kill falls between and inside many of them
model = load_model(sys.argv[1], selfcheck=False)
data = load_examples("scenes:object:60:3")
for line in sys.stdin:
    child = os.fork()  # a fresh process for each run, without the cost of importing torch
    if child == 0:
        extract(model, data, sites="vision.*.resid_post,text.*.resid_post,text.*.z",
                positions="object,last,image_all", out=line.strip(), resume=True, progress=False)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Runs extractions in processes of their own; `-9` is what a killed one returns."""

    def __init__(self, folder):
        command = [sys.executable, "-W", "ignore", "-c", SERVER, str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes, stderr=subprocess.DEVNULL)

    def start(self, out):
        self.process.stdin.write(f"{out}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        return int(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()


@pytest.mark.slow
def test_twenty_kills_at_random_points_leave_the_same_store(tmp_path):
    folder, clean = tmp_path / "model", tmp_path / "clean"
    build_model(SIZES, 0).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    rng, kills, finished, partial = random.Random(0), 0, 0, 0
    with Server(folder) as server:
        server.start(clean)
        assert server.wait() == 0
        begun = time.perf_counter()
        server.start(tmp_path / "again")
        assert server.wait() == 0 and same(tmp_path / "again", clean)
        whole = time.perf_counter() - begun
        out = tmp_path / "killed"
        while kills < KILLS:
            child = server.start(out)
            time.sleep(rng.uniform(0, 0.7 * whole))
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
            outcome = server.wait()
            assert outcome in (0, -signal.SIGKILL)
            kills += outcome != 0
            partial += outcome != 0 and 0 < len(list(out.glob("000/units/*.json"))) < 8
            if outcome == 0:
                finished += 1
                assert same(out, clean)
                out = tmp_path / f"killed{finished}"
        server.start(out)
        assert server.wait() == 0
    assert verify_store(out) == [] and same(out, clean)
    assert partial >= 5  # kills did fall into the middle of the work


MEMORY = """
import resource, sys, torch
torch.set_num_threads(1)
from lvlm_interp.activations.extract import extract
from lvlm_interp.models.loading import load_model
extract(load_model(sys.argv[1], selfcheck=False), sys.argv[2], sites="text.*.resid_post,text.*.z",
        positions="object,last,image_all", out=sys.argv[3], progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_examples(tmp_path):
    folder = tmp_path / "model"
    build_model(SIZES, 0).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    for index in range(16):
        Image.new("RGB", (48, 48), (index * 10, 50, 90)).save(tmp_path / f"{index}.png")
    peaks = {}
    for n in (500, 5000):
        lines = [
            {"image": f"{i % 16}.png", "prompt": "is there a ring ?", "answer": "no", "foil": "yes"}
            | {"boxes": {"object": [0, 0, 16, 16]}, "labels": {"present": bool(i % 2)}}
            for i in range(n)
        ]
        data = tmp_path / f"{n}.jsonl"
        data.write_text("\n".join(map(json.dumps, lines)))
        command = [sys.executable, "-W", "ignore", "-c", MEMORY, folder, data, tmp_path / f"s{n}"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        peaks[n] = int(done.stdout.split()[-1])
    assert peaks[5000] < 1.1 * peaks[500], peaks
