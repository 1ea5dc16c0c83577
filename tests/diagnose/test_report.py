from PIL import Image

from lvlm_interp.diagnose.report import Picture, render

PAGE = {
    "title": "What <b>x</b> sees",
    "subtitle": "s",
    "levels": [
        {
            "name": "object",
            "found": True,
            "headline": "h",
            "verdict": "<script>alert(1)</script>",
            "question": "is there a <img src=x onerror=alert(1)> ?",
            "truth": "no",
            "foil": "yes",
            "parts": [
                {
                    "title": "t",
                    "text": "x",
                    "figures": [],
                    "columns": ["a", "b"],
                    "rows": [["<i>", "1"]],
                }
            ],
        }
    ],
    "behaviour_text": "b",
    "behaviour_figure": None,
    "reading": "r",
    "rules": ["r1"],
    "run": [("command", "<&>")],
}


def test_words_from_outside_are_escaped_and_nothing_is_loaded_from_elsewhere(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    picture = Picture(tmp_path / "a.png", "a <caption>")
    path = render(tmp_path / "report.html", {**PAGE, "behaviour_figure": picture})
    text = path.read_text()
    assert "<script>" not in text and "<img src=x" not in text and "<b>x</b>" not in text
    assert "&lt;caption&gt;" in text
    assert 'src="data:image/png;base64,' in text
    assert "http" not in text.replace("http-equiv", "")
