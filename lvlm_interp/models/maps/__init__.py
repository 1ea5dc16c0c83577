"""Exact maps of a model's modules, each obtained by calling the module.

What a head writes, what a branch reads, what the unembedding says: asked of the modules themselves
and never of their `.weight`, so that adapters, quantised weights, LayerScale, gates, post-norms and
devices are all in it.
"""

from lvlm_interp.models.maps.block import BlockMaps, HeadWrites
from lvlm_interp.models.maps.linear import Affine, FrozenNorm, affine_of, called
from lvlm_interp.models.maps.unembedding import Tail, Unembedding

__all__ = [
    "Affine",
    "BlockMaps",
    "FrozenNorm",
    "HeadWrites",
    "Tail",
    "Unembedding",
    "affine_of",
    "called",
]
