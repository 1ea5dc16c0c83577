"""nnsight on the same weights, and the language model of a checkpoint on NDIF.

`to_nnsight` gives the traced model of weights in memory. `RemoteLVLM` runs caching, patching,
ablation and the logit lens of a language model too large for this machine. nnsight runs a plain
traced model locally when `remote=True` is asked of it, without a word; so remote runs go through
its `TransformersModel` alone, which never loads weights here, and a run that is not remote is
refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig

from lvlm_interp.errors import SiteError, UsageError
from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.families import family_of
from lvlm_interp.models.hooks import Tap
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.maps import check, token_maps
from lvlm_interp.models.inputs.processors import load_processor
from lvlm_interp.models.inputs.prompts import build_batch
from lvlm_interp.models.taps import taps_of
from lvlm_interp.sites import Site, select

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM

REMOTE_NAMES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "final_norm", "logits")
"""Sites that are a module's plain input or output, so that a remote run needs torch alone."""


def to_nnsight(model: LVLM) -> Any:
    """The traced model of the very weights of a model (not a copy)."""
    from nnsight import NNsight

    return NNsight(model.hf)


def load_remote(path_or_id: str, *, remote: bool | str, **kwargs: Any) -> RemoteLVLM:
    """A checkpoint's language model on NDIF; no weights are loaded here.

    Args:
        path_or_id: Hub id (a folder for `remote="local"`).
        remote: True for NDIF, `local` for the serialised dry run on this machine.
        kwargs: For nnsight's `TransformersModel`.

    Raises:
        UsageError: `remote` is neither: such a run would be local in silence.
    """
    if remote is not True and remote != "local":
        raise UsageError(
            f"remote={remote!r} would run on this machine in silence: pass remote=True for NDIF, "
            "remote='local' for a dry run, or load the model without backend='nnsight'."
        )
    from nnsight.modeling.transformers import TransformersModel

    options = {name: value for name, value in kwargs.items() if value not in (None, "auto")}
    config = AutoConfig.from_pretrained(path_or_id)
    processor = load_processor(path_or_id, config, {})
    traced = TransformersModel(
        path_or_id, task="image-text-to-text", processor=processor, **options
    )
    return RemoteLVLM(traced, processor, remote)


@dataclass(frozen=True)
class Write:
    """What a remote run writes at a site: plain data, so nothing of this package travels.

    Attributes:
        value: What is written, of the shape that the selection below has, or broadcast to it.
        positions: Positions that are written; all by default.
        head: Head of `z` that is written; all by default.
    """

    value: Tensor | float
    positions: Sequence[int] | None = None
    head: int | None = None


class RemoteLVLM:
    """The language model of an LVLM on NDIF, under the same names of sites.

    Attributes:
        traced: nnsight's `TransformersModel`.
        processor: Of the checkpoint.
        remote: Where runs go.
    """

    def __init__(self, traced: Any, processor: Any, remote: bool | str) -> None:
        self.traced = traced
        self.processor = processor
        self.remote = remote
        hf = traced._module
        self.config = hf.config
        self.family = family_of(hf.config)
        self._taps = {
            site: tap
            for site, tap in taps_of(hf, self.family).items()
            if site.tower == "text" and site.name in REMOTE_NAMES and tap.frame is None
        }
        paths = {id(module): name for name, module in hf.named_modules()}
        self._paths = {site: paths[id(tap.module)] for site, tap in self._taps.items()}

    def sites(self, patterns: str | Site | Iterable[str | Site] = "*") -> list[Site]:
        """Sites that a remote run can read and write, in the order of the forward."""
        return select(patterns, list(self._taps))

    def prepare(self, examples: Any, *, padding_side: str = "left") -> Inputs:
        """Image and prompt through the checkpoint's processor, on this machine."""
        rows = examples if isinstance(examples, list) else [examples]
        tensors, sizes, prompts = build_batch(self.processor, rows, padding_side)
        check(self.family, self.config, tensors)
        maps = token_maps(self.family, self.config, self.processor, tensors, sizes, prompts)
        return Inputs(tensors, maps, tuple(rows))

    def run_with_cache(
        self,
        inputs: Inputs,
        sites: str | Site | Iterable[str | Site] = "text.*.resid_post",
        *,
        writes: Mapping[str | Site, Write] | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], ActivationCache]:
        """Logits and activations of one remote forward, with what is written in it.

        Args:
            inputs: From `prepare`.
            sites: Names or globs, of `sites()`.
            writes: What to write where, for patching (a value of another run) and ablation (0).

        Raises:
            SiteError: A site cannot be reached in a remote run.
        """
        check(self.family, self.config, inputs)
        wanted = self.sites(sites)
        edits = {self._one(site): write for site, write in (writes or {}).items()}
        steps = [
            _step(self._paths[site], self._taps[site], edits.get(site), site in wanted)
            for site in self._taps
            if site in edits or site in wanted
        ]
        with _pickling_as_before():
            logits, values = _forward(self.traced, dict(inputs.tensors), steps, self.remote)
        cache = ActivationCache()
        for site, value in zip(
            (site for site in self._taps if site in wanted), values, strict=True
        ):
            cache[site] = self._taps[site].view.read(value)
        return logits, cache

    def logit_lens(
        self, inputs: Inputs, layers: Sequence[int] | None = None
    ) -> Float[Tensor, "layer batch pos d_vocab"]:
        """W_U . norm_final(resid_post) of each layer; weights stay where they are."""
        n = sum(site.name == "resid_post" for site in self._taps)
        chosen = list(range(n)) if layers is None else list(layers)
        paths = [self._paths[self._one(f"text.{layer}.resid_post")] for layer in chosen]
        ends = [self._paths[Site("text", None, name)] for name in ("final_norm", "logits")]
        with _pickling_as_before():
            return _lens(self.traced, dict(inputs.tensors), paths, ends, self.remote)

    def _one(self, site: str | Site) -> Site:
        found = self.sites(Site.parse(site))
        if len(found) != 1:
            raise SiteError(f"A write names one site, not {site}.")
        return found[0]


