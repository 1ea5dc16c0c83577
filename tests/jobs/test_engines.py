"""The engine of long jobs: shards once each, whole or absent, errors kept, killed and resumed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lvlm_interp.errors import DataError, StoreError
from lvlm_interp.files import atomic_write
from lvlm_interp.jobs import Job, here, is_whole, read_marker, sweep_up, write_marker
from lvlm_interp.jobs.on_ray import ShardWorker, _drive


class Squares(Job):
    """Writes the square of each key; keys in `bad` fail."""

    label = "squares"

    def __init__(self, folder, n=6, bad=(), slow=None):
        self.folder, self.n, self.bad, self.slow = Path(folder), n, bad, slow
        self.started, self.computed = 0, []

    def path(self, key):
        return self.folder / f"{key}.json"

    @property
    def undone(self):
        return [key for key in range(self.n) if not self.path(key).is_file()]

    def payload(self, key):
        return key

    def start(self, threads=None):
        self.started += 1

    def compute(self, key, payload):
        if key in self.bad:
            raise DataError(f"shard {key} is bad")
        if self.slow is not None:
            self.slow(key)
        self.computed.append(key)
        return payload**2

    def write(self, key, result):
        atomic_write(self.path(key), json.dumps(result))

    def bare(self):
        return self


def test_every_shard_is_done_once_and_resuming_does_the_rest(tmp_path):
    job = Squares(tmp_path)
    engine = here(progress=False)
    engine(job, job.undone[:2])
    assert job.computed == [0, 1]
    engine(job, job.undone)
    assert job.computed == [0, 1, 2, 3, 4, 5] and job.undone == []
    engine(job, job.undone)
    assert job.started == 2  # nothing left: not even a model is loaded
    assert json.loads(job.path(3).read_text()) == 9


def test_a_bad_shard_raises_or_is_told_and_left(tmp_path):
    job, told = Squares(tmp_path, bad=(2,)), []
    with pytest.raises(DataError, match="shard 2 is bad"):
        here(progress=False)(job, job.undone)
    assert set(job.undone) == {2, 3, 4, 5}
    here(progress=False, on_error=lambda key, error: told.append((key, str(error))))(
        job, job.undone
    )
    assert told == [(2, "shard 2 is bad")] and job.undone == [2]


def test_what_is_no_fault_of_the_data_always_raises(tmp_path):
    def broken(key):
        raise ValueError("a bug")

    job = Squares(tmp_path, slow=broken)
    with pytest.raises(ValueError, match="a bug"):
        here(progress=False, on_error=lambda key, error: None)(job, job.undone)


def test_markers(tmp_path):
    part, marker = tmp_path / "part.bin", tmp_path / "units" / "0.json"
    assert not is_whole(marker, tmp_path)
    with pytest.raises(StoreError, match="not finished"):
        read_marker(marker)
    part.write_bytes(b"12345")
    write_marker(marker, tmp_path, [part], {"counts": 3})
    assert is_whole(marker, tmp_path) and read_marker(marker)["counts"] == 3
    part.write_bytes(b"1234")
    assert not is_whole(marker, tmp_path)
    marker.write_text("{")
    with pytest.raises(StoreError, match="damaged"):
        read_marker(marker)
    (tmp_path / ".part-x").write_text("left by a killed writer")
    (tmp_path / ".users-own").write_text("not ours")
    sweep_up(tmp_path, [".part-*"])
    assert not (tmp_path / ".part-x").exists() and (tmp_path / ".users-own").exists()


def test_a_killed_run_leaves_whole_shards(tmp_path):
    code = (
        "import sys, os, signal; sys.path.insert(0, os.getcwd())\n"
        "from tests.jobs.test_engines import Squares\n"
        "from lvlm_interp.jobs import here\n"
        "die = lambda key: os.kill(os.getpid(), signal.SIGKILL) if key == 4 else None\n"
        "job = Squares(sys.argv[1], slow=die)\n"
        "here(progress=False)(job, job.undone)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    job = Squares(tmp_path)
    assert 4 in job.undone and 5 in job.undone
    for key in set(range(6)) - set(job.undone):
        assert json.loads(job.path(key).read_text()) == key**2
    here(progress=False)(job, job.undone)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".json") == [
        f"{key}.json" for key in range(6)
    ]


class Inline:
    """What the driver needs of Ray, done at once: two workers that take shards in turns."""

    class Method:
        def __init__(self, function):
            self.function = function

        def remote(self, *arguments):
            return (self.function, arguments)

    def __init__(self, job, n=2):
        workers = [ShardWorker(job, 1) for _ in range(n)]
        self.crew = [type("Actor", (), {"do": self.Method(each.do)})() for each in workers]
        self.most = 0

    def wait(self, references, num_returns):
        self.most = max(self.most, len(references))
        return references[:num_returns], references[num_returns:]

    def get(self, reference):
        function, arguments = reference
        return function(*arguments)


def test_the_driver_keeps_every_worker_busy_and_tells_of_bad_shards(tmp_path):
    job, told = Squares(tmp_path, n=7, bad=(1, 4)), []
    inline = Inline(job)
    note = lambda key, error: told.append(key)  # noqa: E731
    _drive(inline, inline.crew, job, job.undone, False, note)
    assert sorted(told) == [1, 4] and job.undone == [1, 4] and inline.most == 2
    with pytest.raises(DataError, match="is bad"):
        _drive(inline, inline.crew, job, job.undone, False, None)
