"""`load_model` and `wrap`: from a folder, a hub id, a shipped name or a model in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText

from lvlm_interp.errors import ModelError, UsageError
from lvlm_interp.models.adapters import unwrapped, with_adapter
from lvlm_interp.models.checkpoints import base_of, check_files
from lvlm_interp.models.families import FAMILIES, auto, family_of
from lvlm_interp.models.family import Family
from lvlm_interp.models.inputs.processors import load_processor
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.models.options import check_taken, settle_threads, weight_options
from lvlm_interp.models.selfcheck import self_check


def load_model(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    selfcheck: bool = True,
    family: str | None = None,
    processor: Mapping[str, Any] | None = None,
    backend: str = "torch",
    remote: bool | str = False,
    **kwargs: Any,
) -> Any:
    """Load an LVLM from a local folder, a hub id, or the name of a shipped organism.

    A folder with an `adapter_config.json` and no model is loaded with the model that it names.

    Args:
        path_or_id: Folder, hub id as in transformers, or a shipped name such as `scenes`.
        dtype: Of the weights; the checkpoint's own by default.
        device: `auto` takes a GPU where there is one; the CPU by default.
        device_map: As in transformers; splits layers over devices.
        revision: Of a hub checkpoint.
        trust_remote_code: Run code that comes with a checkpoint; only if you say so.
        selfcheck: Prove that every declared site reads and writes.
        family: Taken from the checkpoint by default; `auto` detects one that is not registered by
            its parts, which is then always self-checked.
        processor: Options of the processor, such as `max_pixels` or `do_pad`.
        backend: `torch` gives an `LVLM`; `nnsight` a `RemoteLVLM` for models on NDIF.
        remote: With `nnsight`: True runs on NDIF, `local` is its serialised dry run.
        kwargs: For `from_pretrained`; also `load_in_4bit` and `load_in_8bit`.

    Returns:
        The `LVLM` (or `RemoteLVLM`).

    Raises:
        ModelError: No model there, files that are not whole, an unsupported architecture, a missing
            package, or a failed self-check.
        UsageError: The options do not fit each other, or are none of the model.
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
    adapter = Path(source) if base_of(Path(source)) else None
    source = _checked(source, path_or_id)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    weights = {"dtype": dtype, **weight_options(kwargs, device, device_map)}
    config = _loaded(lambda: AutoConfig.from_pretrained(source, **options), path_or_id)
    known = _known(family, config)
    made = _processor(source, adapter, config, options, processor or {}, path_or_id)
    hf = _weights(source, {**options, **weights}, path_or_id)
    if adapter is not None:
        hf = with_adapter(hf, adapter)
    return _view(hf, made, known, str(path_or_id), selfcheck=selfcheck)


def load_for_command(
    path_or_id: str, device: str = "auto", dtype: str = "auto", revision: str | None = None
) -> LVLM:
    """A model for a process of its own: on a GPU where there is one, with threads by its size.

    Raises:
        ModelError: As `load_model`.
        UsageError: No such device.
    """
    model = load_model(path_or_id, device=device, dtype=dtype, revision=revision)
    settle_threads(model.hf)
    return model


def wrap(
    hf_model: Any, processor: Any = None, *, family: str | None = None, selfcheck: bool = True
) -> LVLM:
    """The same view of a Hugging Face model that is already in memory.

    Without a processor the view takes the model's own inputs as a mapping of tensors. The
    caller's model is never changed for good.

    Args:
        hf_model: The model; also one that `torch.compile` gave, or a `PeftModel`.
        processor: Its processor, where there is one.
        family: Taken from its configuration by default; `auto` detects one that is not registered
            by its parts, which is then always self-checked.
        selfcheck: Prove in three forwards that every declared site reads and writes; not done for
            a model without weights (on the meta device).

    Raises:
        ModelError: The architecture is not supported, or the self-check failed.
    """
    hf = unwrapped(hf_model)
    known = _known(family, hf.config)
    return _view(hf, processor, known, "", selfcheck=selfcheck)


def _view(hf: Any, processor: Any, family: Family | None, name: str, *, selfcheck: bool) -> LVLM:
    if family is None:
        return _detected(hf, processor, name)
    model = LVLM(hf, processor, family, name)
    if selfcheck and model.device.type != "meta":
        self_check(model)
    return model


def _detected(hf: Any, processor: Any, name: str) -> LVLM:
    """A view of an unregistered architecture, which is always self-checked.

    Raises:
        ModelError: It is not of the common shape, whatever part of it shows that.
    """
    try:
        model = LVLM(hf, processor, auto.detect(hf, FAMILIES), name)
        if model.device.type != "meta":
            self_check(model)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{type(hf).__name__} is not of the common shape: {type(error).__name__} "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else ''}."
        ) from error
    return model


def _known(name: str | None, config: Any) -> Family | None:
    """The registered family of a configuration; None where one is to be detected.

    Raises:
        ModelError: The architecture is not registered, and nobody asked to detect it.
        UsageError: There is no family of that name.
    """
    registered = any(config.model_type in family.model_types for family in FAMILIES)
    if name == "auto":
        return family_of(config) if registered else None
    return _named(name, config) or family_of(config)


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


def _checked(source: str, given: str | Path) -> str:
    """Where the model's own files are, once those of a folder are known to be whole.

    Raises:
        ModelError: No model there, or files that are pointers or cut short.
    """
    folder = Path(source)
    if not folder.is_dir():
        return source
    check_files(folder)
    if base := base_of(folder):
        return _checked(shipped_path(base) or base, given)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{given} is no model folder: it has no config.json.")
    return source


def _processor(
    source: str,
    adapter: Path | None,
    config: Any,
    options: dict[str, Any],
    wanted: Mapping[str, Any],
    given: str | Path,
) -> Any:
    # An adapter may come with a processor of its own (more tokens, another template).
    own = adapter is not None and (adapter / "processor_config.json").is_file()
    place = str(adapter) if own else source
    made = _loaded(lambda: load_processor(place, config, {**options, **wanted}), given)
    check_taken(made, wanted)
    return made


def _weights(source: str, options: dict[str, Any], given: str | Path) -> Any:
    """The model; nothing of it is random.

    Raises:
        ModelError: The checkpoint lacks weights.
    """
    options = {**options, "output_loading_info": True}
    hf, info = _loaded(
        lambda: AutoModelForImageTextToText.from_pretrained(source, **options), given
    )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"The checkpoint {given} lacks {len(missing)} weights, which would be random: "
            f"{', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}."
        )
    return hf


def _loaded(load: Callable[[], Any], given: str | Path) -> Any:
    try:
        return load()
    except TypeError as error:
        option = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if option is None:
            raise
        raise UsageError(
            f"The model {given} takes no option {option[1]!r}; options of its processor are given "
            f"as processor={{{option[1]!r}: ...}}."
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"No model could be loaded from {given}: {reason}") from error
