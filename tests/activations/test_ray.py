"""The Ray engine: the same bits as one process, also when a worker is killed midway."""

import os
import signal
import subprocess
import sys

import pytest

from lvlm_interp.activations.extract import extract
from lvlm_interp.models.loading import load_model
from lvlm_interp.organisms.architecture import build_model, build_processor
from tests.activations.conftest import SIZES
from tests.activations.test_store import same

WHAT = {"sites": "vision.*.resid_post,text.*.z", "positions": "object,image_all"}


def test_nothing_of_ray_is_imported_without_it():
    code = (
        "import lvlm_interp.jobs, lvlm_interp.activations.extract, sys;"
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_workers_give_the_same_bits_even_when_one_is_killed(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from lvlm_interp.jobs import on_ray as engine_of

    module = sys.modules[engine_of.__module__]

    folder = tmp_path / "model"
    build_model(SIZES, 0).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    model = load_model(folder)
    data = "scenes:object:450:3"
    extract(model, data, **WHAT, out=tmp_path / "one", progress=False)
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    killed = []
    real = module._drive

    def drive(ray, crew, job, waiting, progress, on_error):
        references = {}
        victim = crew[0]
        pid = ray.get(victim.process.remote())
        references[victim.do.remote(waiting[0], job.payload(waiting[0]))] = victim
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        real(ray, crew, job, waiting, progress, on_error)

    monkeypatch.setattr(module, "_drive", drive)
    try:
        engine = engine_of(workers=2, progress=False)
        extract(model, data, **WHAT, out=tmp_path / "two", engine=engine, progress=False)
    finally:
        ray.shutdown()
    assert killed and same(tmp_path / "one", tmp_path / "two")
