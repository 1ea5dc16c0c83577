"""Replay: patched runs that branch off one recorded run of the language model.

A patch at layer l and positions >= p leaves everything before it as it was. So one run is recorded
(`record_run`), and each patched run is a *branch*: blocks l and above, positions p and above,
attending to the recorded keys and values of the prefix. Branches of one layer join those of earlier
layers in one batch, laid out along the position axis. With p the last position, a branch is a
single token. What a branch does not change is not computed:

- a patch behind the attention of its block (z, and all after it) takes the recorded output of the
  attention, plus W_O times the change of z for a head, and enters the block there;
- in the last block only the position of the answer has a query, an output and an MLP.

This is exact only while positions before p cannot see positions from p on. `Recording.refusal`
checks it on the masks that the model itself made (no list of families: it is what fails for
PaliGemma and inside Gemma-3 image spans), and an unpatched branch that runs along with the others
must come back to the recorded run (`Recording.drift`). What fails is refused, with the reason, and
callers fall back to full forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.hooks import ATTENTION_PARTS, EDIT, Reroute, rerouted
from lvlm_interp.models.recording import Cuts, Layer, Recording, first, record_run
from lvlm_interp.models.replay_attention import Branching, replaying, serving
from lvlm_interp.sites import Site

__all__ = ["MIB", "Exchange", "Recording", "can_branch", "record_run", "run_branches"]

MIB = 2**20
_INSIDE = ("q", "k", "v")
"""Sites between the stream and the attention's scores."""
NOT_IN_BRANCHES = ("deepstack", "cross_k", "cross_v", "cross_scores", "cross_pattern")
"""Sites of the language model that lie in blocks and are none of what a branch computes anew."""


@runtime_checkable
class Exchange(Protocol):
    """What one branch takes from another run."""

    @property
    def site(self) -> Site:
        """Where."""
        ...

    @property
    def unit(self) -> int | None:
        """Head or neuron; None for the whole site."""
        ...

    @property
    def mask(self) -> Tensor:
        """Positions that are exchanged; shape `batch pos`."""
        ...


def can_branch(site: Site) -> bool:
    """Whether a patch at this site can be a branch: it lies in a block, outside of attention.

    What deepstack adds between blocks, and the keys and values of cross-attention, are taken from
    the recorded run.
    """
    inside = site.tower == "text" and site.layer is not None
    return inside and site.name not in (*ATTENTION_PARTS, *NOT_IN_BRANCHES)


@torch.no_grad()
def run_branches(
    recording: Recording,
    exchanges: Sequence[Exchange],
    values: ActivationCache,
    start: int,
    *,
    null: bool = False,
) -> Float[Tensor, "branch batch d_vocab"]:
    """Logits at the answer of every branch; all are held at once.

    Args:
        recording: The run that they leave.
        exchanges: What each takes from the other run, one branch each.
        values: The other run's activations.
        start: First position that differs from the recorded run.
        null: Put an unpatched branch through every block in front of the others.
    """
    sweep = _Sweep(recording, values, start, len(exchanges) + null)
    layers = [each.site.layer or 0 for each in exchanges]
    entries = [sweep.enters_late(each) for each in exchanges]
    order = sorted(range(len(exchanges)), key=lambda i: (layers[i], entries[i]))
    hidden = recording.layers[0].hidden[:, None, start:] if null else None
    with replaying(recording.model._runs):
        for index in range(0 if null else min(layers), len(recording.layers)):
            fresh = [i for i in order if layers[i] == index]
            early = [exchanges[i] for i in fresh if not entries[i]]
            late = [exchanges[i] for i in fresh if entries[i]]
            if hidden is not None or fresh:
                hidden = sweep.step(index, hidden, early, late)
    assert hidden is not None
    if not sweep.narrows:
        hidden = sweep.answers(hidden)
    logits = recording.model.unembed(hidden[:, :, 0]).transpose(0, 1)
    back = torch.empty(len(order) + null, dtype=torch.long, device=logits.device)
    places = torch.arange(len(back), device=logits.device)
    back[torch.tensor([*[0] * null, *(i + null for i in order)], device=back.device)] = places
    return logits[back]


