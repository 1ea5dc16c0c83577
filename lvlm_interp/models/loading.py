"""`load_model` and `wrap`: from a folder, a hub id, a shipped name or a model in memory."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from lvlm_interp.errors import ModelError
from lvlm_interp.models.families import family_of
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.models.processors import load_processor
from lvlm_interp.models.selfcheck import self_check


def load_model(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    selfcheck: bool = True,
    **kwargs: Any,
) -> LVLM:
    """Load an LVLM from a local folder, a hub id, or the name of a shipped organism.

    Args:
        path_or_id: Folder, hub id as in transformers, or a shipped name such as `scenes`.
        dtype: Of the weights; the checkpoint's own by default.
        device_map: As in transformers; splits layers over devices.
        revision: Of a hub checkpoint.
        trust_remote_code: Run code that comes with a checkpoint; only if you say so.
        selfcheck: Prove that every declared site reads and writes.
        kwargs: For `from_pretrained`.

    Raises:
        ModelError: No model there, an unsupported architecture, or a failed self-check.
    """
    source = shipped_path(str(path_or_id)) or str(path_or_id)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = _load(AutoConfig, source, path_or_id, options)
    family = family_of(config)
    processor = _loaded(
        lambda: load_processor(source, config, options), source=source, given=path_or_id
    )
    hf = _load(
        AutoModelForImageTextToText,
        source,
        path_or_id,
        {**options, "dtype": dtype, "device_map": device_map, **kwargs},
    )
    model = LVLM(hf, processor, family, str(path_or_id))
    if selfcheck:
        self_check(model)
    return model


def wrap(hf_model: Any, processor: Any = None) -> LVLM:
    """The same view of a Hugging Face model that is already in memory.

    Without a processor the view takes the model's own inputs as a mapping of tensors. The
    caller's model is never changed for good.

    Raises:
        ModelError: The architecture is not supported.
    """
    return LVLM(hf_model, processor, family_of(hf_model.config))


def shipped_path(name: str) -> str | None:
    """The folder of a model that an installed package registers by name; None if it is no such."""
    for entry in entry_points(group="lvlm_interp.models", name=name):
        return str(entry.load()())
    return None


def _load(loader: Any, source: str, given: str | Path, options: dict[str, Any]) -> Any:
    return _loaded(lambda: loader.from_pretrained(source, **options), source=source, given=given)


def _loaded(load: Callable[[], Any], *, source: str, given: str | Path) -> Any:
    folder = Path(source)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ModelError(f"{given} is no model folder: it has no config.json.")
    try:
        return load()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"No model could be loaded from {given}: {reason}") from error
