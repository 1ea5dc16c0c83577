"""The pictures and their tables, which tests and the baseline script share."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pictures():
    path = Path(__file__).with_name("pictures.py")
    spec = importlib.util.spec_from_file_location("plotting_pictures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
