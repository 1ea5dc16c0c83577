"""A small LLaVA with random weights, and a few scenes."""

import pytest
import torch

from lvlm_interp.data.sources import load_examples
from lvlm_interp.models.loading import wrap
from lvlm_interp.organisms.architecture import Sizes, build_model, build_processor

SIZES = Sizes(
    vision_layers=3, vision_width=24, text_layers=2, text_width=32, text_heads=4, text_mlp=48
)


def tiny_model(seed=0, dtype=torch.float32):
    return wrap(build_model(SIZES, seed).eval().to(dtype), build_processor())


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def examples():
    """Twenty scenes of two levels, so that prompts differ in length."""
    return load_examples("scenes:object:5:1") + load_examples("scenes:relation:5:1")
