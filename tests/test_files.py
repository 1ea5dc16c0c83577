"""Files are whole or absent, whatever happens while they are written."""

import subprocess
import sys
import time

import pytest

from lvlm_interp.files import (
    atomic_path,
    atomic_write,
    sha256_bytes,
    sha256_file,
    sha256_folder,
)


def test_write_makes_parents_and_replaces(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    assert atomic_write(path, "één\n") == path
    assert path.read_bytes() == "één\n".encode()
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [found.name for found in path.parent.iterdir()] == ["file.txt"]


def test_failure_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file.json"
    atomic_write(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_have_the_usual_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    assert atomic_write(tmp_path / "ours", "").stat().st_mode == plain.stat().st_mode


def test_hash_of_a_file_is_the_hash_of_its_bytes(tmp_path):
    data = bytes(range(256)) * 8192  # more than one chunk
    assert sha256_file(atomic_write(tmp_path / "data", data)) == sha256_bytes(data)


def test_hash_of_a_folder_knows_names_and_contents_and_not_the_place(tmp_path):
    for folder in ("a", "b"):
        atomic_write(tmp_path / folder / "x.bin", b"1")
        atomic_write(tmp_path / folder / "sub" / "y.bin", b"2")
    first = sha256_folder(tmp_path / "a")
    assert first == sha256_folder(tmp_path / "b")
    atomic_write(tmp_path / "b" / "note.txt", "no weight")
    assert sha256_folder(tmp_path / "b", "**/*.bin") == sha256_folder(tmp_path / "a", "**/*.bin")
    assert sha256_folder(tmp_path / "b") != first
    (tmp_path / "a" / "x.bin").rename(tmp_path / "a" / "z.bin")
    assert sha256_folder(tmp_path / "a") != first


WRITER = """
import itertools, sys
from lvlm_interp.files import atomic_write
for turn in itertools.count():
    atomic_write(sys.argv[1], bytes([turn % 256]) * 4_000_000)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_files(tmp_path):
    path = tmp_path / "file"
    for kill in range(10):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        try:
            while not path.exists():
                time.sleep(0.01)
            time.sleep(0.05 + 0.013 * kill)
        finally:
            process.kill()
            process.wait()
        content = path.read_bytes()
        assert len(content) == 4_000_000
        assert len(set(content)) == 1
        path.unlink()
