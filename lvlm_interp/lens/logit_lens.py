"""The logit lens, for image tokens and text tokens alike.

lens(h) = softmax(W_U norm_final(h)) (nostalgebraist 2020; for image tokens of LVLMs Neo et al.
2024, "Towards Interpreting Visual Information Processing in Vision-Language Models").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.errors import SiteError, UsageError
from lvlm_interp.lens.positions import Positions, Selection, choose, image_of, lay, token_columns
from lvlm_interp.lens.readout import (
    CHUNK_BYTES,
    Decoder,
    Readout,
    Translator,
    decode_ids,
    head_outputs,
    read,
    word_token_ids,
)
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.results import Result, ResultTable, provenance
from lvlm_interp.sites import Site
from lvlm_interp.tokens import TokenMap

READABLE = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")
"""Sites of the language model that a lens can decode; `z` is decoded head by head."""


@dataclass(frozen=True, repr=False)
class LensResult(Result):
    """Words of tokens, by site.

    `table` has a row per token x site (x head) x metric: `prob` and `rank` of each chosen word
    (column `word`), `top_prob` with the top word, `entropy` in nats; with `row` and `col` of the
    image grid and the `token` at that position.

    Attributes:
        sites: Sites in the order of the first axis, a head's site once per head.
        heads: Head of each entry of `sites`, None for a whole site.
        tokens: One map per row of the batch.
        selection: Which rows and positions the tokens are.
        words: The chosen words.
        top: Most probable words, best first; shape `site token k`.
        top_probs: Their probabilities; shape `site token k`.
        word_probs: Probability of the chosen words; shape `site token word`.
        word_ranks: Rank of the chosen words, 0 the top; shape `site token word`.
        entropy: In nats; shape `site token`.
        images: The image of each row where it is known.
        prompts: The prompt of each row where it is known.
    """

    sites: tuple[Site, ...]
    heads: tuple[int | None, ...]
    tokens: tuple[TokenMap, ...]
    selection: Selection
    words: tuple[str, ...]
    top: np.ndarray
    top_probs: np.ndarray
    word_probs: np.ndarray
    word_ranks: np.ndarray
    entropy: np.ndarray
    images: tuple[Any, ...] = field(default=())
    prompts: tuple[str | None, ...] = field(default=())

    @property
    def layers(self) -> list[int]:
        """Layers that were read, ascending; `embed` counts as -1."""
        return sorted({-1 if site.layer is None else site.layer for site in self.sites})

    def prob(self, word: str) -> Float[np.ndarray, "site token"]:
        """Probability of a chosen word.

        Raises:
            UsageError: It was not among `words`.
        """
        return self.word_probs[..., self._word(word)]

    def rank(self, word: str) -> np.ndarray:
        """How many tokens are more probable than a chosen word; shape `site token`.

        Raises:
            UsageError: It was not among `words`.
        """
        return self.word_ranks[..., self._word(word)]

    def grid(
        self,
        word: str,
        layer: int | None = None,
        *,
        row: int = 0,
        image: int = 0,
        tile: int = 0,
        name: str | None = None,
    ) -> Float[np.ndarray, "*layer row col"]:
        """Probability of a word laid over the image, NaN where no token was read.

        Args:
            word: One of `words`.
            layer: One layer (-1 for `embed`); None for all of them along a first axis.
            row: Row of the batch.
            image: Image of that row.
            tile: Tile of that image.
            name: Name of the site where several were read; by default the first of that layer.

        Raises:
            UsageError: A word or layer that was not read.
            InputError: The image's tokens have no grid.
        """
        return self.to_grid(self.prob(word), layer, row=row, image=image, tile=tile, name=name)

    def to_grid(
        self,
        values: np.ndarray,
        layer: int | None = None,
        *,
        row: int = 0,
        image: int = 0,
        tile: int = 0,
        name: str | None = None,
    ) -> np.ndarray:
        """Lay any `site token` values over the image; arguments as in `grid`."""
        tokens = self._tokens(row)
        mine = self.selection.rows == row
        at = self.selection.at[mine]
        chosen = [self.index(layer, name)] if layer is not None else self._per_layer(name)
        grids = [lay(tokens, at, values[i][mine], image=image, tile=tile) for i in chosen]
        return grids[0] if layer is not None else np.stack(grids)

    def word_grid(
        self, layer: int, *, row: int = 0, image: int = 0, tile: int = 0, name: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Top word of each patch and its probability, each of shape `row col`."""
        place = {"row": row, "image": image, "tile": tile, "name": name}
        words = self.to_grid(self.top[..., 0], layer, **place)
        return words, self.to_grid(self.top_probs[..., 0], layer, **place)

    def index(self, layer: int, name: str | None = None) -> int:
        """Index on the first axis of a layer (and site name).

        Raises:
            UsageError: It was not read.
        """
        for index, site in enumerate(self.sites):
            mine = -1 if site.layer is None else site.layer
            if mine == layer and name in (None, site.name):
                return index
        raise UsageError(
            f"Layer {layer}{f' {name}' if name else ''} was not read; "
            f"read were {', '.join(dict.fromkeys(map(str, self.sites)))}."
        )

    def _per_layer(self, name: str | None) -> list[int]:
        return [self.index(layer, name) for layer in self.layers]

    def _word(self, word: str) -> int:
        if word not in self.words:
            chosen = ", ".join(self.words) or "none"
            raise UsageError(f"{word!r} is none of the chosen words ({chosen}): pass words=[...].")
        return self.words.index(word)

    def _tokens(self, row: int) -> TokenMap:
        if not 0 <= row < len(self.tokens):
            raise UsageError(f"Row {row} was asked, the batch has {len(self.tokens)}.")
        return self.tokens[row]


