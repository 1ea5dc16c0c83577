"""LVLM: one uniform view of a Large Vision-Language Model that stays untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.models import attention, generation
from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.family import Family, TowerShape, shape_of
from lvlm_interp.models.generation import decoder_of, noted_runs
from lvlm_interp.models.hooks import ATTENTION_PARTS, EDIT, READ, Tap
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.maps import check, required_inputs, token_maps
from lvlm_interp.models.inputs.prompts import answer_id, build_batch
from lvlm_interp.models.inputs.rows import RowsByTower
from lvlm_interp.models.maps.unembedding import Unembedding
from lvlm_interp.models.reading import connected_reader, reader
from lvlm_interp.models.runs import eager, runs_of
from lvlm_interp.models.taps import packed_modules, run_of, taps_of
from lvlm_interp.sites import Site, select

Edit = Callable[[Tensor], Tensor]
"""Gets a site's value and returns the new one, of the same shape."""

Keep = Callable[[Site, Tensor], Tensor]
"""Picks what a cache keeps of a site's value (positions, heads)."""


class LVLM:
    """A Hugging Face LVLM seen through sites, token maps, caches and edits.

    Attributes:
        hf: The Hugging Face model as it was loaded.
        processor: Its processor; None when wrapped without one.
        family: Where the parts of its architecture are.
        name: What it was loaded from.
    """

    def __init__(self, hf: Any, processor: Any, family: Family, name: str = "") -> None:
        self.hf = hf
        self.processor = processor
        self.family = family
        self.name = name or hf.config.model_type
        self._run = run_of(hf, family)
        self._taps = taps_of(hf, family, self._run)
        self._runs = runs_of(hf)
        self._board = self._runs.board
        self._selected: dict[Any, list[Site]] = {}
        self._required = required_inputs(hf)
        self._attention = attention.implementation(packed_modules(hf, family))

    # -- what the model is ---------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.hf.config

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.hf.dtype

    @property
    def tokenizer(self) -> Any:
        """Of its processor.

        Raises:
            InputError: The model was wrapped without a processor.
        """
        if self.processor is None:
            raise InputError("This model was wrapped without a processor: pass one to li.wrap().")
        return self.processor.tokenizer

    @cached_property
    def towers(self) -> dict[str, TowerShape]:
        """Sizes of each tower by name."""
        return {tower.name: shape_of(self.hf, tower) for tower in self.family.towers}

    @property
    def n_layers(self) -> int:
        """Blocks of the language model."""
        return self.towers["text"].n_layers

    @property
    def n_heads(self) -> int:
        """Attention heads per block of the language model."""
        return self.towers["text"].n_heads

    @property
    def d_model(self) -> int:
        """Width of the language model's residual stream."""
        return self.towers["text"].d_model

    @property
    def d_head(self) -> int:
        """Width of a head of the language model."""
        return self.towers["text"].d_head

    @property
    def d_vocab(self) -> int:
        """Number of tokens it can predict."""
        return self.config.get_text_config().vocab_size

    @cached_property
    def unembed(self) -> Unembedding:
        """Logits of any residual stream: the final norm, the head, and what is behind it."""
        return Unembedding(self)

    def sites(self, patterns: str | Site | Iterable[str | Site] = "*") -> list[Site]:
        """Declared sites that match names or globs, in the order of the forward.

        Raises:
            SiteError: A pattern matches nothing.
        """
        one = isinstance(patterns, str | Site)
        key = patterns if one else tuple(patterns)
        # A sweep asks for the same sites thousands of times; matching names costs milliseconds.
        if key not in self._selected:
            self._selected[key] = select(key, list(self._taps))
        return list(self._selected[key])

    def tap(self, site: str | Site) -> Tap:
        """Where a site passes in the module graph (for the package's own methods).

        Raises:
            SiteError: The model has no such site.
        """
        return self._taps[self.sites(Site.parse(site))[0]]

    # -- inputs ----------------------------------------------------------------------------------

    def prepare(self, examples: Any, *, padding_side: str = "left") -> Inputs:
        """Image and prompt through the model's own processor and chat template.

        Args:
            examples: One or a list of: an `Example` (anything with `image` and `prompt`), or a pair
                (image, prompt). An image is a PIL image, a path, a list of these, or None.
            padding_side: Side on which shorter rows are padded.

        Raises:
            InputError: No processor, no image file, or placeholders that do not fit the image.
        """
        rows = examples if isinstance(examples, list) else [examples]
        if not rows:
            raise InputError("There is nothing to prepare: the list of examples is empty.")
        tensors, sizes, prompts = build_batch(self.processor, rows, padding_side)
        check(self.family, self.config, tensors, self._required)
        maps = token_maps(self.family, self.config, self.processor, tensors, sizes, prompts)
        made = Inputs(tensors, maps, tuple(rows), self._rows_of)
        return made.to(self.device, self.dtype)

    def _rows_of(self, tensors: Mapping[str, Any]) -> RowsByTower:
        return self.family.rows_of(self.config, tensors)

    def as_inputs(self, inputs: Inputs | Mapping[str, Any]) -> Inputs:
        """Inputs as they are, or the model's own tensors by name, checked.

        Raises:
            InputError: The tensors would run without their image, or do not fit each other.
        """
        check(self.family, self.config, inputs, self._required)
        if isinstance(inputs, Inputs):
            return inputs if inputs.rows_of else replace(inputs, rows_of=self._rows_of)
        tensors = dict(inputs)
        prompts = [None] * len(tensors["input_ids"])
        maps = token_maps(self.family, self.config, self.processor, tensors, None, prompts)
        return Inputs(tensors, maps, rows_of=self._rows_of).to(self.device, self.dtype)

    def answer_id(self, answer: str, reply: str = "") -> int:
        """Id of the first token of an answer as the chat template continues with it.

        Args:
            answer: The word.
            reply: What the model has said before it, if it is not the reply's first word.

        Raises:
            InputError: The tokenizer does not know the word.
        """
        return answer_id(self.processor, answer, reply)

    # -- runs ------------------------------------------------------------------------------------

    def __call__(
        self, inputs: Inputs | Mapping[str, Any], *, grad: bool = False, **kwargs: Any
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Logits of a forward, with the edits that are open.

        Args:
            inputs: From `prepare`, or the model's own inputs by name.
            grad: Keep the graph for a backward.
            kwargs: For the Hugging Face forward, for example `logits_to_keep=1`.

        Raises:
            InputError: The inputs would run without their image.
        """
        ready = self.as_inputs(inputs)
        tensors = dict(ready.tensors)
        mask = tensors.get("attention_mask")
        if mask is not None and bool(mask.all()):
            del tensors["attention_mask"]  # SDPA pays for a mask that masks nothing
        with torch.set_grad_enabled(grad), self._runs.running(), self._run.noting(ready):
            return self.hf(**tensors, use_cache=False, **kwargs).logits

    def last_logits(
        self, inputs: Inputs | Mapping[str, Any], *, grad: bool = False
    ) -> Float[Tensor, "batch d_vocab"]:
        """Logits at each row's last position, where its answer is predicted."""
        ready = self.as_inputs(inputs)
        last = ready.last.to(self.device)
        if bool((last == ready["input_ids"].shape[1] - 1).all()):
            return self(ready, grad=grad, logits_to_keep=1)[:, -1]
        return self(ready, grad=grad)[torch.arange(len(last)), last]

    def run_with_cache(
        self,
        inputs: Inputs | Mapping[str, Any],
        sites: str | Site | Iterable[str | Site] = "*.resid_post",
        *,
        keep: Keep | None = None,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], ActivationCache]:
        """Logits and the activations at the sites asked for.

        Args:
            inputs: From `prepare`, or the model's own inputs by name.
            sites: Names or globs; attention patterns are computed only when asked for.
            keep: What to keep of each site's value; all of it by default.
            kwargs: For the Hugging Face forward.
        """
        with self.record(sites, keep=keep) as cache:
            logits = self(inputs, **kwargs)
        return logits, cache

    @contextmanager
    def record(
        self,
        sites: str | Site | Iterable[str | Site],
        *,
        keep: Keep | None = None,
        grad: bool = False,
    ) -> Iterator[ActivationCache]:
        """Cache what passes the sites while the context is open.

        Args:
            sites: Names or globs.
            keep: What to keep of each site's value.
            grad: Keep the values in the graph, so that gradients with respect to them exist.
        """
        cache, wanted = ActivationCache(), self.sites(sites)
        # A site whose tensor is later edited in place must not change in the cache.
        shared = {site for site in wanted if self._taps[site].where == "input_in_place"}
        visitors = {
            site: connected_reader(site, self._taps[site], cache)
            if grad
            else reader(site, lambda: cache, keep, copy=site in shared)
            for site in wanted
        }
        with self._connected(visitors, READ):
            yield cache

    @contextmanager
    def edit(self, edits: Mapping[str | Site, Edit]) -> Iterator[LVLM]:
        """Change what passes the sites while the context is open; undone whatever happens.

        Args:
            edits: Site (or glob) to a function of its value that returns the new value.

        Raises:
            SiteError: An edit returns no tensor or another shape, or was never reached.
        """
        reached: set[Site] = set()

        def editor(site: Site, function: Edit) -> Callable[[Tensor], Tensor]:
            def apply(value: Tensor) -> Tensor:
                reached.add(site)
                new = function(value)
                if new is None:
                    raise SiteError(f"The edit at {site} returned None: return the new value.")
                return new

            return apply

        visitors = {
            site: editor(site, function)
            for pattern, function in edits.items()
            for site in self.sites(pattern)
        }
        runs: list[None] = []
        noted = noted_runs(self, decoder_of(self), lambda: runs.append(None))
        with self._connected(visitors, EDIT), noted:
            yield self
        if runs and (missed := set(visitors) - reached):
            names = ", ".join(str(site) for site in sorted(missed, key=str))
            raise SiteError(f"The model ran but never reached {names}: the edit had no effect.")

    @property
    def is_watched(self) -> bool:
        """Whether a recording or an edit is open, here or around the caller."""
        return self._board.is_watched

    @contextmanager
    def _connected(
        self, visitors: Mapping[Site, Callable[[Tensor], Tensor | None]], order: int
    ) -> Iterator[None]:
        items = [(self._taps[site], visitor, str(site)) for site, visitor in visitors.items()]
        inside = any(tap.where in ATTENTION_PARTS for tap, _, _ in items)
        with ExitStack() as stack:
            stack.enter_context(eager())
            stack.enter_context(self._board.connect_all(items, order))
            if inside:
                stack.enter_context(attention.served(self._board))
                stack.enter_context(self._runs.opened(self._attention))
            yield

    def generate(
        self,
        inputs: Inputs | Mapping[str, Any],
        *,
        edits: Mapping[str | Site, Edit] | None = None,
        max_new_tokens: int = 32,
        **kwargs: Any,
    ) -> Any:
        """Greedy continuation of each row, with edits in the prompt pass and in every step.

        In a step each site holds one position. Rows must be padded on the left.

        Returns:
            The new text of each row; token ids where the model has no processor; the object of
            transformers with `return_dict_in_generate=True`.

        Raises:
            InputError: A row is padded on the right.
        """
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, **kwargs}
        with self.edit(edits or {}):
            return generation.generate(self, self.as_inputs(inputs), options)

    def generate_with_cache(
        self,
        inputs: Inputs | Mapping[str, Any],
        sites: str | Site | Iterable[str | Site] = "*.resid_post",
        *,
        keep: Keep | None = None,
        **kwargs: Any,
    ) -> tuple[Any, list[ActivationCache]]:
        """What `generate` gives, and the activations of every forward it took.

        The first cache is the prompt's. In cache i each site of the language model holds one
        position, that of the i-th new token; `scores` and `pattern` have it as their one query.

        Args:
            inputs: Rows padded on the left.
            sites: Names or globs.
            keep: What to keep of each site's value; all of it by default.
            kwargs: As in `generate`.
        """
        with generation.recorded_steps(self, sites, keep) as caches:
            said = self.generate(inputs, **kwargs)
        return said, caches

    # -- neighbours ------------------------------------------------------------------------------

    def to_transformer_lens(self, inputs: Inputs | Mapping[str, Any] | None = None) -> Any:
        """A TransformerBridge on a copy of these weights, with the image of `inputs` bound to it.

        Raises:
            ModelError: TransformerLens does not support the family.
        """
        from lvlm_interp.models.interop.transformer_lens import to_transformer_lens

        return to_transformer_lens(self, inputs)

    def to_nnsight(self) -> Any:
        """The traced model of nnsight on these very weights (not a copy)."""
        from lvlm_interp.models.interop.nnsight import to_nnsight

        return to_nnsight(self)

    def __repr__(self) -> str:
        parts = ", ".join(
            f"{name} {size.n_layers}x{size.n_heads} d{size.d_model}"
            for name, size in self.towers.items()
        )
        return f"LVLM({self.name!r}, {self.family.name}: {parts}, {self.dtype}, {self.device})"
