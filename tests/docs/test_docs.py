import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("furo", reason="the documentation tools are not installed (extra: docs)")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    built = subprocess.run(
        [*command, "-d", str(tmp_path / "trees"), str(ROOT / "docs"), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "html" / "methods.html").read_text()
    assert "Belrose" in page and "<math" in page and "W_U" not in page


def test_every_figure_is_in_the_gallery():
    gallery = (ROOT / "docs" / "gallery.md").read_text()
    for script in sorted((ROOT / "figures").glob("fig_*.py")):
        assert f"`{script.name}`" in gallery
    pictures = re.findall(r"{image} (\S+)", gallery)
    assert len(pictures) == len(set(pictures)) >= 9
    for picture in pictures:
        assert (ROOT / "docs" / picture).stat().st_size < 200_000
    tables = set(re.findall(r"`(figures/data/\S+)`", gallery))
    assert all((ROOT / table).is_file() for table in tables)


def test_every_benchmark_is_on_its_page():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for script in (ROOT / "benchmarks").glob("*.py"):
        assert script.name == "harness.py" or f"`{script.name}`" in page


def test_the_page_of_the_lenses_says_what_the_tables_say(monkeypatch, tmp_path):
    made = load("docs/make_lenses.py", monkeypatch)
    sections = [made.localisation(), made.tuned_lens(), made.detection(), made.ablation()]
    assert (ROOT / "docs" / "lenses.md").read_text() == made.HEAD + "".join(sections)


def test_the_page_of_alignment_says_what_was_measured(monkeypatch):
    made = load("docs/make_alignment.py", monkeypatch)
    assert made.PAGE.read_text() == made.page(json.loads(made.DATA.read_text()))


@pytest.mark.slow
def test_every_figure_is_drawn_from_its_table(monkeypatch, tmp_path):
    tables = load("figures/tables.py", monkeypatch)
    monkeypatch.setitem(sys.modules, "tables", tables)
    monkeypatch.setattr(tables, "HERE", tmp_path / "figures")
    monkeypatch.setattr(tables, "GALLERY", tmp_path / "gallery")
    shutil.copytree(ROOT / "figures" / "data", tmp_path / "figures" / "data")
    for script in sorted((ROOT / "figures").glob("fig_*.py")):
        runpy.run_path(str(script), run_name="__main__")
    drawn = {path.name for path in (tmp_path / "gallery").iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "images" / "figures").iterdir()}
    kinds = {path.suffix for path in (tmp_path / "figures" / "out").iterdir()}
    assert kinds == {".pdf", ".svg", ".png"}


def load(path, monkeypatch):
    """A script as a module; its folder is on the path while the test runs."""
    file = ROOT / path
    monkeypatch.syspath_prepend(str(ROOT / "figures"))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
