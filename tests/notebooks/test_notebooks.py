import importlib.util
import time
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
SECONDS = 60


def runner():
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_they_are_numbered_without_a_gap():
    assert [name[:2] for name in NAMES] == [f"{i:02d}" for i in range(1, len(NAMES) + 1)]
    assert len(NAMES) >= 7


@pytest.mark.parametrize("name", NAMES)
def test_ends_with_a_question_and_is_short(name):
    cells = jupytext.read(FOLDER / f"{name}.py").cells
    assert cells[0].source.startswith("# ")
    assert "**A question to try:**" in cells[-1].source
    assert all("sys.path" not in cell.source and "%%" not in cell.source for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_of_this_script(name):
    stored = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert code(stored) == code(jupytext.read(FOLDER / f"{name}.py"))
    ran = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in ran) and any(cell.outputs for cell in ran)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NAMES)
def test_runs_top_to_bottom_in_a_minute(name):
    start = time.perf_counter()
    notebook = runner().execute(FOLDER / f"{name}.py")
    assert time.perf_counter() - start < SECONDS
    assert not [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
