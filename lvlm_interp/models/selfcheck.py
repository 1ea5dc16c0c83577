"""The self-check: every declared site reads what it says, and writing there has an effect."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM


def self_check(model: LVLM) -> None:
    """Check a model's sites."""
