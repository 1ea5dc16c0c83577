"""Activations with a planted relation, made without a model, and a tiny model."""

import numpy as np
import pytest

from lvlm_interp.activations.forward import Chunk
from lvlm_interp.activations.memory import Collected
from lvlm_interp.activations.roles import parse_roles
from lvlm_interp.sites import Site
from tests.activations.conftest import tiny_model

N_LAYERS = 3


def collected(*, n=64, noise=(9.0, 0.5, 2.0), seed=0, heads=False, extra=None):
    """Positions `image_mean` and `caption` that share a signal; `noise` of each layer covers it."""
    rng = np.random.default_rng(seed)
    common, pooled = rng.standard_normal((n, 6)), {}
    for layer, size in enumerate(noise):
        sides = [
            common @ rng.standard_normal((6, 12)) + size * rng.standard_normal((n, 12)) + 3
            for _ in range(2)
        ]
        values = np.stack(sides, axis=1).astype(np.float32)
        site = Site("text", layer, "z" if heads else "resid_post")
        pooled[site] = values.reshape(n, 2, 3, 4) if heads else values
    rows = [
        {
            "example": f"e{i}",
            "group": f"g{i}",
            "level": "object",
            "n_objects": i % 4,
            "wrong": bool(i % 3 == 0),
            **{name: values[i] for name, values in (extra or {}).items()},
        }
        for i in range(n)
    ]
    roles = parse_roles("image_mean,caption")
    return Collected(list(pooled), roles, {"model": "made"}, [Chunk(pooled, {}, {}, rows, [])])


@pytest.fixture(scope="session")
def model():
    return tiny_model()
