"""From a folder to a view: saved models, broken ones, detected ones, split ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lvlm_interp.cli import main
from lvlm_interp.errors import ModelError, UsageError
from lvlm_interp.models.loading import load_model, wrap
from lvlm_interp.models.selfcheck import inspect, self_check
from tests.models import processors, zoo
from tests.models.test_families import QUESTION, picture

EXACT: Any = {"atol": 1e-5, "rtol": 1e-5}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def saved(name: str, folder: Path) -> Path:
    zoo.build(name).save_pretrained(folder)
    processors.build(name).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", zoo.tiered(zoo.BUILDERS, ("llava", "qwen2_vl")))
def test_a_saved_model_passes_the_check_of_the_command_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--check", str(saved(name, tmp_path))]) == 0
    out = capsys.readouterr().out
    n = len(wrap(zoo.build(name)).sites())
    assert f"{n} of {n} sites read and write what they say." in out
    assert "text.0.pattern" in out


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_a_saved_model_answers_as_the_one_in_memory(name: str, tmp_path: Path) -> None:
    model = load_model(saved(name, tmp_path))
    expected = wrap(zoo.build(name), processors.build(name))
    rows = [(picture(), QUESTION), (picture((48, 24)), "the dog")]
    torch.testing.assert_close(
        model.last_logits(model.prepare(rows)),
        expected.last_logits(expected.prepare(rows)),
        **EXACT,
    )


def test_the_table_names_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    for name in zoo.BUILDERS:
        assert f"\n{name}\n" in f"\n{out}"


def test_the_table_lists_the_sites_that_a_model_has(capsys: pytest.CaptureFixture[str]) -> None:
    from lvlm_interp.models.command import site_names

    for name in zoo.FAST:
        model = wrap(zoo.build(name))
        for tower in model.towers:
            has = {site.name for site in model.sites(f"{tower}.*")}
            has |= {"logits"} if tower == "text" else set()
            assert set(site_names(model.family, tower)) == has


def test_missing_weights_are_no_random_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved("llava", tmp_path)
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in weights if "layers.1.mlp.down_proj" in name)
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights.*down_proj"):
        load_model(folder)
    assert main(["models", "--check", str(folder)]) == 2
    assert "lacks 1 weights" in capsys.readouterr().err


def test_a_dead_path_fails_the_self_check_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Values that are thrown away: whatever is written there has no effect."""
    model = zoo.build("llava")
    with torch.no_grad():
        model.model.language_model.layers[1].self_attn.v_proj.weight.zero_()
        model.model.language_model.layers[1].self_attn.o_proj.weight.zero_()
    model.save_pretrained(tmp_path)
    processors.build("llava").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"text\.1\.z has no effect"):
        load_model(tmp_path)
    assert load_model(tmp_path, selfcheck=False).n_layers == 2
    assert main(["models", "--check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    failed = [line.split()[0] for line in out.splitlines() if line.endswith("FAILED")]
    assert failed == [
        f"text.1.{n}" for n in ("q", "k", "v", "rot_q", "rot_k", "scores", "pattern", "z")
    ]


def test_a_site_that_reads_wrong_fails_the_self_check() -> None:
    model = wrap(zoo.build("llava"))
    block = model.hf.model.language_model.layers[0]
    plain = block.mlp.forward
    # A block whose MLP is not what its down projection gives.
    block.mlp.forward = lambda value: 2 * plain(value)
    report = inspect(model)
    assert [check.site for check in report.failed] == ["text.0.mlp_out"]
    with pytest.raises(ModelError, match=r"text\.0\.mlp_out reads"):
        self_check(model)


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="not supported; supported are: llava"):
        load_model(tmp_path)
    with pytest.raises(UsageError, match="no family 'lava'"):
        wrap(zoo.build("llava"), family="lava")


# -- devices -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "mllama"])
def test_layers_may_lie_on_disk(name: str, tmp_path: Path) -> None:
    folder = saved(name, tmp_path / "model")
    whole = load_model(folder)
    inputs = whole.prepare([(picture(), QUESTION)])
    expected, ours = whole.run_with_cache(inputs, "*")
    split = load_model(
        folder, device_map=_split(whole.hf), offload_folder=str(tmp_path / "offload")
    )
    assert any(parameter.is_meta for parameter in split.hf.parameters())
    zero = torch.zeros_like
    logits, cache = split.run_with_cache(inputs, "*")
    torch.testing.assert_close(logits, expected, **EXACT)
    for site in ours:
        torch.testing.assert_close(cache[site], ours[site], **EXACT)
    with split.edit({"text.1.mlp_out": zero}), whole.edit({"text.1.mlp_out": zero}):
        torch.testing.assert_close(split(inputs), whole(inputs), **EXACT)


def _split(hf: Any) -> dict[str, str]:
    """Every block and part on the processor, the language model's last block on disk."""
    names = {
        name
        for name, module in hf.named_modules()
        if name and (not list(module.children()) or name.rpartition(".")[2].isdigit())
    }
    outer = {name for name in names if not any(name.startswith(f"{each}.") for each in names)}
    disk = "language_model.layers.1"
    own = {name for name, _ in hf.named_parameters() if not _inside(name, outer)}
    return {name: "disk" if name.endswith(disk) else "cpu" for name in sorted(outer | own)}


def _inside(name: str, modules: set[str]) -> bool:
    return any(name.startswith(f"{each}.") for each in modules)
