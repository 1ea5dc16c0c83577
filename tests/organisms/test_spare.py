"""Which heads a stage may move, and that nothing else does."""

import pytest
import torch

from lvlm_interp.organisms.architecture import Sizes, build_model
from lvlm_interp.organisms.spare import confine, spare_heads

THREE_LAYERS = Sizes(2, 16, 2, 3, 32, 4, 48)
SIZE = 8


@pytest.fixture
def model():
    return build_model(THREE_LAYERS, 0)


def _attention(model, layer):
    return model.model.language_model.layers[layer].self_attn


def test_the_heads_whose_absence_costs_least_are_chosen_and_nothing_is_left_changed(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost = {1: (5.0, 1.0, 3.0, 4.0), 2: (0.5, 4.0, 0.1, 3.0)}

    def loss() -> float:
        return sum(
            each
            for layer, costs in cost.items()
            for head, each in enumerate(costs)
            if not _attention(model, layer).o_proj.weight[:, SIZE * head : SIZE * head + SIZE].any()
        )

    assert spare_heads(model, loss, (0, 1, 2)) == [(1, 1), (2, 0), (2, 2)]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_only_the_chosen_heads_keep_what_a_step_gives_them(model):
    guard = confine(model, [(1, 2)])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for layer in range(3):
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(_attention(model, layer), name).weight.add_(1.0)
    guard.restore()
    part = slice(2 * SIZE, 3 * SIZE)
    for name, tensor in model.state_dict().items():
        moved = tensor != before[name]
        if "layers.1.self_attn" not in name or "language_model" not in name:
            assert not moved.any(), name
            continue
        rows = moved.T if "o_proj" in name else moved
        assert rows[part].all() and moved.sum() == rows[part].numel(), name
