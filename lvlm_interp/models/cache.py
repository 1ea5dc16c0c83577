"""ActivationCache: activations of one forward by site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lvlm_interp.errors import SiteError
from lvlm_interp.sites import Site, select


class ActivationCache(Mapping[str, Tensor]):
    """Activations by site; accepts `text.3.z`, a `Site`, or a TransformerLens name.

    A cache filled by `LVLM.record` is complete once the forward inside the context has run.
    """

    def __init__(self) -> None:
        self._tensors: dict[Site, Tensor] = {}

    def __getitem__(self, site: str | Site) -> Tensor:
        wanted = Site.parse(site)
        if wanted not in self._tensors:
            select(wanted, list(self._tensors))
        return self._tensors[wanted]

    def __setitem__(self, site: str | Site, value: Tensor) -> None:
        self._tensors[Site.parse(site)] = value

    def __contains__(self, site: object) -> bool:
        return isinstance(site, str | Site) and Site.parse(site) in self._tensors

    def __iter__(self) -> Iterator[str]:
        return (str(site) for site in self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def sites(self) -> list[Site]:
        """The cached sites, in the order of the forward."""
        return list(self._tensors)

    def stack(self, pattern: str) -> Tensor:
        """Activations of matching sites along a new first axis `layer`.

        Raises:
            SiteError: Nothing matches, or the shapes differ.
        """
        sites = select(pattern, self.sites)
        shapes = {tuple(self._tensors[site].shape) for site in sites}
        if len(shapes) > 1:
            raise SiteError(f"The sites of {pattern!r} differ in shape: {sorted(shapes)}.")
        return torch.stack([self._tensors[site] for site in sites])

    def to(self, device: torch.device | str) -> ActivationCache:
        """A copy with all activations on a device."""
        out = ActivationCache()
        out._tensors = {site: value.to(device) for site, value in self._tensors.items()}
        return out

    def rows(self, rows: slice) -> ActivationCache:
        """Some rows of the batch, for sites that have the batch as their first axis."""
        out = ActivationCache()
        out._tensors = {site: value[rows] for site, value in self._tensors.items()}
        return out

    def to_transformer_lens(self, bridge: Any = None) -> Any:
        """TransformerLens' `ActivationCache` of the language model's sites.

        Args:
            bridge: From `LVLM.to_transformer_lens`, for its methods that need weights.
        """
        from lvlm_interp.models.interop.transformer_lens import cache_to_transformer_lens

        return cache_to_transformer_lens(self, bridge)

    @property
    def nbytes(self) -> int:
        """Bytes of all activations."""
        return sum(value.nbytes for value in self._tensors.values())

    def __repr__(self) -> str:
        return f"ActivationCache({len(self)} sites, {self.nbytes / 2**20:.1f} MiB)"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{site}</td><td>{site.shape}</td><td>{tuple(value.shape)}</td></tr>"
            for site, value in self._tensors.items()
        )
        return f"<p>{self!r}</p><table><tr><th>site<th>axes<th>shape</tr>{rows}</table>"
