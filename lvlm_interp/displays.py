"""What a result shows in Jupyter: a registry by type, which `plotting` fills and no one imports."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

from lvlm_interp.errors import UsageError

__all__ = ["display_of", "register_display"]

_DISPLAY_GROUP = "lvlm_interp.displays"

Display = Callable[[Any], str]
_displays: dict[type, Display] = {}
_plugins_loaded = False


def register_display(result_type: type, function: Display) -> None:
    """Say how results of a type (and its subclasses) show themselves in Jupyter.

    A package can name a module that registers its displays under the entry-point group
    `lvlm_interp.displays`; it is imported when a result is first shown.

    Args:
        result_type: A subclass of `Result`.
        function: Takes the result, gives HTML.

    Raises:
        UsageError: Another function is registered for that very type.
    """
    known = _displays.setdefault(result_type, function)
    if known is not function and (known.__module__, known.__qualname__) != (
        function.__module__,
        function.__qualname__,
    ):
        raise UsageError(
            f"{result_type.__name__} has a display already: {known.__module__}.{known.__qualname__}"
        )
    _displays[result_type] = function


def display_of(result_type: type) -> Display | None:
    """What is registered for a type, or for the nearest type that it is made from."""
    global _plugins_loaded
    if not _plugins_loaded:
        _plugins_loaded = True
        for entry in metadata.entry_points(group=_DISPLAY_GROUP):
            entry.load()
    return next((_displays[kind] for kind in result_type.__mro__ if kind in _displays), None)
