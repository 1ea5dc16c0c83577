"""Sphinx configuration; `make docs` builds with warnings as errors."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import latex2mathml.converter  # noqa: E402
from docutils import nodes  # noqa: E402

import lvlm_interp  # noqa: E402

project = "lvlm-interp"
author = "The lvlm-interp maintainers"
copyright = "The lvlm-interp maintainers"
release = version = lvlm_interp.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_math_renderer = "mathml"  # browsers draw it themselves: the site needs no network
html_title = f"lvlm-interp {release}"
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # stored outputs are shown; the tests run the notebooks
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_member_order = "bysource"
# jaxtyping's shape strings are no types that Sphinx could link.
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_use_ivar = True


def copy_notebooks() -> None:
    """Notebooks live at the top of the repository; the site shows the stored outputs."""
    target = HERE / "tutorial"
    target.mkdir(exist_ok=True)
    for path in sorted((HERE.parent / "notebooks").glob("[0-9]*.ipynb")):
        shutil.copyfile(path, target / path.name)


copy_notebooks()


def mend_lists(_app, _what, _name, _object, _options, lines: list[str]) -> None:
    """A list right under its sentence reads well in Python; reStructuredText wants a blank line."""
    for index in range(len(lines) - 1, 0, -1):
        above = lines[index - 1]
        if lines[index].startswith("- ") and above.strip() and not above.startswith(("- ", "  ")):
            lines.insert(index, "")


def escape_bars(_app, _what, _name, _object, _options, lines: list[str]) -> None:
    """In docstrings `|x|` is a size; to reStructuredText it would be a substitution."""
    for index, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
        lines[index] = "`".join(parts)


def inline_math(writer, node) -> None:
    """LaTeX in a line, as MathML."""
    writer.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def block_math(writer, node) -> None:
    """LaTeX of its own, as MathML."""
    writer.body.append(latex2mathml.converter.convert(node.astext(), display="block"))
    raise nodes.SkipNode


def setup(app) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("autodoc-process-docstring", mend_lists)
    app.connect("autodoc-process-docstring", escape_bars)
