"""`family="auto"`: an unregistered architecture, found by its parts and proved by the self-check.

A model is asked for the features of a small image in every way that a registered family has; what
it calls meanwhile shows its vision blocks, and the module whose answer the features are is its
projector. Blocks are described by the first description of a registered family whose parts they
have. What is found is a proposal: the self-check decides. Where image tokens lie in the image is
not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lvlm_interp.errors import LvlmInterpError, ModelError
from lvlm_interp.models.families.geometry import made_of, tokens_without_place
from lvlm_interp.models.family import Block, Family, ImageContext, Tower, has_part
from lvlm_interp.tokens import ImageLayout

NOTE = "the architecture was detected, so where its image tokens lie in the image is not known"
NORMS = ("norm", "final_layernorm", "final_layer_norm", "embedding_norm", "layer_norm", "norm_f")
TRIES = 8
"""Most descriptions that are self-checked."""

UNFIT = (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError)
"""What a model, or a view of it, raises when an input or a description is not its own."""

WIDTHS = ("hidden_size", "embed_dim")


@dataclass(frozen=True)
class _Seen:
    """What a model did for the features of an image.

    Attributes:
        like: The registered family whose inputs it took.
        counts: Tokens of the image.
        calls: (path, output) of every module that gave a tensor, in order.
        features: What the language model gets.
    """

    like: Family
    count: int
    calls: Sequence[tuple[str, Tensor]]
    features: Tensor


def detect(hf: Any, known: Sequence[Family]) -> Family:
    """The family of a model whose parts are those of registered ones, put together anew.

    Args:
        hf: The model.
        known: Registered families: their inputs, and the descriptions of their blocks.

    Raises:
        ModelError: A part was not found, or no description passes the self-check; the message
            says which.
    """
    try:
        return _first_proved(hf, known)
    except UNFIT as error:
        raise ModelError(
            f"{type(hf).__name__} is not of the common shape: looking for its parts ended with "
            f"{type(error).__name__} ({error})."
        ) from error


def _first_proved(hf: Any, known: Sequence[Family]) -> Family:
    from lvlm_interp.models.lvlm import LVLM
    from lvlm_interp.models.selfcheck import self_check

    proposals = list(islice(_proposals(hf, known), TRIES))
    failure: Exception | None = None
    for family in proposals:
        try:
            self_check(LVLM(hf, None, family))
            return family
        except (LvlmInterpError, *UNFIT) as error:
            failure = failure or error
    raise ModelError(
        f"{type(hf).__name__} was taken apart, but none of {len(proposals)} descriptions passes: "
        f"{failure}"
    )


def _proposals(hf: Any, known: Sequence[Family]) -> Iterator[Family]:
    seen = _features(hf, known)
    decoder = _path(hf, hf.get_decoder(), "a decoder")
    text = _stack(hf, decoder)
    vision = _called_stack(hf, seen, decoder)
    like = seen.like.towers[0]
    family = Family(
        name=f"auto:{hf.config.model_type}",
        model_types=(hf.config.model_type,),
        towers=(),
        layout=_layout_of(_image_token(hf.config), seen.count),
        projector=_projector(seen),
        embed=(decoder, "inputs_embeds"),
        final_norm=_final_norm(hf, decoder),
        lm_head=_path(hf, hf.get_output_embeddings(), "an unembedding"),
        image_token=_image_token(hf.config),
        pixels=seen.like.pixels,
        rows=seen.like.rows,
        n_images=seen.like.n_images,
        needs=_needs(hf, seen.like),
        special="detected, not registered: " + NOTE,
    )
    front = Tower(
        "vision",
        vision,
        "vision_config",
        n_read=_n_read,
        flat=like.flat,
        packed=like.packed,
        width=_width(hf.config.vision_config),
    )
    for block in _shapes(hf, vision, known):
        for own in _shapes(hf, text, known):
            towers = (replace(front, block=block), Tower("text", text, "text_config", own))
            yield replace(family, towers=towers)
            yield replace(family, towers=towers, embed_is_resid=False)


# -- what the model does -------------------------------------------------------------------------


@torch.no_grad()
def _features(hf: Any, known: Sequence[Family]) -> _Seen:
    """The features of an image, by the first registered family's inputs that the model takes."""
    givers = (hf, getattr(hf, "model", None))
    giver: Any = next((each for each in givers if hasattr(each, "get_image_features")), None)
    if giver is None:
        raise ModelError(f"{type(hf).__name__} is not of the common shape: it gives no features.")
    for family in _kinds_of_inputs(known):
        calls: list[tuple[str, Tensor]] = []
        handles = [
            each.register_forward_hook(_noting(calls, path)) for path, each in hf.named_modules()
        ]
        try:
            pixels = {k: _moved(v, hf) for k, v in family.pixels(hf.config).items()}
            out = giver.get_image_features(**pixels, return_dict=True)
            features = out.pooler_output
            parts = features if isinstance(features, list | tuple) else [features]
            flat = torch.cat([part.flatten(0, -2) for part in parts])
            return _Seen(family, len(flat), calls, flat)
        except UNFIT:
            continue  # not its kind of input
        finally:
            for handle in handles:
                handle.remove()
    raise ModelError(
        f"{type(hf).__name__} is not of the common shape: it gives no features of a small image in "
        "any of the ways of the registered families."
    )


def _noting(calls: list[tuple[str, Tensor]], path: str) -> Any:
    def note(_module: nn.Module, _args: Any, out: Any) -> None:
        value = out[0] if isinstance(out, tuple) else out
        if isinstance(value, Tensor):
            calls.append((path, value))

    return note


