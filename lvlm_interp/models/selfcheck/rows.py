"""Rows and noise: the batch of a self-check, and what is done to the rows of a site's value.

Row 0 is clean, three rows carry noise, the last is a control without any. Noise is additive,
because norms undo a factor; a change that does not exceed the control's is none.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lvlm_interp.models.identities import wide
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.sites import Site

CLEAN, FIRST, SECOND, THIRD, CONTROL = range(5)
"""Rows of the batch."""

N = 5
EXIT = FIRST
"""The row whose noise goes on from one block or tower to the next."""

MOST_QUERIES = 32
"""Query positions at which `scores` and `pattern` are looked at: they grow with the square of the
number of patches, of which real towers have thousands."""


def reset(value: Tensor) -> Tensor:
    """All rows as the clean one is."""
    return value[CLEAN].expand_as(value).clone()


def noised(value: Tensor, site: Site, row: int) -> Tensor:
    """One row with noise of about half a standard deviation."""
    out = value.clone()
    out[row] = _with_noise(out[row], site)
    return out


def gap(value: Tensor, row: int) -> tuple[float, float]:
    """Largest difference of a row, and of the control, from the clean row."""
    return distance(value[row], value[CLEAN]), distance(value[CONTROL], value[CLEAN])


def queries(value: Tensor) -> Tensor:
    """Query positions of `scores` or `pattern` that are looked at."""
    n = value.shape[2]
    return torch.linspace(0, n - 1, min(n, MOST_QUERIES)).round().long().to(value.device)


def is_square(site: Site) -> bool:
    """Whether a site's axes are head, query and key."""
    return site.name.removeprefix("cross_") in ("scores", "pattern")


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors."""
    return float((wide(a) - wide(b)).abs().max())


def repeated(one: Inputs) -> Inputs:
    """The same row `N` times."""
    tensors = {
        name: torch.cat([value] * N) if isinstance(value, Tensor) else value
        for name, value in one.tensors.items()
    }
    return replace(one, tensors=tensors, tokens=one.tokens * N)


def _with_noise(value: Tensor, site: Site) -> Tensor:
    # Masked scores stay masked: a number beside the smallest one would overflow to -inf.
    open_ = value.abs() < torch.finfo(value.dtype).max / 4
    noise = torch.randn(value.shape, dtype=torch.float32).to(value.device) * _scale(value[open_])
    if site.name in ("mlp_out", "deepstack"):
        # Positions that a gate shuts off (Mllama before the image), and those that deepstack does
        # not reach, take nothing up.
        noise = noise * (value != 0).any(-1, keepdim=True)
    elif site.name == "pattern" and site.tower != "text":
        noise = noise * (value != 0)  # tiles of an image do not read each other
    return torch.where(open_, value + noise, value).to(value.dtype)


def _scale(value: Tensor) -> Tensor:
    """Half a standard deviation of the bulk, on which one channel of a thousand has no say."""
    value = wide(value)
    typical = 1.5 * value.abs().median()
    return 0.5 * torch.where(typical > 0, typical, value.std()).clamp(min=1e-3)
