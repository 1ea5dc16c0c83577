"""TransformerLens on a copy of the same weights, always with the image.

Its patching functions call `run_with_hooks(tokens, ...)` and pass no pixels, and a forward without
pixels raises nothing: it patches a run that saw no image. The bridge given here carries the rest of
the inputs with it. What else misleads is refused where a hook would write it:

- `hook_resid_mid` reaches the MLP but not the skip connection;
- `hook_embed` holds the placeholder's embedding at image positions;
- patterns of the vision tower are written without effect.

Reading there is allowed. Gradients along those names, and `bridge.generate`, are not ours to mend.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm_interp.errors import InputError, ModelError, SiteError, UsageError
from lvlm_interp.sites import Site

if TYPE_CHECKING:
    from lvlm_interp.models.cache import ActivationCache
    from lvlm_interp.models.inputs import Inputs
    from lvlm_interp.models.lvlm import LVLM

FAMILIES = (
    "llava",
    "llava_next",
    "llava_onevision",
    "idefics3",
    "gemma3",
    "qwen2_5_vl",
    "qwen3_vl",
)
"""Families for which its bridge was seen to give our logits."""

HALF_WRITTEN: dict[str, str] = {
    r"blocks\.\d+\.hook_resid_mid": "a write there reaches the MLP but not the skip connection; "
    "edit the site resid_mid of this package",
    r"hook_embed|embed\..*": "it holds the placeholder's embedding at image positions; edit the "
    "site text.embed of this package",
    r"vision.*pattern": "a write to a pattern of the vision tower has no effect; edit the site "
    "vision.N.pattern of this package",
}


def to_transformer_lens(model: LVLM, inputs: Inputs | Mapping[str, Any] | None = None) -> Any:
    """A TransformerBridge on a copy of a model's weights.

    Args:
        model: The model; it stays as it is.
        inputs: Inputs whose image (and masks, grids, token types) go with every run of the bridge.
            Without them a run must pass `pixel_values` and the rest itself.

    Raises:
        ModelError: TransformerLens does not support the family.
        UsageError: A context is open on the model.
    """
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    if model.family.name not in FAMILIES:
        raise ModelError(
            f"TransformerLens does not support the family {model.family.name}; it supports "
            f"{', '.join(FAMILIES)}."
        )
    if model.is_watched:
        raise UsageError(
            "An edit or a recording is open, which would be copied into the bridge for good: leave "
            "that context first."
        )
    copy = deepcopy(model.hf).eval()
    with _without_video_libraries():
        bridge = build_bridge_from_module(copy, type(model.hf).__name__, hf_config=copy.config)
    extras = None
    if inputs is not None:
        ready = model.as_inputs(inputs)
        extras = {name: value for name, value in ready.items() if name != "input_ids"}
    image_token = getattr(model.config, model.family.image_token)
    # A plain call goes through `forward`, and so do the runs of its other tools.
    for name in ("forward", "run_with_hooks", "run_with_cache"):
        setattr(bridge, name, _with_image(getattr(bridge, name), extras, image_token))
    return bridge


def _with_image(run: Callable[..., Any], extras: dict[str, Any] | None, image_token: int) -> Any:
    """A run of the bridge that has its image, or says that it has not."""

    @wraps(run)
    def bound(*args: Any, **kwargs: Any) -> Any:
        tokens = args[0] if args else kwargs.get("input", kwargs.get("input_ids"))
        if isinstance(tokens, str) or (isinstance(tokens, list) and isinstance(tokens[0], str)):
            raise InputError(
                "TransformerLens would read a text without its image: pass the ids that "
                "model.prepare() makes of both."
            )
        with_extras = {**_fitting(extras or {}, tokens), **kwargs}
        holds_image = isinstance(tokens, Tensor) and bool((tokens == image_token).any())
        if holds_image and with_extras.get("pixel_values") is None:
            raise InputError(
                "The tokens hold image placeholders but there are no pixel_values, so "
                "TransformerLens would run without the image: pass inputs to to_transformer_lens()."
            )
        if "fwd_hooks" in with_extras:
            with_extras["fwd_hooks"] = [
                (name, _guarded(name, hook)) for name, hook in with_extras["fwd_hooks"]
            ]
        return run(*args, **with_extras)

    return bound


def _fitting(extras: dict[str, Any], tokens: Any) -> dict[str, Any]:
    """The bound inputs, when the tokens are of the batch and length that they were made for."""
    mask = extras.get("attention_mask")
    if mask is not None and isinstance(tokens, Tensor) and tokens.shape != mask.shape:
        raise InputError(
            f"The bound image goes with tokens of shape {tuple(mask.shape)}, but these have "
            f"{tuple(tokens.shape)}: bind inputs that fit."
        )
    return extras


def _guarded(name: Any, hook: Callable[..., Any]) -> Callable[..., Any]:
    reason = next(
        (why for pattern, why in HALF_WRITTEN.items() if re.fullmatch(pattern, str(name))), None
    )
    if reason is None:
        return hook

    @wraps(hook)
    def guarded(value: Tensor, **kwargs: Any) -> None:
        before = value.clone()
        new = hook(value, **kwargs)
        if (new is not None and not torch.equal(new, before)) or not torch.equal(value, before):
            raise SiteError(f"TransformerLens misleads at {name}: {reason}.")

    return guarded


@contextmanager
def _without_video_libraries() -> Iterator[None]:
    """Its Qwen adapters ask for torchvision, which only videos need."""
    from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter

    before = ArchitectureAdapter._check_required_libraries
    ArchitectureAdapter._check_required_libraries = lambda self: None  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        ArchitectureAdapter._check_required_libraries = before


def cache_to_transformer_lens(cache: ActivationCache, bridge: Any = None) -> Any:
    """TransformerLens' ActivationCache of the language model's activations.

    Args:
        cache: Ours; sites for which TransformerLens has no name (vision, projector) are left out.
        bridge: From `to_transformer_lens`; its methods that need weights (decompositions) use it.
    """
    from transformer_lens import ActivationCache as TheirCache

    named: dict[str, Tensor] = {}
    for site in cache.sites:
        if (name := _their_name(site)) is not None:
            named[name] = cache[site]
    if not named:
        raise SiteError("The cache holds no activation of the language model.")
    return TheirCache(named, bridge)


def _their_name(site: Site) -> str | None:
    try:
        return site.to_transformer_lens()
    except SiteError:
        return None
