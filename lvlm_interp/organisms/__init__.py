"""Organisms: small LVLMs whose flaw is known, and the scenes they live in."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""The shipped folders: one per model, `stages/` with one per stage, and the model card."""


def scenes_path() -> Path:
    """Returns the folder of `scenes`, the model with the planted flaw."""
    return WEIGHTS / "scenes"


def scenes_balanced_path() -> Path:
    """Returns the folder of `scenes-balanced`, the same recipe without the plants."""
    return WEIGHTS / "scenes-balanced"
