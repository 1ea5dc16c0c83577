"""Activations made of numbers with a known signal, and a tiny model."""

import numpy as np
import pytest

from lvlm_interp.activations.forward import Chunk
from lvlm_interp.activations.memory import Collected
from lvlm_interp.activations.roles import parse_roles
from lvlm_interp.sites import Site
from tests.activations.conftest import tiny_model

SITES = [Site("text", layer, "resid_post") for layer in range(3)]


def activations(strengths, *, n_groups=80, d=12, seed=0, names=None, extra=None):
    """Two examples per group, one of each truth; `strengths[layer]` is the gap of their means.

    The direction is the same at all layers: the first axis, unless `extra` says otherwise.
    """
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), 2)
    present = np.tile([True, False], n_groups)
    pooled = {}
    for site, strength in zip(SITES, strengths, strict=False):
        X = rng.standard_normal((len(groups), 1, d)) + rng.standard_normal((n_groups, 1, d))[groups]
        X[:, 0, 0] += strength * (present - 0.5)
        pooled[site] = X.astype(np.float32)
    rows = [
        {
            "example": (names or "e") + str(i),
            "group": f"s{g}",
            "present": bool(p),
            "type": f"t{rng.integers(12)}",
            "color": ["red", "green", "blue"][rng.integers(3)],
            **{name: values[i] for name, values in (extra or {}).items()},
        }
        for i, (g, p) in enumerate(zip(groups, present, strict=True))
    ]
    sites = list(pooled)
    return Collected(sites, parse_roles("last"), {}, [Chunk(pooled, {}, {}, rows, [])])


@pytest.fixture(scope="session")
def model():
    return tiny_model()
