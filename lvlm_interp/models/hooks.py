"""The switchboard: the one place where hooks meet a model.

A `Tap` says where in the module graph a site's value passes and how to see it in the site's
shape. Visitors connect to taps; one line per module and direction holds them in order (edits
before readers), so a reader always sees what flows on, in whatever order contexts were entered.
Hooks exist only while a visitor is connected. A visitor sees the runs of the thread that connected
it and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, get_ident
from typing import Any

from torch import Tensor, nn

from lvlm_interp.errors import SiteError
from lvlm_interp.models.views import AS_IS, Follower, View

EDIT, READ = 0, 1
"""Order of visitors on one line."""

Visitor = Callable[[Tensor], Tensor | None]
"""Gets a site's value; returns the new value, or None to leave it."""


Reroute = Callable[[Callable[..., Any], tuple, dict[str, Any]], Any]
"""Gets a module's own forward and the arguments of a call; returns what the call gives."""


@contextmanager
def rerouted(module: nn.Module, route: Reroute) -> Iterator[None]:
    """Calls of a module go through a function while the context is open; its hooks still run."""
    own = module.forward
    had = module.__dict__.get("forward")  # whoever wrapped the module before us
    module.forward = lambda *args, **kwargs: route(own, args, kwargs)
    try:
        yield
    finally:
        if had is None:
            del module.forward
        else:
            module.forward = had


@dataclass(frozen=True)
class Tap:
    """Where a site's value passes.

    Attributes:
        module: The module at which it passes.
        where: `input` or `output` of the module's forward; `input_in_place`, where the caller also
            uses the tensor (a residual stream that a norm and a skip connection share); or a part
            of the attention function: `rot_q`, `rot_k`, `scores`, `pattern`.
        view: How the site sees it.
        keyword: Name of the input when it is passed by name, or of the field of an output that has
            several.
        frame: The call that the view needs to know of.
        ndim: Number of axes that the raw tensor must have; others that pass are none of the site's
            (a norm that is applied to a pooled vector too).
    """

    module: nn.Module
    where: str
    view: View = AS_IS
    keyword: str = "hidden_states"
    frame: Follower | None = None
    ndim: int | None = None

    def in_graph(self, value: Tensor) -> Tensor:
        """The value that readers get with a graph, of which the gradient is theirs alone."""
        if self.where == "input":
            # Who else has the tensor (a tower that keeps hidden states) does not read this site.
            value = value.view_as(value) if value.requires_grad else value.detach()
        elif self.where == "input_in_place" and self.view is not AS_IS:
            # A view of a tensor that is then written over in place would be cut out of the graph.
            value = value.clone()
        return value if value.requires_grad else value.requires_grad_()


ATTENTION_PARTS = ("rot_q", "rot_k", "scores", "pattern")


@dataclass(eq=False)
class _Visit:
    order: int
    view: View
    visitor: Visitor
    name: str
    ndim: int | None = None
    thread: int = field(default_factory=get_ident)
    active: bool = False
    muted: bool = False

    def hears(self, thread: int) -> bool:
        """Whether the runs of a thread are for it."""
        return self.thread == thread and not self.muted

    def call(self, value: Tensor) -> Tensor | None:
        """What the visitor gives for a value.

        Raises:
            SiteError: The visitor is called by a run that it started itself, which would never end.
        """
        if self.active:
            raise SiteError(
                f"What is open at {self.name} runs the model in which it is open itself: run the "
                "model before the context, and use what it gave."
            )
        self.active = True
        try:
            return self.visitor(value)
        finally:
            self.active = False


@dataclass(eq=False)
class Line:
    """The visitors of one tensor, in order."""

    visits: list[_Visit] = field(default_factory=list)
    handle: Any = None

    def join(self, visit: _Visit) -> None:
        """Put a visitor in its place."""
        # A new list each time: another thread may be on its way along the old one.
        self.visits = sorted([*self.visits, visit], key=lambda each: each.order)

    def leave(self, visit: _Visit) -> None:
        """Take a visitor off."""
        self.visits = [each for each in self.visits if each is not visit]

    @property
    def is_heard(self) -> bool:
        """Whether a visitor of this thread is on the line."""
        me = get_ident()
        return any(visit.hears(me) for visit in self.visits)

    def carry(self, raw: Tensor) -> Tensor:
        """Pass the tensor by every visitor of this thread and return what flows on."""
        me = get_ident()
        for visit in self.visits:
            if not visit.hears(me) or (visit.ndim is not None and raw.ndim != visit.ndim):
                continue
            value = visit.view.read(raw)
            new = visit.call(value)
            if new is not None:
                raw = visit.view.write(raw, _checked(new, value, visit.name))
        return raw


