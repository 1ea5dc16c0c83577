"""Sites: the addresses of activations inside an LVLM.

A site is `tower.layer.name` (`text.14.resid_post`, `vision.3.pattern`) or, for what belongs to
no layer, `tower.name` (`projector.out`, `text.final_norm`). Names are TransformerLens' terms and
are defined by meaning: `attn_out` and `mlp_out` are what is *added* to the residual stream,
`resid_mid` is what both the MLP branch and the skip connection see. TransformerLens spellings
(`blocks.14.hook_resid_post`) are understood and mean the same site of the language model.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lvlm_interp.errors import SiteError

TOWERS = ("vision", "projector", "qformer", "text")

SHAPES: dict[str, str] = {
    **dict.fromkeys(
        (
            "resid_pre resid_mid resid_post attn_out mlp_out embed out final_norm resid_cross "
            "cross_attn_out deepstack"
        ).split(),
        "batch pos d_model",
    ),
    **dict.fromkeys(["q", "rot_q", "z"], "batch pos head d_head"),
    **dict.fromkeys(["k", "rot_k", "v"], "batch pos kv_head d_head"),
    **dict.fromkeys(["cross_q", "cross_z"], "batch pos head d_head"),
    **dict.fromkeys(["cross_k", "cross_v"], "batch key_pos kv_head d_head"),
    **dict.fromkeys(
        ["scores", "pattern", "cross_scores", "cross_pattern"], "batch head query_pos key_pos"
    ),
    "mlp_hidden": "batch pos d_mlp",
    "logits": "batch pos d_vocab",
}
"""Axes of each site name, in words."""

LAYERLESS = ("embed", "out", "final_norm", "logits")

_TRANSFORMER_LENS: dict[str, str] = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_rot_q": "rot_q",
    "attn.hook_rot_k": "rot_k",
    "attn.hook_z": "z",
    "attn.hook_attn_scores": "scores",
    "attn.hook_pattern": "pattern",
    "mlp.hook_post": "mlp_hidden",
}
_TRANSFORMER_LENS_WHOLE = {"ln_final.hook_normalized": "text.final_norm"}


@dataclass(frozen=True, order=True)
class Site:
    """An address inside an LVLM.

    Attributes:
        tower: `vision`, `projector`, `qformer` or `text`.
        layer: Index of the block, or None for what belongs to no block.
        name: What is read or written there, a key of `SHAPES`.
    """

    tower: str
    layer: int | None
    name: str

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read `text.3.z`, `projector.out`, `logits` or a TransformerLens name.

        Raises:
            SiteError: The text is no site; the message names the nearest right spelling.
        """
        if isinstance(text, Site):
            return text
        text = from_transformer_lens(text)
        if text == "logits":
            return cls("text", None, "logits")
        parts = text.split(".")
        if len(parts) == 3 and parts[1].isdigit():
            return cls(_one_of(parts[0], TOWERS, text), int(parts[1]), _name(parts[2], text))
        if len(parts) == 2 and parts[1] in LAYERLESS:
            return cls(_one_of(parts[0], TOWERS, text), None, parts[1])
        raise SiteError(
            f"{text!r} is not a site: expected tower.layer.name such as 'text.3.resid_post', "
            f"or tower.name with a name of {', '.join(LAYERLESS)}."
        )

    @property
    def shape(self) -> str:
        """Axes in words, for example `batch pos head d_head`."""
        return SHAPES[self.name]

    @property
    def has_heads(self) -> bool:
        """Whether one axis of the activation counts attention heads."""
        return "head" in self.shape.split() or "kv_head" in self.shape.split()

    @property
    def position_axis(self) -> int:
        """Which axis counts the positions that a site belongs to: of queries, for attention."""
        axes = self.shape.split()
        return next(axes.index(name) for name in ("query_pos", "pos", "key_pos") if name in axes)

    @property
    def positions_of(self) -> str:
        """Whose positions that axis counts: the tower's own, or those that cross-attention reads.

        A Q-Former reads the vision tower, a language model what the projector gives.
        """
        if self.name in ("cross_k", "cross_v"):
            return "vision" if self.tower == "qformer" else "projector"
        return self.tower

    def to_transformer_lens(self) -> str:
        """The TransformerLens name of a language-model site.

        Raises:
            SiteError: TransformerLens has no name for this site.
        """
        whole = {site: name for name, site in _TRANSFORMER_LENS_WHOLE.items()}
        if str(self) in whole:
            return whole[str(self)]
        for hook, name in _TRANSFORMER_LENS.items():
            if self.tower == "text" and self.layer is not None and name == self.name:
                return f"blocks.{self.layer}.{hook}"
        raise SiteError(f"TransformerLens has no name for the site {self}.")

    def __str__(self) -> str:
        if self.name == "logits":
            return "logits"
        layer = "" if self.layer is None else f"{self.layer}."
        return f"{self.tower}.{layer}{self.name}"


def from_transformer_lens(name: str) -> str:
    """Translate a TransformerLens hook name (globs in the layer allowed); else return it as is."""
    if name in _TRANSFORMER_LENS_WHOLE:
        return _TRANSFORMER_LENS_WHOLE[name]
    match = re.fullmatch(r"blocks\.(\d+|\*)\.(.+)", name)
    if match is None:
        return name
    layer, hook = match.groups()
    if hook not in _TRANSFORMER_LENS:
        near = difflib.get_close_matches(hook, _TRANSFORMER_LENS, n=1)
        hint = f" Did you mean 'blocks.{layer}.{near[0]}'?" if near else ""
        raise SiteError(f"The TransformerLens name {name!r} has no site here.{hint}")
    return f"text.{layer}.{_TRANSFORMER_LENS[hook]}"


def select(patterns: str | Site | Iterable[str | Site], declared: Sequence[Site]) -> list[Site]:
    """Sites of a model that match one or more names or globs, in the model's order.

    Args:
        patterns: A site, a glob such as `text.*.attn_out`, a comma-separated list, or several.
        declared: The sites that the model has, in order.

    Raises:
        SiteError: A pattern matches nothing; the nearest declared site is named.
    """
    chosen: set[Site] = set()
    names = {str(site): site for site in declared}
    for pattern in _split(patterns):
        text = from_transformer_lens(str(pattern))
        if text in names:
            chosen.add(names[text])
            continue
        found = [site for name, site in names.items() if fnmatch.fnmatchcase(name, text)]
        if not found:
            near = difflib.get_close_matches(text, names, n=1, cutoff=0.4)
            hint = f" The nearest site it has is {near[0]!r}." if near else ""
            raise SiteError(f"No site of this model matches {text!r}.{hint}")
        chosen.update(found)
    return [site for site in declared if site in chosen]


def _split(patterns: str | Site | Iterable[str | Site]) -> list[str | Site]:
    if isinstance(patterns, Site):
        return [patterns]
    if isinstance(patterns, str):
        return [part.strip() for part in patterns.split(",") if part.strip()]
    return [part for pattern in patterns for part in _split(pattern)]


def _one_of(word: str, allowed: Sequence[str], text: str) -> str:
    if word in allowed:
        return word
    near = difflib.get_close_matches(word, allowed, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise SiteError(f"{text!r} is not a site: {word!r} is none of {', '.join(allowed)}.{hint}")


def _name(word: str, text: str) -> str:
    return _one_of(word, [name for name in SHAPES if name not in LAYERLESS], text)
