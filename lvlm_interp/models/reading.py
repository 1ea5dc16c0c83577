"""Reading: visitors that put what passes a site into a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from lvlm_interp.models.cache import ActivationCache
from lvlm_interp.models.hooks import Tap
from lvlm_interp.sites import Site

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import Keep


def reader(
    site: Site, into: Callable[[], ActivationCache], keep: Keep | None, *, copy: bool
) -> Callable[[Tensor], None]:
    """A visitor that keeps a site's value, or what is wanted of it.

    Args:
        site: Whose values it gets.
        into: Gives the cache that is being filled.
        keep: What to keep of the value.
        copy: For a tensor that is written into later.
    """

    def read(value: Tensor) -> None:
        kept = value if keep is None else keep(site, value)
        into()[site] = kept.detach().clone() if copy else kept.detach()

    return read


def connected_reader(site: Site, tap: Tap, cache: ActivationCache) -> Callable[[Tensor], Tensor]:
    """A visitor that keeps a site's value in the graph, so that gradients for it exist."""

    def read(value: Tensor) -> Tensor:
        # The value that is kept must be the one that flows on.
        cache[site] = value = tap.in_graph(value)
        return value

    return read