def logit_lens(
    model: LVLM,
    inputs: Inputs | Mapping[str, Any],
    *,
    sites: str | Site | Iterable[str | Site] = "text.*.resid_post",
    positions: Positions = "image",
    top_k: int = 10,
    words: Sequence[str] = (),
    norm: str = "final",
    chunk_bytes: int = CHUNK_BYTES,
    progress: bool = False,
) -> LensResult:
    """Decode activations of the language model into words.

    The norm is applied to what a site holds, so for `attn_out`, `mlp_out` and single heads it is
    their own norm and not the one of the whole stream.

    Args:
        model: The model.
        inputs: From `model.prepare`.
        sites: Sites of the language model: `embed` and the residual stream, `attn_out`, `mlp_out`,
            or `z`, which is decoded head by head.
        positions: A role of `TokenMap.positions` (`image` is all image tokens), several of them,
            or indices.
        top_k: How many words to keep of each token.
        words: Words whose probability and rank are kept. A word of several pieces counts by its
            first piece; its spellings with and without a space in front count together.
        norm: `final` applies the model's final norm, once; `none` none.
        chunk_bytes: Bound of the memory that logits take.
        progress: Show a bar over the sites.

    Raises:
        SiteError: A site that has no words, such as one of the vision tower.
        InputError: An unknown word or empty positions.
        UsageError: `top_k` below 1 or an unknown norm.
    """
    return read_words(
        model,
        inputs,
        sites=sites,
        positions=positions,
        top_k=top_k,
        words=words,
        decoder=Decoder(model, norm),
        translators={},
        chunk_bytes=chunk_bytes,
        progress=progress,
    )


def read_words(
    model: LVLM,
    inputs: Inputs | Mapping[str, Any],
    *,
    sites: str | Site | Iterable[str | Site],
    positions: Positions,
    top_k: int,
    words: Sequence[str],
    decoder: Decoder,
    translators: Mapping[Site, Translator],
    chunk_bytes: int = CHUNK_BYTES,
    progress: bool = False,
) -> LensResult:
    """What `logit_lens` and the tuned lens share; `translators` maps a site to its affine map."""
    if top_k < 1:
        raise UsageError(f"top_k must be at least 1, got {top_k}.")
    chosen = readable_sites(model, sites)
    word_ids = word_token_ids(model, words)
    ready = model.as_inputs(inputs)
    selection = choose(ready, positions)
    with model.record(chosen, keep=lambda _site, value: selection.gather(value)) as cache:
        model(ready, logits_to_keep=1)
    options: dict[str, Any] = {"top_k": top_k, "word_ids": word_ids, "chunk_bytes": chunk_bytes}
    entries: list[tuple[Site, int | None, Readout]] = []
    for site in tqdm(chosen, desc="lens", unit="site", disable=not progress):
        for head, states in _states(model, site, cache[site]):
            found = read(decoder, states, translator=translators.get(site), **options)
            entries.append((site, head, found))
    return _result(model, ready, selection, tuple(words), entries, decoder.norm)


