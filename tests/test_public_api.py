"""The import stays light, public names are exactly what is listed, typos are told."""

import subprocess
import sys

import pytest

import lvlm_interp

HEAVY = (
    "torch",
    "transformers",
    "matplotlib",
    "nnsight",
    "transformer_lens",
    "ray",
    "pandas",
    "numpy",
)
REPORT = f"import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"


def imported_by(code):
    """Which of the heavy packages are loaded after `code` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; {REPORT}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_import_is_light():
    assert imported_by("import lvlm_interp, lvlm_interp.errors, lvlm_interp.cli") == []


def test_the_light_import_test_can_fail():
    assert {"pandas", "numpy"} <= set(imported_by("import lvlm_interp; lvlm_interp.ResultTable"))


def test_help_imports_nothing_heavy():
    assert imported_by("from lvlm_interp.cli import main; main([])")[-1:] != ["torch"]


@pytest.mark.parametrize("name", lvlm_interp.__all__)
def test_every_listed_name_exists(name):
    assert getattr(lvlm_interp, name) is not None
    assert name in dir(lvlm_interp)


def test_a_misspelt_name_says_what_is_near():
    with pytest.raises(
        AttributeError, match=r"no attribute 'ResultTabel'; did you mean 'ResultTable'\?"
    ):
        _ = lvlm_interp.ResultTabel
    with pytest.raises(AttributeError, match=r"no attribute 'utterly_else'$"):
        _ = lvlm_interp.utterly_else
    with pytest.raises(ImportError):
        from lvlm_interp import nothing_of_the_kind  # noqa: F401


def test_public_names_say_what_they_are():
    undocumented = [
        name for name in lvlm_interp.__all__ if not (getattr(lvlm_interp, name).__doc__)
    ]
    assert not undocumented