@contextmanager
def _pickling_as_before() -> Iterator[None]:
    """Undoes what a remote run leaves in cloudpickle's register.

    nnsight registers every module outside site-packages for pickling by value, for good; with this
    package among them (an editable install) no later pool of processes could be sent its functions.
    """
    import cloudpickle.cloudpickle as register

    before = set(register._PICKLE_BY_VALUE_MODULES)
    try:
        yield
    finally:
        register._PICKLE_BY_VALUE_MODULES.intersection_update(before)


def _step(path: str, tap: Tap, write: Write | None, read: bool) -> tuple[Any, ...]:
    """One site as plain data: path, direction, and what to write and read there."""
    index: Any = None
    value: Any = None
    if write is not None:
        positions = slice(None) if write.positions is None else list(write.positions)
        index, value = (slice(None), positions), write.value
        if write.head is not None:
            width = int(tap.module.weight.shape[1])  # pyright: ignore
            heads = tap.view.read(torch.empty(1, 1, width)).shape[-2]
            size = width // heads
            index = (*index, slice(write.head * size, (write.head + 1) * size))
        elif isinstance(value, Tensor) and tap.view.read is not None and value.ndim == 4:
            value = value.flatten(-2)
    return path, "input" if tap.where == "input" else "output", index, value, read


def _forward(traced: Any, tensors: dict[str, Any], steps: list[tuple], remote: Any) -> Any:
    """One trace; inside it stand torch and plain Python alone, because it is sent away."""
    import nnsight

    envoys = [traced.get(path) for path, *_ in steps]
    with torch.no_grad(), traced.trace(tensors, use_cache=False, remote=remote):
        values = nnsight.save([])
        for envoy, (_, where, index, value, read) in zip(envoys, steps, strict=True):
            raw = envoy.input if where == "input" else envoy.output
            whole = raw
            if isinstance(raw, tuple):
                raw = raw[0]
            if index is not None:
                raw = raw.clone()
                raw[index] = value
                new = (raw, *whole[1:]) if isinstance(whole, tuple) else raw
                if where == "input":
                    envoy.input = new
                else:
                    envoy.output = new
            if read:
                values.append(raw.clone())
        logits = nnsight.save(traced.output.logits)
    return logits, values


def _lens(
    traced: Any, tensors: dict[str, Any], paths: list[str], ends: list[str], remote: Any
) -> Any:
    import nnsight

    envoys = [traced.get(path) for path in paths]
    norm, head = (traced.get(path) for path in ends)
    with torch.no_grad(), traced.trace(tensors, use_cache=False, remote=remote):
        streams = []
        for envoy in envoys:
            raw = envoy.output
            streams.append(raw[0] if isinstance(raw, tuple) else raw)
        out = nnsight.save(torch.stack([head(norm(stream)) for stream in streams]))
    return out
