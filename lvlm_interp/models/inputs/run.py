"""The run that is going on: what it knows of its rows, for the views of towers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch import nn

from lvlm_interp.errors import SiteError
from lvlm_interp.models.inputs.rows import Rows, RowsByTower

RowsOf = Callable[[Mapping[str, Any]], RowsByTower]
"""From a model's inputs to the rows of its towers."""


class _Call:
    """A call of the Hugging Face model that did not come by way of `LVLM`."""

    def __init__(self, tensors: Mapping[str, Any], rows_of: RowsOf) -> None:
        self.tensors = tensors
        self._rows_of = rows_of

    @cached_property
    def rows(self) -> RowsByTower:
        return self._rows_of(self.tensors)


class CurrentRun:
    """Knows the rows of the run that is going on.

    `LVLM` notes the inputs of its runs; while a view needs it, calls of the Hugging Face model
    itself are followed too (`open` and `close`, as in `hooks.Frame`).
    """

    def __init__(self, hf: nn.Module, rows_of: RowsOf) -> None:
        self._hf = hf
        self._rows_of = rows_of
        self._known: list[Any] = []
        self._users = 0
        self._handles: list[Any] = []

    @contextmanager
    def noting(self, inputs: Any) -> Iterator[None]:
        """These `Inputs` are what runs while the context is open."""
        self._known.append(inputs)
        try:
            yield
        finally:
            self._known.pop()

    def rows(self, tower: str) -> Rows:
        """Of a tower, in the run that is going on.

        Raises:
            SiteError: Nothing is known of what runs, or the family does not say how its rows lie.
        """
        known = self._known[-1] if self._known else None
        if known is None:
            raise SiteError(
                f"A site of the {tower} was reached outside of a run of the model: call the model "
                "itself, not one of its modules."
            )
        if tower not in known.rows:
            raise SiteError(f"The model's family does not say how rows lie in the {tower}.")
        return known.rows[tower]

    def open(self) -> None:
        """Start to follow calls of the model."""
        self._users += 1
        if self._users == 1:
            enter = self._hf.register_forward_pre_hook(self._enter, with_kwargs=True)
            leave = self._hf.register_forward_hook(self._leave, always_call=True)
            self._handles = [enter, leave]

    def close(self) -> None:
        """Stop, once nobody needs it."""
        self._users -= 1
        if self._users == 0:
            for handle in self._handles:
                handle.remove()

    def _enter(self, _module: nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
        known = self._known[-1] if self._known else None
        pixels = kwargs.get("pixel_values")
        noted = known is not None and known.tensors.get("pixel_values") is pixels
        # A step of generation has no pixels; what it reads was noted with the prompt.
        new = known if pixels is None or noted else _Call(kwargs, self._rows_of)
        self._known.append(new)

    def _leave(self, *_: Any) -> None:
        self._known.pop()
