"""A store survives `kill -9` at any moment; on disk, in another process, at random times."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from lvlm_interp.activations.store import verify_store
from lvlm_interp.organisms.architecture import build_model, build_processor
from tests.activations.conftest import SIZES
from tests.activations.test_store import same

KILLS = 20

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from lvlm_interp.activations import manifest
from lvlm_interp.activations.extract import extract
from lvlm_interp.models.loading import load_model
manifest.UNIT = 32  # more units, so that a kill falls between and inside many of them
model = load_model(sys.argv[1], selfcheck=False)
print("ready", flush=True)
extract(model, "scenes:object:120:3", sites="vision.*.resid_post,text.*.resid_post,text.*.z",
        positions="object,last,image_all", out=sys.argv[2], resume=True, progress=False)
"""


def start(folder, out):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_twenty_kills_at_random_points_leave_the_same_store(tmp_path):
    folder = tmp_path / "model"
    build_model(SIZES, 0).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    clean = start(folder, tmp_path / "clean")
    clean.stdout.readline()
    begun = time.perf_counter()
    assert clean.wait() == 0
    whole = time.perf_counter() - begun
    rng, kills, finished = random.Random(0), 0, 0
    out = tmp_path / "killed"
    while kills < KILLS:
        process = start(folder, out)
        process.stdout.readline()
        # Mostly early, so that twenty kills fit into the work of one or two stores.
        time.sleep(rng.uniform(0, whole) ** 2 / whole * rng.choice((0.3, 1.0)))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        if process.returncode == 0:
            finished += 1
            assert same(out, tmp_path / "clean")
            out = tmp_path / f"killed{finished}"
    assert start(folder, out).wait() == 0
    assert verify_store(out) == []
    assert same(out, tmp_path / "clean")


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
    import json

    from PIL import Image

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