@dataclass(frozen=True, eq=False)
class _Rows:
    """Positions of a branch that are computed: all from `start` on, or the answer's alone."""

    start: int
    answer: Tensor | None = None

    def of(self, value: Tensor) -> Tensor:
        """Those positions of a value of the whole sequence; `batch pos ...`."""
        value = value[:, self.start :]
        if self.answer is None:
            return value
        return value[torch.arange(len(value), device=value.device), self.answer][:, None]


class _Enough(Exception):
    """The attention is done, and nothing behind it in the block is wanted."""


class _Sweep:
    """Branches of one recording from one position on."""

    def __init__(
        self, recording: Recording, values: ActivationCache, start: int, n_branches: int
    ) -> None:
        self.recording = recording
        self.model = recording.model
        self.values = values
        self.rows = _Rows(start)
        self.cuts = Cuts(recording.n_positions, start, n_branches)
        self.narrows = recording.n_positions - start > 1
        """Whether the last block has positions that nobody asks for."""
        self.answer = recording.inputs.last.to(recording.logits.device) - start

    def enters_late(self, exchange: Exchange) -> bool:
        """Whether an exchange lies behind the attention of its block."""
        assert exchange.site.layer is not None
        if exchange.site.name == "z":
            return self.recording.layers[exchange.site.layer].output is not None
        return exchange.site.name not in ("resid_pre", *_INSIDE)

    def answers(self, hidden: Tensor) -> Tensor:
        """The answer's position of each branch; `batch branch 1 d_model`."""
        return hidden[torch.arange(len(hidden), device=hidden.device), :, self.answer][:, :, None]

    def step(
        self,
        index: int,
        hidden: Float[Tensor, "batch before pos d_model"] | None,
        early: Sequence[Exchange],
        late: Sequence[Exchange],
    ) -> Float[Tensor, "batch branch row d_model"]:
        """The stream behind a block, of the branches that come and of those that join here."""
        layer = self.recording.layers[index]
        narrow = self.narrows and index == len(self.recording.layers) - 1
        rows = _Rows(self.rows.start, self.answer) if narrow else self.rows
        streams = [] if hidden is None else [hidden]
        if early:
            stream = self.rows.of(layer.hidden)[:, None].expand(-1, len(early), -1, -1)
            streams.append(self._exchanged("resid_pre", early, stream, self.rows))
        attended = None
        if narrow and streams:
            attended = self._answers_attended(layer, _joined(streams), early)
            streams = [self.answers(stream) for stream in streams]
        if late:
            streams.append(rows.of(layer.hidden)[:, None].expand(-1, len(late), -1, -1))
        out = self._block(layer, _joined(streams), rows, attended, early, late)
        return out if layer.shift is None else out + rows.of(layer.shift)[:, None]

    def _block(
        self,
        layer: Layer,
        hidden: Float[Tensor, "batch branch pos d_model"],
        rows: _Rows,
        attended: Tensor | None,
        early: Sequence[Exchange],
        late: Sequence[Exchange],
    ) -> Float[Tensor, "batch branch pos d_model"]:
        """One block; its attention runs for those branches alone that do not enter behind it."""
        n_branches = hidden.shape[1]
        n_active = n_branches - len(late)
        entered = self._entered(layer, late, rows) if late else None

        def route(own: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
            parts = [] if attended is None else [attended]
            if attended is None and n_active:
                parts.append(self._attention(layer, own, args, kwargs, n_active, early))
            if entered is not None:
                parts.append(entered)
            flat = _joined(parts).flatten(1, 2)
            return flat if layer.extras is None else (flat, *layer.extras)

        behind = [e for e in late if e.site.name != "z" and not self._is_inner(layer, e.site)]
        edits = self._edits(behind, late, n_active, n_branches, rows)
        with rerouted(layer.attention, route), self.model._connected(edits, EDIT):
            out = layer.block(hidden.flatten(1, 2), *layer.args, **layer.kwargs)
        return first(out).unflatten(1, (n_branches, -1))

    def _answers_attended(
        self, layer: Layer, hidden: Tensor, early: Sequence[Exchange]
    ) -> Float[Tensor, "batch branch 1 d_model"]:
        """What the attention gives at the answer; every position has a key, one has a query."""
        found: list[Tensor] = []

        def route(own: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
            found.append(
                self._attention(layer, own, args, kwargs, hidden.shape[1], early, self.answer)
            )
            raise _Enough

        with rerouted(layer.attention, route), suppress(_Enough):
            layer.block(hidden.flatten(1, 2), *layer.args, **layer.kwargs)
        return self.answers(found[0])

    def _attention(
        self,
        layer: Layer,
        own: Any,
        args: tuple,
        kwargs: dict[str, Any],
        n_branches: int,
        early: Sequence[Exchange],
        answer: Tensor | None = None,
    ) -> Float[Tensor, "batch branch pos d_model"]:
        """The attention module's own forward on the first branches of a call."""
        cut = self.cuts.of
        n_rows = n_branches * (self.recording.n_positions - self.rows.start)
        stream = (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])[:, :n_rows]
        rest = {k: cut(k, v, n_branches) for k, v in kwargs.items()}
        if "hidden_states" in kwargs:
            rest["hidden_states"] = stream
        else:
            args = (stream, *(cut("", each, n_branches) for each in args[1:]))
        inside = [each for each in early if each.site.name in (*_INSIDE, "z")]
        edits = self._edits(inside, early, n_branches - len(early), n_branches, self.rows)
        branching = Branching(layer.seen, self.rows.start, n_branches, answer)
        with ExitStack() as stack:
            stack.enter_context(serving(layer.attention, branching))
            stack.enter_context(self.model._connected(edits, EDIT))
            for module in layer.per_query if answer is not None else ():
                stack.enter_context(rerouted(module, self._at_answer(n_branches)))
            return first(own(*args, **rest)).unflatten(1, (n_branches, -1))

    def _at_answer(self, n_branches: int) -> Reroute:
        """A linear map at the answer's position alone; it gives zero elsewhere."""

        def route(own: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor:
            if kwargs or args[0].ndim != 3:
                return own(*args, **kwargs)
            split = args[0].unflatten(1, (n_branches, -1))
            rows = torch.arange(len(split), device=split.device)
            out = own(split[rows, :, self.answer])
            whole = out.new_zeros(*split.shape[:3], out.shape[-1])
            whole[rows, :, self.answer] = out
            return whole.flatten(1, 2)

        return route

    def _entered(
        self, layer: Layer, late: Sequence[Exchange], rows: _Rows
    ) -> Float[Tensor, "batch branch row d_model"]:
        """What the attention gives in branches that enter behind it."""
        attended = rows.of(layer.attended)[:, None]
        heads = [i for i, each in enumerate(late) if each.site.name == "z"]
        change = self._change(layer, [late[i] for i in heads], rows) if heads else None
        if change is not None and len(heads) == len(late):
            return attended + change
        attended = attended.repeat(1, len(late), 1, 1)
        if change is not None:
            attended[:, heads] += change
        for place, each in enumerate(late):
            if self._is_inner(layer, each.site):
                view = self.model.tap(each.site).view
                one = attended[:, place : place + 1]
                new = self._exchanged(each.site.name, [each], view.read(one), rows)
                attended[:, place : place + 1] = view.write(one, new)
        return attended

    def _change(
        self, layer: Layer, parts: Sequence[Exchange], rows: _Rows
    ) -> Float[Tensor, "batch branch row d_model"]:
        """What another z adds to the attention's output: W_O (z' - z), of one head or of all."""
        assert layer.output is not None
        old = rows.of(layer.seen.z)
        change = rows.of(self.values[parts[0].site]).to(old) - old
        units = list(dict.fromkeys(part.unit for part in parts))
        numbered = [unit for unit in units if unit is not None]
        added = []
        if numbered:
            # One product for all heads, and no copy of W_O where they are every head of the layer.
            every = numbered == list(range(old.shape[2]))
            heads = slice(None) if every else numbered
            weight = layer.output.weight.unflatten(1, old.shape[2:])[:, heads]
            moved = change[:, :, heads].permute(2, 0, 1, 3).flatten(1, 2)
            added.append((moved @ weight.permute(1, 2, 0)).unflatten(1, old.shape[:2]))
        if None in units:
            added.append(linear(change.flatten(2), layer.output.weight)[None])
        each = added[0] if len(added) == 1 else torch.cat(added)
        order = {unit: i for i, unit in enumerate([*numbered, None])}
        places = [order[part.unit] for part in parts]
        each = each if places == list(range(len(each))) else each[places]
        return each.transpose(0, 1) * _masks(parts, rows, each)[..., None]

    def _is_inner(self, layer: Layer, site: Site) -> bool:
        """Whether a site passes inside the attention module, which late branches do not enter."""
        if site.name != "attn_out":
            return False
        tapped = self.model.tap(site).module
        return any(tapped is each for each in layer.attention.modules())

    def _edits(
        self,
        wanted: Sequence[Exchange],
        joining: Sequence[Exchange],
        n_before: int,
        n_branches: int,
        rows: _Rows,
    ) -> dict[Site, Callable[[Tensor], Tensor]]:
        """Edits that make some of the branches that join behind the first `n_before` ones."""
        by_site: dict[Site, list[int]] = {}
        for place, each in enumerate(joining):
            if any(each is one for one in wanted):
                by_site.setdefault(each.site, []).append(place)

        def editor(site: Site, places: list[int]) -> Callable[[Tensor], Tensor]:
            parts, at = [joining[i] for i in places], [n_before + i for i in places]

            def edit(value: Tensor) -> Tensor:
                split = value.unflatten(1, (n_branches, -1)).clone()
                split[:, at] = self._exchanged(site.name, parts, split[:, at], rows)
                return split.flatten(1, 2)

            return edit

        return {site: editor(site, places) for site, places in by_site.items()}

    def _exchanged(
        self,
        name: str,
        parts: Sequence[Exchange],
        value: Float[Tensor, "batch branch pos ..."],
        rows: _Rows,
    ) -> Float[Tensor, "batch branch pos ..."]:
        """The value at a site, with what those branches that patch it take from the other run."""
        mine = [i for i, each in enumerate(parts) if each.site.name == name]
        if not mine:
            return value
        parts = [parts[i] for i in mine]
        chosen = _masks(parts, rows, value).bool()
        source = rows.of(self.values[parts[0].site]).to(value)
        new = value.clone()
        whole = [j for j, each in enumerate(parts) if each.unit is None]
        single = [j for j, each in enumerate(parts) if each.unit is not None]
        if whole:
            at = [mine[j] for j in whole]
            keep = chosen[:, whole].reshape(*chosen[:, whole].shape, *[1] * (value.ndim - 3))
            new[:, at] = torch.where(keep, source[:, None], value[:, at])
        if single:
            # Two lists of indices with an axis between them: their axis comes first.
            at, units = [mine[j] for j in single], [parts[j].unit for j in single]
            keep = chosen[:, single].transpose(0, 1)
            old = value[:, at, :, units]
            keep = keep.reshape(*keep.shape, *[1] * (old.ndim - 3))
            new[:, at, :, units] = torch.where(keep, source[:, :, units].movedim(2, 0), old)
        return new


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Branches in one batch."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _masks(parts: Sequence[Exchange], rows: _Rows, like: Tensor) -> Tensor:
    """Positions that each branch exchanges; `batch branch pos`, in the dtype of `like`."""
    masks: dict[int, Tensor] = {}  # heads at one position share their mask
    for part in parts:
        if id(part.mask) not in masks:
            masks[id(part.mask)] = rows.of(part.mask.to(like.device)).to(like.dtype)
    if len(masks) == 1:
        return next(iter(masks.values()))[:, None].expand(-1, len(parts), -1)
    return torch.stack([masks[id(part.mask)] for part in parts], dim=1)
