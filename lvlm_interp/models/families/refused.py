"""Architectures that are not supported, and why, in one sentence each."""

from __future__ import annotations

REFUSED: dict[str, str] = {}
