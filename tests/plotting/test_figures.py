import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from lvlm_interp import plotting
from lvlm_interp.errors import UsageError
from lvlm_interp.plotting.style import save, sheet, to_png, venues
from lvlm_interp.results import ResultTable

NAMES = ["head_map", "role_map", "layer_curve", "probe_flow", "intervention", "behaviour"]
NAMES += ["overlay", "lens_grid", "forest", "circuit"]
TOLERANCE = 6.0
"""Root mean square difference of 0..255; another build of the font renderer stays far below."""


def difference(one, other):
    one, other = (np.asarray(image.convert("RGB"), dtype=float) for image in (one, other))
    if one.shape != other.shape:
        return float("inf")
    return float(np.sqrt(((one - other) ** 2).mean()))


@pytest.mark.parametrize("name", NAMES)
def test_figure_looks_like_its_baseline(pictures, name):
    drawn = Image.open(io.BytesIO(to_png(pictures.FIGURES[name](), dpi=100)))
    assert difference(drawn, Image.open(pictures.BASELINE / f"{name}.png")) < TOLERANCE


def test_the_comparison_can_fail(pictures):
    other = plotting.head_map(pictures.heads().assign(estimate=0.1), marked=[(2, 3), (1, 0)])
    drawn = Image.open(io.BytesIO(to_png(other, dpi=100)))
    assert difference(drawn, Image.open(pictures.BASELINE / "head_map.png")) > TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_text_is_readable_and_inside(pictures, name):
    figure = pictures.FIGURES[name]()
    figure.draw_without_rendering()
    texts = [
        text
        for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and text.get_window_extent().width > 0
    ]
    assert min(text.get_fontsize() for text in texts) >= 6
    drawn = figure.get_tightbbox()  # in inches, without ticks that are out of view
    if name != "lens_grid":  # its panels clip words at their borders
        assert min(drawn.x0, drawn.y0) > -0.03
        assert drawn.x1 < figure.get_figwidth() + 0.03
        assert drawn.y1 < figure.get_figheight() + 0.03


def test_files_embed_fonts_and_are_reproducible(pictures, tmp_path):
    first = save(pictures.FIGURES["role_map"](), tmp_path / "a", formats=("pdf", "png", "svg"))
    second = save(pictures.FIGURES["role_map"](), tmp_path / "b", formats=("pdf", "png", "svg"))
    assert [path.suffix for path in first] == [".pdf", ".png", ".svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert b"/FontFile2" in first[0].read_bytes()
    assert b"/Type3" not in first[0].read_bytes()
    with pytest.raises(UsageError, match="not as 'bmp'"):
        save(pictures.FIGURES["role_map"](), tmp_path / "c", formats=("bmp",))
    assert not list(tmp_path.glob("c*"))


@pytest.mark.parametrize(
    ("draw", "missing"),
    [
        (plotting.head_map, "head"),
        (plotting.role_map, "position"),
        (plotting.probe_flow, "site"),
        (plotting.behaviour, "condition"),
        (plotting.intervention, "stage"),
    ],
)
def test_a_missing_column_is_named(draw, missing):
    columns = ["layer", "head", "position", "site", "level", "condition", "stage", "estimate"]
    frame = pd.DataFrame([dict.fromkeys(columns, 1)]).drop(columns=missing)
    with pytest.raises(UsageError, match=f"needs the column '{missing}'"):
        draw(frame)


def test_double_values_are_refused(pictures):
    double = pd.concat([pictures.heads(), pictures.heads()])
    with pytest.raises(UsageError, match="several at layer 0, head 0"):
        plotting.head_map(double)
    with pytest.raises(UsageError, match="needs the columns estimate"):
        plotting.head_map(pictures.heads().rename(columns={"estimate": "value"}))
    with pytest.raises(UsageError, match="stages before, after, random"):
        plotting.intervention(pictures.before_after().replace({"stage": {"after": "later"}}))
    with pytest.raises(UsageError, match="shape \\(6,\\)"):
        plotting.overlay(pictures.scene(), np.zeros(6))


def test_a_tidy_table_is_averaged(pictures):
    frame = pictures.heads()
    rows = [
        {
            "example": f"e{i}",
            "layer": row.layer,
            "head": row.head,
            "metric": "recovery",
            "value": row.estimate + shift,
        }
        for row in frame.itertuples()
        for i, shift in enumerate((-0.1, 0.1))
    ]
    figure = plotting.head_map(ResultTable(rows))
    shown = figure.axes[0].images[0].get_array()
    expected = frame.pivot(index="layer", columns="head", values="estimate")
    np.testing.assert_allclose(shown, expected.to_numpy(), atol=1e-12)


def test_sizes_follow_the_venue():
    assert {"neurips2024", "icml2024", "iclr2024"} <= set(venues())
    with sheet("icml2024", width="half") as (figure, _):
        assert isinstance(figure, Figure)
        assert figure.get_figwidth() == pytest.approx(3.25, abs=0.01)
    with pytest.raises(UsageError, match="venue must be one of"), sheet("nature"):
        pass


def test_series_differ_without_colour(pictures):
    lines = pictures.FIGURES["layer_curve"]().axes[0].lines
    looks = {(line.get_marker(), str(line.get_linestyle())) for line in lines}
    assert len(looks) == len(lines)
