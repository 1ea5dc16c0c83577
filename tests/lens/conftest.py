"""One model and one batch for all tests of the lenses."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tests_lens_models import picture, random_model

from lvlm_interp.data.examples import Example


@pytest.fixture(scope="session")
def model():
    return random_model()


@pytest.fixture(scope="session")
def examples():
    prompts = ["is there a ring ?", "what color is the circle ?", "where is the square ?"]
    return [
        Example(
            id=f"e{i}",
            image=picture(i),
            prompt=prompt,
            boxes={"object": (4, 6, 17, 19)},
            group=f"s{i}",
        )
        for i, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="session")
def inputs(model, examples):
    return model.prepare(examples)
