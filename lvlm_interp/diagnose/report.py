"""The report: one self-contained page, every word from outside escaped, figures inlined."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from lvlm_interp.files import atomic_write

_PIXELS_PER_INCH = 150


@dataclass(frozen=True)
class Picture:
    """A figure in the report.

    Attributes:
        path: PNG file.
        caption: Below it.
        alt: What it shows, for those who cannot see it.
    """

    path: Path
    caption: str
    alt: str = ""


def render(path: Path, page: Mapping[str, Any]) -> Path:
    """Write the page.

    Args:
        path: Of the HTML file.
        page: Values of `templates/report.html.j2`.
    """
    environment = Environment(
        loader=PackageLoader("lvlm_interp.diagnose"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.j2").render(figure=_figure, **page)
    return atomic_write(path, text)


def _figure(picture: Picture | None) -> Markup:
    if picture is None:
        return Markup("")
    data = base64.b64encode(picture.path.read_bytes()).decode()
    return Markup(
        '<figure style="max-width:{}px"><img src="data:image/png;base64,{}" alt="{}">'
        "<figcaption>{}</figcaption></figure>"
    ).format(
        _css_width(picture.path), Markup(data), picture.alt or picture.caption, picture.caption
    )


def _css_width(path: Path) -> int:
    """Width on screen in CSS pixels, so that the print sizes of all figures stay in proportion."""
    with Image.open(path) as image:
        dpi = float(image.info.get("dpi", (150.0, 150.0))[0])
        return round(image.width / dpi * _PIXELS_PER_INCH)
