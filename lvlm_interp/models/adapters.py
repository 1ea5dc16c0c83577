"""Adapters (LoRA and others) of the package peft: the model under them, with them in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lvlm_interp.errors import ModelError


def unwrapped(model: Any) -> Any:
    """The Hugging Face model itself, of what others put around it.

    What `torch.compile` gives holds it; a `PeftModel` has put its adapters into it, and there they
    stay.

    Raises:
        ModelError: An adapter that changes the prompt and not the model.
    """
    model = getattr(model, "_orig_mod", model)
    if not hasattr(model, "get_base_model") or not hasattr(model, "peft_config"):
        return model
    for name, config in model.peft_config.items():
        if getattr(config, "is_prompt_learning", False):
            raise ModelError(
                f"The adapter {name!r} ({config.peft_type}) puts virtual tokens before the prompt, "
                "which have no place in a token map: only adapters of weights are supported."
            )
    return unwrapped(model.get_base_model())


def with_adapter(hf: Any, folder: Path) -> Any:
    """A model with the adapter of a folder in it.

    Raises:
        ModelError: The package peft is missing, or the adapter does not fit the model.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError(
            f"{folder} holds an adapter, which needs the package peft: pip install peft."
        ) from error
    try:
        return unwrapped(PeftModel.from_pretrained(hf, str(folder)).eval())
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"The adapter of {folder} does not fit its model: {reason}") from error
