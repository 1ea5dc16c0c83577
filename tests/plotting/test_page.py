import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

import tests_browser as browser

from lvlm_interp.cli import main
from lvlm_interp.errors import UsageError
from lvlm_interp.lens import LensResult, logit_lens
from lvlm_interp.lens.positions import Selection
from lvlm_interp.models.loading import wrap
from lvlm_interp.organisms.architecture import Sizes, build_model, build_processor, save_folder
from lvlm_interp.plotting import lens_page, write_lens_page
from lvlm_interp.results import ResultTable
from lvlm_interp.sites import Site
from lvlm_interp.tokens import ImageLayout, TokenMap

HOSTILE = 'is there a </script><img src=x onerror=alert(1)> & "ring" ?'
CHROMIUM = browser.find()


@pytest.fixture(scope="module")
def lens():
    hf = build_model(Sizes(), 0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * 2 * parameter.shape[-1] ** -0.5)
    model = wrap(hf, build_processor())
    image = Image.new("RGB", (48, 48), (240, 240, 240))
    image.paste((200, 30, 30), (4, 6, 18, 20))
    return logit_lens(model, model.prepare([(image, HOSTILE)]), words=["ring"], top_k=8)


def large(n_side=24, n_layers=32, k=20, vocabulary=32000):
    """A lens of LLaVA-1.5's size, from random numbers."""
    rng = np.random.default_rng(0)
    n = n_side**2
    row, col = np.divmod(np.arange(n), n_side)
    side = 336 / n_side
    box = np.stack([col * side, row * side, (col + 1) * side, (row + 1) * side], axis=1)
    kind = np.array(["image"] * n, dtype=object)
    layout = ImageLayout(kind, row, col, np.zeros(n, int), box)
    tokens = TokenMap.build(np.zeros(n, int), image_token=0, layouts=[layout])
    words = np.array([f"</w{i:x}é&<" for i in range(vocabulary)], dtype=object)
    shape = (n_layers, n, k)
    return LensResult(
        table=ResultTable({"metric": ["none"], "value": [0.0]}),
        sites=tuple(Site("text", layer, "resid_post") for layer in range(n_layers)),
        heads=(None,) * n_layers,
        tokens=(tokens,),
        selection=Selection(np.zeros(n, int), np.arange(n)),
        words=("ring",),
        top=words[rng.integers(0, vocabulary, shape)],
        top_probs=-np.sort(-rng.dirichlet(np.ones(k), size=shape[:2]), axis=-1),
        word_probs=rng.random((n_layers, n, 1)),
        word_ranks=np.zeros((n_layers, n, 1), int),
        entropy=np.zeros((n_layers, n)),
        images=(Image.fromarray(rng.integers(0, 255, (336, 336, 3), dtype=np.uint8)),),
        prompts=(HOSTILE,),
    )


def test_page_escapes_the_prompt_and_keeps_it_as_typed(lens):
    page = lens_page(lens, model="a <b>model</b>")
    assert "<img src=x" not in page and "<b>model" not in page
    assert "is there a &lt;/script&gt;&lt;img src=x onerror=alert(1)&gt; &amp;" in page
    assert page.count("</script>") == 2  # ours
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_large_page_fits_into_five_megabytes():
    page = lens_page(large())
    assert len(page.encode()) <= 5e6
    assert page.count("</script>") == 2


def test_a_page_needs_whole_sites_and_one_image(lens):
    model_result = lens
    with pytest.raises(UsageError, match="Row 3 was asked"):
        lens_page(model_result, row=3)
    twice = large(n_side=2, n_layers=2)
    object.__setattr__(twice, "heads", (0, 1))
    with pytest.raises(UsageError, match="not single heads"):
        lens_page(twice)


@pytest.mark.slow
def test_command_writes_the_page_and_warns_of_unknown_words(tmp_path, capsys):
    save_folder(build_model(Sizes(), 0), tmp_path / "model")
    Image.new("RGB", (48, 48)).save(tmp_path / "i.png")
    words = ["lens", str(tmp_path / "model"), "--image", str(tmp_path / "i.png")]
    out = tmp_path / "page.html"
    assert main([*words, "--prompt", "is there a <i>zebra</i> ?", "--out", str(out)]) == 0
    assert "does not know" in capsys.readouterr().err
    assert "&lt;i&gt;zebra&lt;/i&gt;" in out.read_text()
    assert main([*words, "--prompt", "is there a ring ?", "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["lens", str(tmp_path / "model"), "--image", str(tmp_path / "i.png")]) == 2
    assert "needs --prompt" in capsys.readouterr().err


@pytest.fixture(scope="module")
def opened():
    started = browser.Browser(CHROMIUM)
    yield started
    started.close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: chromium)")
class TestInBrowser:
    def test_hover_click_slider_and_search(self, opened, lens, tmp_path):
        opened.open(write_lens_page(lens, tmp_path / "page.html"))
        assert opened.ask("document.querySelectorAll('.cell').length") == 36
        assert opened.ask("document.getElementById('prompt').textContent") == HOSTILE
        # hover: the words of that patch at the layer of the slider, the last one at first
        opened.mouse(".cell[data-token='8']")
        cells = "[...document.querySelectorAll('#hover td:nth-child(2)')].map((e) => e.textContent)"
        assert opened.ask(cells) == list(lens.top[-1, 8])
        # click: follow the patch through all layers
        opened.mouse(".cell[data-token='8']", click=True)
        said = opened.ask(
            "[...document.querySelectorAll('#pin td:nth-child(2)')].map((e) => e.textContent)"
        )
        assert [text.split()[0] for text in said] == list(lens.top[:, 8, 0])
        # slider: two steps to the left
        opened.ask("document.getElementById('layer').focus()")
        for _ in range(2):
            opened.key("ArrowLeft", 37)
        assert opened.ask("document.getElementById('layer-name').textContent") == "layer 1"
        assert opened.ask(cells) == list(lens.top[1, 8])
        # search: the values of all patches are the word's probabilities
        opened.ask("document.getElementById('search').focus()")
        opened.type("ring")
        values = opened.ask(
            "[...document.querySelectorAll('.cell')].map((e) => Number(e.dataset.value))"
        )
        np.testing.assert_allclose(values, lens.prob("ring")[1], atol=2e-5)
        # without colours the picture is as it was
        style = "getComputedStyle(document.getElementById('image')).filter"
        assert opened.ask(style) == "grayscale(1)"
        opened.mouse("#heat", click=True)
        assert opened.ask(style) == "none"
        tint = "getComputedStyle(document.querySelector('.cell')).backgroundColor"
        assert opened.ask(tint) == "rgba(0, 0, 0, 0)"
        assert opened.problems() == []

    def test_a_large_page_opens(self, opened, tmp_path):
        opened.open(write_lens_page(large(), tmp_path / "large.html"))
        assert opened.ask("document.querySelectorAll('.cell').length") == 576
        opened.mouse(".cell[data-token='100']")
        assert opened.ask("document.querySelectorAll('#hover tr').length") == 20
        assert opened.problems() == []
