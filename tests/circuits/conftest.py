"""The models and pairs of the tests of patching."""

from tests.patching.conftest import alike, model, pairs, unlike

__all__ = ["alike", "model", "pairs", "unlike"]
