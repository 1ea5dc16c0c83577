"""Runs: what must hold while a model runs, and is as the caller had it in between.

A run has no dropout, its hooks are seen (compiled code is not used while any are there), and its
attention function is the one that the thread needs. Runs of one model wait for each other, since
its attention function is kept in its configuration, which all threads share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from threading import Lock, RLock, get_ident
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from transformers import PreTrainedModel

from lvlm_interp.models.hooks import Switchboard

Names = Callable[[Any], str]
"""Gives the registered attention function of each configuration of a model."""


class Runs:
    """The runs of one Hugging Face model, shared by all views of it.

    Attributes:
        board: Who is connected to the model.
        records_exactly: Whether a recorded run gives the logits of a bare one; None before the
            self-check.
    """

    def __init__(self, hf: PreTrainedModel) -> None:
        self.board = Switchboard(_inputs(hf))
        # Weak, because this object is kept under the model and must not keep it alive.
        self._modules = [ref(module) for module in hf.modules()]
        self._configs = _configurations(hf)
        self.records_exactly: bool | None = None
        self._lock = RLock()
        self._own: list[str] | None = None
        self._held: list[Names] = []
        self._open: list[tuple[int, Names]] = []

    @contextmanager
    def running(self, names: Names | None = None) -> Iterator[None]:
        """Run the model while the context is open.

        Args:
            names: Attention function that these runs need; by default that of the contexts which
                this thread has open (`opened`), or the model's own.
        """
        with self._lock:
            if names is not None:
                self._held.append(names)
            modules = (each() for each in self._modules)
            training = [module for module in modules if module is not None and module.training]
            try:
                for module in training:
                    module.training = False
                self._set(self._held[-1] if self._held else self._of_thread())
                yield
            finally:
                if names is not None:
                    self._held.pop()
                for module in training:
                    module.training = True
                self._set(self._held[-1] if self._held else self._at_rest())

    @contextmanager
    def opened(self, names: Names) -> Iterator[None]:
        """Runs of this thread have an attention function while the context is open.

        Contexts may be closed in any order; after the last the model has its own function again.
        """
        entry = (get_ident(), names)
        with self._lock:
            self._open.append(entry)
            if not self._held:
                self._set(self._at_rest())
        try:
            yield
        finally:
            with self._lock:
                self._open.remove(entry)
                if not self._held:
                    self._set(self._at_rest())

    def _of_thread(self) -> Names | None:
        me = get_ident()
        return next((names for thread, names in reversed(self._open) if thread == me), None)

    def _at_rest(self) -> Names | None:
        """Also between runs, so that who calls the Hugging Face model directly is served."""
        return self._open[-1][1] if self._open else None

    def _set(self, names: Names | None) -> None:
        if names is None and self._own is None:
            return
        if self._own is None:
            self._own = [config._attn_implementation_internal for config in self._configs]
        # The public attribute sets the configurations below it too, so the plain one is used.
        for config, own in zip(self._configs, self._own, strict=True):
            config._attn_implementation_internal = own if names is None else names(config)
        if names is None:
            self._own = None


_runs: WeakKeyDictionary[nn.Module, Runs] = WeakKeyDictionary()


def runs_of(hf: PreTrainedModel) -> Runs:
    """The runs of a model: one object however many views it has."""
    if hf not in _runs:
        _runs[hf] = Runs(hf)
    return _runs[hf]


def _inputs(hf: nn.Module) -> frozenset[str]:
    """Names of what the model and the models inside of it take."""
    kinds = {type(module) for module in hf.modules() if isinstance(module, PreTrainedModel)}
    return frozenset(name for kind in kinds for name in signature(kind.forward).parameters)


def _configurations(hf: nn.Module) -> list[Any]:
    """Every configuration object that a submodule may look its implementation up in."""
    found: dict[int, Any] = {}
    for module in hf.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation_internal"):
            found[id(config)] = config
    return list(found.values())


class _Eager:
    """Compiled code is passed over while anyone needs hooks: a graph does not have later ones."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = 0
        self._stance: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._stance = torch.compiler.set_stance("force_eager")
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._stance.__exit__(None, None, None)


eager = _Eager()
"""Context in which nothing runs compiled, whoever compiled it; may be closed in any order."""