def _moved(value: Any, hf: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.to(hf.device, hf.dtype if value.is_floating_point() else value.dtype)


def _kinds_of_inputs(known: Sequence[Family]) -> list[Family]:
    """One family for each way to make an image, those with the plainest inputs first."""
    kinds = {family.pixels: family for family in reversed(known) if len(family.towers) == 2}
    return sorted(kinds.values(), key=lambda family: len(family.needs))


def _projector(seen: _Seen) -> str:
    """The outermost module whose answer the features are."""
    for path, value in reversed(seen.calls):
        same = value.numel() == seen.features.numel() and value.shape[-1] == seen.features.shape[-1]
        if path and same and torch.equal(value.flatten(0, -2), seen.features):
            return path
    raise ModelError("The model is not of the common shape: no module gives its image's features.")


def _called_stack(hf: Any, seen: _Seen, decoder: str) -> str:
    """The list of blocks that ran for the features, with heads in its blocks."""
    ran = [path for path, _ in seen.calls]
    for path, module in hf.named_modules():
        front = isinstance(module, nn.ModuleList) and not path.startswith(decoder)
        if front and f"{path}.0" in ran and len(list(module[0].modules())) > 6:
            return path
    raise ModelError(f"{type(hf).__name__} is not of the common shape: no vision blocks ran.")


# -- where parts are -----------------------------------------------------------------------------


def _path(hf: nn.Module, module: nn.Module | None, what: str) -> str:
    for path, each in hf.named_modules():
        if each is module and module is not hf:
            return path
    raise ModelError(f"{type(hf).__name__} is not of the common shape: it has no {what}.")


def _stack(hf: nn.Module, decoder: str) -> str:
    for path, module in attrgetter(decoder)(hf).named_children():
        if isinstance(module, nn.ModuleList) and len(module):
            return f"{decoder}.{path}"
    raise ModelError(f"{type(hf).__name__} is not of the common shape: its decoder has no blocks.")


def _final_norm(hf: nn.Module, decoder: str) -> str:
    found = next((name for name in NORMS if has_part(attrgetter(decoder)(hf), name)), None)
    if found is None:
        raise ModelError(f"{type(hf).__name__} is not of the common shape: it has no final norm.")
    return f"{decoder}.{found}"


def _shapes(hf: nn.Module, path: str, known: Sequence[Family]) -> list[Block]:
    """Descriptions of registered blocks whose parts every block of a stack has."""
    from lvlm_interp.models.families.blocks import TEXT

    blocks = attrgetter(path)(hf)
    own = [tower.block for family in known for tower in family.towers if tower.name != "qformer"]
    own += [backbone.block for backbone in TEXT.values()]
    found = [data for data in own if all(_fits(data.of(block), block) for block in blocks)]
    unique: list[Block] = []
    for data in found:
        if data not in unique:
            unique.append(data)
    if not unique:
        raise ModelError(
            f"{type(hf).__name__} is not of the common shape: the blocks at {path} "
            f"({type(blocks[0]).__name__}) have the parts of no registered kind of block."
        )
    # The most parts first: a description with norms behind the branches fits less by chance.
    return sorted(unique, key=lambda data: -len(_parts(data)))[:2]


def _parts(data: Block) -> set[str]:
    names = ("attn", "o", "attn_out", "mlp_norm", "down", "mlp_out")
    projections = ("qkv",) if data.qkv else ("q", "k", "v")
    paths = {getattr(data, name) for name in (*names, *(projections if data.attn else ()))}
    scales = {scale.path for scale in (data.attn_scale, data.mlp_scale) if scale is not None}
    return (paths if data.attn else paths - {data.o}) - {""} | scales


def _fits(data: Block, block: nn.Module) -> bool:
    return all(has_part(block, path) for path in _parts(data))


def _width(vision: Any) -> str:
    return next((name for name in WIDTHS if getattr(vision, name, None)), WIDTHS[0])


def _image_token(config: Any) -> str:
    for name in ("image_token_id", "image_token_index"):
        if getattr(config, name, None) is not None:
            return name
    raise ModelError(
        f"The configuration of {config.model_type!r} names no image placeholder: it is not of the "
        "common shape."
    )


def _needs(hf: Any, like: Family) -> tuple[str, ...]:
    """Inputs that the model takes of those that the family's images need."""
    import inspect

    takes = set(inspect.signature(hf.forward).parameters)
    takes |= set(inspect.signature(getattr(hf, "model", hf).forward).parameters)
    return tuple(name for name in like.needs if name in takes)


def _n_read(config: Any, n_layers: int) -> int:
    for name in ("vision_feature_layer", "vision_feature_layers"):
        layers = getattr(config, name, None)
        if layers is not None:
            indices = [layers] if isinstance(layers, int) else list(layers)
            return max(index if index >= 0 else n_layers + 1 + index for index in indices)
    return n_layers


def _layout_of(token: str, count: int) -> Any:
    def layout(context: ImageContext) -> list[ImageLayout]:
        ids = context.tensors.get("input_ids")
        n_images, n = len(context.sizes), count
        if ids is not None:
            image = getattr(context.config, token)
            n = int((ids[context.row] == image).sum()) // max(n_images, 1)
        plain = tokens_without_place(n, "image", NOTE)
        known = made_of(plain, {"projector": np.arange(n)}, {"projector": n})
        return [known for _ in range(n_images)]

    return layout
