"""Run the notebooks top to bottom and store them with their outputs.

`python notebooks/execute.py [NAME ...]` runs `NAME.py` (all by default) and writes `NAME.ipynb`.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

from lvlm_interp.files import atomic_write

FOLDER = Path(__file__).parent


def sources() -> list[Path]:
    """The notebooks as scripts, in order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def execute(path: Path, timeout: int = 300) -> nbformat.NotebookNode:
    """The notebook of a script with its outputs; a failing cell raises."""
    notebook = jupytext.read(path)
    for index, cell in enumerate(notebook.cells):
        # Random ids would change the file at each run.
        cell["id"] = f"{path.stem[:2]}-{index:02d}"
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    os.environ["TQDM_DISABLE"] = "1"  # else bars come as widgets, which need a live kernel
    NotebookClient(notebook, timeout=timeout, kernel_name="python3").execute(cwd=str(FOLDER))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # Progress bars and warnings of the machine it ran on are nothing to a reader.
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    notebook.metadata.get("language_info", {}).pop("version", None)
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="such as 02_what_image_tokens_say")
    names = parser.parse_args().names
    unknown = set(names) - {path.stem for path in sources()}
    if unknown:
        parser.error(f"no notebook {', '.join(sorted(unknown))}: expected the stem of a .py here")
    for path in sources():
        if names and path.stem not in names:
            continue
        start = time.perf_counter()
        notebook = execute(path)
        atomic_write(path.with_suffix(".ipynb"), nbformat.writes(notebook) + "\n")
        print(f"{path.stem}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
