"""nnsight on the same weights: saved values, head patches, and the serialised remote path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from torch import Tensor

from lvlm_interp.errors import UsageError
from lvlm_interp.models.interop.nnsight import Write
from lvlm_interp.models.loading import load_model, wrap
from tests.models import processors, zoo
from tests.models.test_families import picture

EXACT: Any = {"atol": 1e-5, "rtol": 1e-5}
FAST = ("llava", "mllama")
OUT = {
    **{name: "model.language_model.layers.0.self_attn.o_proj" for name in zoo.BUILDERS},
    "idefics3": "model.text_model.layers.0.self_attn.o_proj",
    "smolvlm": "model.text_model.layers.0.self_attn.o_proj",
    "blip_2": "language_model.model.decoder.layers.0.self_attn.out_proj",
    "instructblip": "language_model.model.decoder.layers.0.self_attn.out_proj",
}
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # The Q-Former has submodules named output, which nnsight serves under another name.
    pytest.mark.filterwarnings("ignore:Module .* has a submodule named:UserWarning"),
]


@pytest.mark.parametrize("name", zoo.tiered(zoo.BUILDERS, FAST))
def test_values_and_head_patches_agree(name: str) -> None:
    model = wrap(zoo.build(name), processors.build(name))
    inputs = model.prepare([(picture(), "is there a dog?")])
    traced = model.to_nnsight()
    size = model.towers["text"]
    columns = slice(size.d_head, 2 * size.d_head)
    tensors = dict(inputs.tensors)
    with torch.no_grad():
        with traced.trace(**tensors, use_cache=False):
            z = traced.get(OUT[name]).input.save()
        with traced.trace(**tensors, use_cache=False):
            value = traced.get(OUT[name]).input.clone()
            value[:, -1, columns] = 0.5
            traced.get(OUT[name]).input = value
            patched = traced.output.logits.save()
    _, cache = model.run_with_cache(inputs, "text.0.z")
    torch.testing.assert_close(cache["text.0.z"].flatten(-2), z, **EXACT)

    def patch(own: Tensor) -> Tensor:
        own = own.clone()
        own[:, -1, 1] = 0.5
        return own

    with model.edit({"text.0.z": patch}):
        torch.testing.assert_close(model(inputs), patched, **EXACT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llava")
    zoo.build("llava").save_pretrained(path)
    processors.build("llava").save_pretrained(path)
    return path


@pytest.mark.slow
def test_the_serialised_remote_path_gives_what_a_local_run_gives(folder: Path) -> None:
    registered = cloudpickle.list_registry_pickle_by_value()
    remote = load_model(folder, backend="nnsight", remote="local")
    model = load_model(folder)
    inputs = model.prepare([(picture(), "is there a dog?")])
    sites = ["text.*.resid_post", "text.*.z", "text.*.attn_out"]
    logits, cache = remote.run_with_cache(remote.prepare([(picture(), "is there a dog?")]), sites)
    expected, ours = model.run_with_cache(inputs, sites)
    torch.testing.assert_close(logits, expected, **EXACT)
    assert list(cache) == list(ours)
    for site in ours:
        torch.testing.assert_close(cache[site], ours[site], **EXACT)
    writes = {"text.0.z": Write(0.0, positions=[-1], head=1), "text.1.mlp_out": Write(0.0)}
    ablated, _ = remote.run_with_cache(inputs, sites, writes=writes)

    def cut(z: Tensor) -> Tensor:
        z = z.clone()
        z[:, -1, 1] = 0
        return z

    with model.edit({"text.0.z": cut, "text.1.mlp_out": torch.zeros_like}):
        torch.testing.assert_close(ablated, model(inputs), **EXACT)
    lens = remote.logit_lens(inputs)
    torch.testing.assert_close(lens[-1], expected, **EXACT)
    assert cloudpickle.list_registry_pickle_by_value() == registered


def test_nothing_runs_locally_in_silence(folder: Path) -> None:
    with pytest.raises(UsageError, match="in silence"):
        load_model(folder, backend="nnsight")
    with pytest.raises(UsageError, match="only 'nnsight' runs remotely"):
        load_model(folder, remote=True)
