"""`load_model` and `wrap`: from a folder, a hub id, a shipped name or a model in memory."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from lvlm_interp.errors import ModelError, UsageError
from lvlm_interp.models.families import FAMILIES, auto, family_of
from lvlm_interp.models.family import Family
from lvlm_interp.models.inputs.processors import load_processor
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.models.selfcheck import self_check


def load_model(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    selfcheck: bool = True,
    family: str | None = None,
    backend: str = "torch",
    remote: bool | str = False,
    **kwargs: Any,
) -> Any:
    """Load an LVLM from a local folder, a hub id, or the name of a shipped organism.

    Args:
        path_or_id: Folder, hub id as in transformers, or a shipped name such as `scenes`.
        dtype: Of the weights; the checkpoint's own by default.
        device_map: As in transformers; splits layers over devices.
        revision: Of a hub checkpoint.
        trust_remote_code: Run code that comes with a checkpoint; only if you say so.
        selfcheck: Prove that every declared site reads and writes.
        family: Taken from the checkpoint by default; `auto` detects an unregistered architecture of
            the common shape, which is then always self-checked.
        backend: `torch` gives an `LVLM`; `nnsight` a `RemoteLVLM` for models on NDIF.
        remote: With `nnsight`: True runs on NDIF, `local` is its serialised dry run.
        kwargs: For `from_pretrained`.

    Returns:
        The `LVLM` (or `RemoteLVLM`).

    Raises:
        ModelError: No model there, an unsupported architecture, or a failed self-check.
        UsageError: The options do not fit each other.
    """
    source = shipped_path(str(path_or_id)) or str(path_or_id)
    if backend == "nnsight":
        from lvlm_interp.models.interop.nnsight import load_remote

        return load_remote(source, remote=remote, dtype=dtype, revision=revision, **kwargs)
    if backend != "torch" or remote:
        raise UsageError(
            f"backend={backend!r} with remote={remote!r} cannot be had: backend is 'torch' or "
            "'nnsight', and only 'nnsight' runs remotely."
        )
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = _load(AutoConfig, source, path_or_id, options)
    known = None if family == "auto" else _named(family, config) or family_of(config)
    processor = _loaded(
        lambda: load_processor(source, config, options), source=source, given=path_or_id
    )
    weights = {"dtype": dtype, "device_map": device_map, "output_loading_info": True, **kwargs}
    hf, info = _load(AutoModelForImageTextToText, source, path_or_id, {**options, **weights})
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"The checkpoint {path_or_id} lacks {len(missing)} weights, which would be random: "
            f"{', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}."
        )
    model = LVLM(hf, processor, known or auto.detect(hf), str(path_or_id))
    if selfcheck or family == "auto":
        self_check(model)
    return model


def wrap(
    hf_model: Any, processor: Any = None, *, family: str | None = None, selfcheck: bool = True
) -> LVLM:
    """The same view of a Hugging Face model that is already in memory.

    Without a processor the view takes the model's own inputs as a mapping of tensors. The
    caller's model is never changed for good.

    Args:
        hf_model: The model; also one that `torch.compile` gave.
        processor: Its processor, where there is one.
        family: Taken from its configuration by default; `auto` detects an unregistered architecture
            of the common shape, which is then always self-checked.
        selfcheck: Prove in three forwards that every declared site reads and writes; not done for
            a model without weights (on the meta device).

    Raises:
        ModelError: The architecture is not supported, or the self-check failed.
    """
    hf = getattr(hf_model, "_orig_mod", hf_model)
    known = None if family == "auto" else _named(family, hf.config) or family_of(hf.config)
    model = LVLM(hf, processor, known or auto.detect(hf))
    if (selfcheck or family == "auto") and model.device.type != "meta":
        self_check(model)
    return model


def _named(name: str | None, config: Any) -> Family | None:
    """A family by its name, as it holds for a configuration.

    Raises:
        UsageError: There is no such family.
    """
    if name is None:
        return None
    for family in FAMILIES:
        if family.name == name:
            return family if family.variant is None else family.variant(config)
    raise UsageError(
        f"There is no family {name!r}: expected 'auto' or one of "
        f"{', '.join(family.name for family in FAMILIES)}."
    )


def shipped_path(name: str) -> str | None:
    """The folder of a model that an installed package registers by name; None if it is no such.

    What lies beside a registered folder has its name in front: `scenes/stages/vision`.
    """
    first, _, rest = name.partition("/")
    for entry in entry_points(group="lvlm_interp.models", name=first):
        folder = Path(entry.load()())
        found = folder.parent / rest if rest else folder
        if found.is_dir():
            return str(found)
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