def readable_sites(model: LVLM, sites: str | Site | Iterable[str | Site]) -> list[Site]:
    """Sites of the language model that a lens can decode.

    Raises:
        SiteError: One of them has no words.
    """
    chosen = model.sites(sites)
    for site in chosen:
        if site.tower != "text" or site.name not in READABLE:
            raise SiteError(
                f"{site} cannot be decoded into words: a lens reads {', '.join(READABLE)} of the "
                "language model (its input from the projector is 'text.embed')."
            )
    return chosen


def _states(model: LVLM, site: Site, value: Tensor) -> Iterable[tuple[int | None, Tensor]]:
    if site.name != "z":
        return [(None, value)]
    return enumerate(head_outputs(model, site, value))


def _result(
    model: LVLM,
    inputs: Inputs,
    selection: Selection,
    words: tuple[str, ...],
    entries: Sequence[tuple[Site, int | None, Readout]],
    norm: str,
) -> LensResult:
    readouts = [readout for _, _, readout in entries]
    top_ids = np.stack([readout.top_ids for readout in readouts])
    texts = decode_ids(model, top_ids)
    unique, inverse = np.unique(top_ids, return_inverse=True)
    names = np.array([texts[int(i)] for i in unique], dtype=object)
    arrays: dict[str, Any] = {
        "sites": tuple(site for site, _, _ in entries),
        "heads": tuple(head for _, head, _ in entries),
        "words": words,
        "top": names[inverse].reshape(top_ids.shape),
        "top_probs": np.stack([readout.top_probs for readout in readouts]),
        "word_probs": np.stack([readout.word_probs for readout in readouts]),
        "word_ranks": np.stack([readout.word_ranks for readout in readouts]),
        "entropy": np.stack([readout.entropy for readout in readouts]),
    }
    table = lens_table(model, inputs, selection, arrays, norm)
    return LensResult(
        table=table,
        tokens=inputs.tokens,
        selection=selection,
        **arrays,
        images=tuple(image_of(row) for row in inputs.examples),
        prompts=tuple(tokens.prompt for tokens in inputs.tokens),
    )


def lens_table(
    model: LVLM, inputs: Inputs, selection: Selection, arrays: Mapping[str, Any], norm: str
) -> ResultTable:
    """The tidy table of a lens: one row per site, token and metric."""
    sites, n = arrays["sites"], len(selection)
    of_tokens = token_columns(inputs, selection)
    parts = []
    metrics = [("entropy", None, arrays["entropy"], "nats")]
    metrics.append(("top_prob", arrays["top"][..., 0], arrays["top_probs"][..., 0], "probability"))
    for index, word in enumerate(arrays["words"]):
        metrics.append(("prob", word, arrays["word_probs"][..., index], "probability"))
        metrics.append(("rank", word, arrays["word_ranks"][..., index], "rank"))
    site_columns = {
        "tower": "text",
        "layer": np.repeat([-1 if site.layer is None else site.layer for site in sites], n),
        "site": np.repeat([str(site) for site in sites], n),
        "head": np.repeat(np.array(arrays["heads"], dtype=object), n),
    }
    repeated = {name: np.tile(column, len(sites)) for name, column in of_tokens.items()}
    for metric, word, values, unit in metrics:
        word_column = word.ravel() if isinstance(word, np.ndarray) else word
        parts.append(
            pd.DataFrame(
                {
                    **repeated,
                    **site_columns,
                    "metric": metric,
                    "value": values.ravel().astype(float),
                    "unit": unit,
                    "word": word_column,
                }
            )
        )
    frame = pd.concat(parts, ignore_index=True)
    frame["layer"] = frame["layer"].where(frame["layer"] >= 0)
    return ResultTable(frame, provenance(model=model.name, dtype=str(model.dtype), norm=norm))
