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
