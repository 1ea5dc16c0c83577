import numpy as np
import pytest
from PIL import Image

from lvlm_interp.lens import logit_lens
from lvlm_interp.models.loading import wrap
from lvlm_interp.organisms.architecture import Sizes, build_model, build_processor


@pytest.fixture(scope="module")
def lens():
    model = wrap(build_model(Sizes(), 0).eval(), build_processor())
    image = Image.fromarray(np.full((48, 48, 3), 200, dtype=np.uint8))
    return logit_lens(model, model.prepare([(image, "is there a ring ?")]), words=["ring"])


def test_a_lens_shows_words_and_table(lens):
    from lvlm_interp import plotting

    shown = lens._repr_html_()
    assert plotting and "data:image/png;base64," in shown
    assert "ResultTable" in shown and "<script" not in shown