def _checked(new: Tensor, old: Tensor, name: str) -> Tensor:
    if not isinstance(new, Tensor):
        raise SiteError(f"The edit at {name} returned {type(new).__name__}, not a tensor.")
    if new.shape != old.shape:
        raise SiteError(
            f"The edit at {name} returned shape {tuple(new.shape)}, "
            f"but the site has {tuple(old.shape)}."
        )
    return new.to(dtype=old.dtype, device=old.device)


class Switchboard:
    """Connects visitors to taps and keeps exactly the hooks that are needed.

    Attributes:
        inputs: Names of the inputs that the model and its parts take.
        attention: Lines inside the attention function, by id of the attention module and part.
    """

    def __init__(self, inputs: frozenset[str] = frozenset()) -> None:
        self.inputs = inputs
        self._lock = Lock()
        self._silent: list[int] = []
        self._lines: dict[tuple[int, str, str], Line] = {}
        self.attention: dict[int, dict[str, Line]] = {}

    @contextmanager
    def connect_all(self, items: list[tuple[Tap, Visitor, str]], order: int) -> Iterator[None]:
        """Let visitors see (and change) what passes their taps while the context is open.

        All are gone afterwards, also on an exception.
        """
        # A plain loop: a context manager per site would cost as much as the hooks themselves.
        connected: list[tuple[Tap, tuple[int, str, str], _Visit]] = []
        try:
            for tap, visitor, name in items:
                with self._lock:
                    connected.append(self._connect(tap, visitor, order, name))
            yield
        finally:
            with self._lock:
                for tap, key, visit in reversed(connected):
                    self._disconnect(tap, key, visit)

    def _connect(
        self, tap: Tap, visitor: Visitor, order: int, name: str
    ) -> tuple[Tap, tuple[int, str, str], _Visit]:
        key = (id(tap.module), tap.where, tap.keyword)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = self._open(tap)
        if tap.frame is not None:
            tap.frame.open()
        visit = _Visit(order, tap.view, visitor, name, tap.ndim)
        line.join(visit)
        return tap, key, visit

    def _disconnect(self, tap: Tap, key: tuple[int, str, str], visit: _Visit) -> None:
        line = self._lines[key]
        line.leave(visit)
        if tap.frame is not None:
            tap.frame.close()
        if not line.visits:
            del self._lines[key]
            self._close(tap, line)

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Runs in this context pass by what this thread has connected around it."""
        me = get_ident()
        with self._lock:
            heard = [v for line in self._lines.values() for v in line.visits if v.hears(me)]
        for visit in heard:
            visit.muted = True
        self._silent.append(me)
        try:
            yield
        finally:
            self._silent.remove(me)
            for visit in heard:
                visit.muted = False

    @property
    def is_silent(self) -> bool:
        """Whether this thread runs the model past what it has connected."""
        return get_ident() in self._silent

    @property
    def is_watched(self) -> bool:
        """Whether a visitor of this thread is connected."""
        return any(line.is_heard for line in list(self._lines.values()))

    def _open(self, tap: Tap) -> Line:
        line = Line()
        if tap.where in ATTENTION_PARTS:
            self.attention.setdefault(id(tap.module), {})[tap.where] = line
        elif tap.where == "output":
            # First in the queue: transformers installs hooks of its own that copy outputs, and a
            # hook behind them edits what nobody reads.
            hook = _output_hook(line, tap.keyword)
            line.handle = tap.module.register_forward_hook(hook, prepend=True)
        elif tap.where in ("input", "input_in_place"):
            hook = _input_hook(line, tap.keyword, in_place=tap.where == "input_in_place")
            line.handle = tap.module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        else:
            raise SiteError(f"A tap cannot be at {tap.where!r}.")
        return line

    def _close(self, tap: Tap, line: Line) -> None:
        if line.handle is not None:
            line.handle.remove()
            return
        parts = self.attention[id(tap.module)]
        del parts[tap.where]
        if not parts:
            del self.attention[id(tap.module)]


def _output_hook(line: Line, keyword: str) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            new = line.carry(output)
            return None if new is output else new
        if isinstance(output, tuple):
            new = line.carry(output[0])
            return None if new is output[0] else (new, *output[1:])
        raw = output[keyword]
        new = line.carry(raw)
        if new is not raw:
            output[keyword] = new
        return None

    return hook


def _input_hook(line: Line, keyword: str, *, in_place: bool) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        name = keyword
        if not args and keyword not in kwargs:
            name = next(iter(kwargs))  # a block that calls its stream by another name
        named = name in kwargs
        raw = kwargs[name] if named else args[0]
        if raw is None:  # a step of generation that passes ids instead
            return None
        new = line.carry(raw)
        if new is raw:
            return None
        if in_place:
            raw.copy_(new)
            return None
        return (args, {**kwargs, name: new}) if named else ((new, *args[1:]), kwargs)

    return hook
