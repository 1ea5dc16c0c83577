"""Options of loading: where weights go, in how many bits, and what the processor is told."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lvlm_interp.errors import ModelError, UsageError

SMALL, MEDIUM = 5_000_000, 100_000_000
"""Weights below which one thread, and below which four, are as fast as all."""


def place(device: str | torch.device | None) -> torch.device | None:
    """A device by name; `auto` is the first GPU where there is one, and the CPU otherwise.

    Raises:
        UsageError: No such device here.
    """
    if device is None:
        return None
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"There is no device {str(device)!r} here: expected 'auto', 'cpu' or 'cuda' (with a "
            "number where there are several)."
        ) from error
    return found


def weight_options(
    options: Mapping[str, Any], device: str | torch.device | None, device_map: Any
) -> dict[str, Any]:
    """What `from_pretrained` is given: bits as a quantisation, a device as a map of one.

    Raises:
        UsageError: A device beside a map of devices, or both numbers of bits.
    """
    options = dict(options)
    bits = [n for n in (4, 8) if options.pop(f"load_in_{n}bit", False)]
    if bits:
        if len(bits) == 2 or options.get("quantization_config") is not None:
            raise UsageError(
                "Give one of load_in_4bit, load_in_8bit and quantization_config, not several."
            )
        options["quantization_config"] = _bitsandbytes(bits[0])
    where = place(device)
    if where is not None and device_map is not None:
        raise UsageError(f"device={str(device)!r} and device_map exclude each other: give one.")
    if where is not None and where.type != "cpu":
        device_map = {"": str(where)}
    return {**options, "device_map": device_map}


def _bitsandbytes(bits: int) -> Any:
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise ModelError(
            f"Loading in {bits} bits needs the package bitsandbytes: pip install bitsandbytes."
        )
    return BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)


def check_taken(processor: Any, wanted: Mapping[str, Any]) -> None:
    """Refuse options that no part of a processor knows: it drops them without a word.

    Raises:
        UsageError: Such an option.
    """
    parts = [processor, *(getattr(processor, n, None) for n in ("image_processor", "tokenizer"))]
    for name in wanted:
        if not any(hasattr(part, name) for part in parts if part is not None):
            raise UsageError(
                f"The processor {type(processor).__name__} has no option {name!r}; its image "
                f"processor is {type(parts[1]).__name__}."
            )


def threads_for(n_weights: int, available: int) -> int:
    """Threads with which a model of so many weights runs best on a machine that does more.

    The kernels of a tiny model take microseconds, and threads that wait for each other spin: beside
    another busy process a run with torch's default took four times as long as with one.
    """
    if n_weights < SMALL:
        return 1
    return min(4, available) if n_weights < MEDIUM else available


def settle_threads(hf: torch.nn.Module) -> None:
    """Use `threads_for` a model from now on, where nobody has chosen a number of threads.

    A choice is OMP_NUM_THREADS or MKL_NUM_THREADS, or a number that is not torch's default.
    """
    now, cores = torch.get_num_threads(), os.cpu_count() or 1
    chosen = any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    if not chosen and now in (cores, max(cores // 2, 1), len(_affinity())):
        torch.set_num_threads(threads_for(sum(p.numel() for p in hf.parameters()), now))


@contextmanager
def threads_by_size(hf: torch.nn.Module) -> Iterator[None]:
    """`settle_threads` while the context is open."""
    before = torch.get_num_threads()
    settle_threads(hf)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
