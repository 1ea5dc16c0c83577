"""A model without its weights: enough to know its sites before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from lvlm_interp.errors import ModelError
from lvlm_interp.files import sha256_folder
from lvlm_interp.models.families import family_of
from lvlm_interp.models.loading import shipped_path
from lvlm_interp.models.lvlm import LVLM

__all__ = ["files_hash", "skeleton"]


def skeleton(path_or_id: str | Path) -> LVLM:
    """The view of a model whose weights are on no device; it has sites and shapes and cannot run.

    Raises:
        ModelError: No model there, or an unsupported architecture.
    """
    source = shipped_path(str(path_or_id)) or str(path_or_id)
    try:
        config: Any = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"No model could be loaded from {path_or_id}: {reason}") from error
    family = family_of(config)
    with torch.device("meta"):
        hf = AutoModelForImageTextToText.from_config(config)
    return LVLM(hf, None, family, str(path_or_id))


def files_hash(path_or_id: str | Path) -> str:
    """What identifies a checkpoint without loading it: its weight files, or a hub id as it is."""
    folder = Path(shipped_path(str(path_or_id)) or str(path_or_id))
    return sha256_folder(folder, "*.safetensors") if folder.is_dir() else str(path_or_id)
