"""Checkpoints that are not whole, adapters, devices, bits, and options of the processor."""

from __future__ import annotations

import json
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf

from lvlm_interp.cli import COMMANDS, main
from lvlm_interp.errors import ModelError, UsageError
from lvlm_interp.models.loading import load_model, wrap
from lvlm_interp.models.options import MEDIUM, SMALL, place, threads_by_size, threads_for
from tests.models import processors, zoo
from tests.models.adapters import wide
from tests.models.test_families import QUESTION, picture
from tests.models.test_loading import saved

peft = pytest.importorskip("peft")
EXACT: Any = {"atol": 1e-5, "rtol": 1e-5}
pytestmark = pytest.mark.filterwarnings("ignore")


def trained(net: Any, kind: Any = None) -> Any:
    """The model with a LoRA whose both matrices matter."""
    config = kind or peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj", "down_proj"])
    model = peft.get_peft_model(net, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    return model.eval()


def inputs_of(model: Any) -> Any:
    return model.prepare([(picture(), QUESTION)])


@pytest.mark.parametrize("name", zoo.tiered(zoo.BUILDERS, ("llava", "mllama")))
def test_a_peft_model_is_the_model_with_its_adapter(name: str) -> None:
    if name in ("blip_2", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "instructblip", "internvl"):
        config = peft.LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|v_proj)")
    else:
        config = None
    whole = trained(zoo.build(name), config)
    model = wrap(whole, processors.build(name))
    inputs = inputs_of(model)
    found = model(inputs)
    merged = wrap(trained(zoo.build(name), config).merge_and_unload(), processors.build(name))
    torch.testing.assert_close(found, merged(inputs), atol=1e-4, rtol=1e-4)
    assert (found - wrap(zoo.build(name))(inputs)).abs().max() > 1e-2
    with whole.disable_adapter():
        torch.testing.assert_close(model(inputs), wrap(zoo.build(name))(inputs), **EXACT)


def test_an_adapter_of_the_prompt_is_refused() -> None:
    config = peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM", num_layers=2)
    config.token_dim, config.num_attention_heads, config.num_transformer_submodules = 32, 4, 1
    config.encoder_hidden_size = 32
    net = zoo.build("llava")

    whole = SimpleNamespace(peft_config={"default": config}, get_base_model=lambda: net)
    with pytest.raises(ModelError, match="puts virtual tokens before the prompt"):
        wrap(whole)


def test_an_adapter_folder_is_loaded_with_its_model(tmp_path: Path) -> None:
    base = saved("llava", tmp_path / "base")
    whole = trained(hf.LlavaForConditionalGeneration.from_pretrained(base))
    whole.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "config.json").exists()
    model = load_model(tmp_path / "adapter")
    expected = wrap(whole, processors.build("llava"))
    torch.testing.assert_close(model(inputs_of(model)), expected(inputs_of(expected)), **EXACT)
    path = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="names no base model"):
        load_model(tmp_path / "adapter")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved("llava", tmp_path)
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    capsys.readouterr()
    assert main(["models", "--check", str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"{name} is a pointer of git-lfs" in said and said.count("\n") == 1


@pytest.mark.parametrize("keep", [0, 4, 200, -1, 0.5])
def test_a_shard_that_is_cut_short_is_named(
    keep: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved("llava", tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if keep == 0.5 else int(keep)])
    capsys.readouterr()
    assert main(["models", "--check", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "model.safetensors is cut short" in said and said.count("\n") == 1


def test_bits_a_device_and_attention_that_cannot_be_had_are_one_sentence(tmp_path: Path) -> None:
    folder = saved("llava", tmp_path)
    for options, error, said in (
        ({"load_in_4bit": True, "load_in_8bit": True}, UsageError, "Give one of load_in_4bit"),
        ({"max_pixels": 9}, UsageError, r"takes no option 'max_pixels'.*processor="),
        ({"processor": {"max_pixel": 9}}, UsageError, "has no option 'max_pixel'"),
        ({"device": "tpu9"}, UsageError, "There is no device 'tpu9'"),
        ({"device": "cpu", "device_map": "auto"}, UsageError, "exclude each other"),
        ({"attn_implementation": "flash_attention_2"}, ModelError, "No model could be loaded"),
    ):
        with pytest.raises(error, match=said) as caught:
            load_model(folder, **options)
        assert "\n" not in str(caught.value)
    assert place("auto").type in ("cpu", "cuda") and place(None) is None


def test_options_of_the_processor_are_taken(tmp_path: Path) -> None:
    folder = saved("qwen2_vl", tmp_path)
    plain = load_model(folder, selfcheck=False)
    small = load_model(
        folder, selfcheck=False, processor={"size": {"shortest_edge": 1, "longest_edge": 24 * 24}}
    )
    big = picture((96, 96))
    counts = [len(each.prepare((big, QUESTION)).tokens[0].image) for each in (plain, small)]
    assert counts[1] < counts[0]


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_load_and_run(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = load_model(wide(tmp_path), selfcheck=False, **{f"load_in_{bits}bit": True})
    assert model(inputs_of(model)).isfinite().all()


def test_detection_says_what_is_missing_whatever_breaks() -> None:
    net = zoo.build("llava")
    net.config.model_type = "viper"  # a registered architecture keeps its own family
    net.config.vision_config.image_size = None
    with pytest.raises(ModelError, match="is not of the common shape"):
        wrap(net, family="auto")
    with pytest.raises(ModelError, match="is not of the common shape"):
        wrap(
            hf.BertForMaskedLM(
                hf.BertConfig(
                    hidden_size=8,
                    num_hidden_layers=1,
                    num_attention_heads=1,
                    intermediate_size=8,
                    vocab_size=9,
                )
            ),
            family="auto",
        )


# -- threads ---------------------------------------------------------------------------------------


def test_threads_follow_the_size_and_never_a_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [threads_for(n, 16) for n in (SMALL - 1, SMALL, MEDIUM)] == [1, 4, 16]
    net, before = zoo.build("llava"), 8
    seen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: [before, *seen][-1])
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with threads_by_size(net):
        pass
    assert seen == []
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: before)
    with threads_by_size(net):
        assert seen == [1]
    assert seen == [1, before]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1009)  # nobody's default
    with threads_by_size(net):
        pass
    assert seen == [1, before]


# -- commands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["extract", "patch", "diagnose", "lens", "models"])
def test_every_command_that_loads_a_model_says_where_and_in_what_dtype(name: str) -> None:
    module, _, function = COMMANDS[name][1].partition(":")
    parameters = signature(getattr(import_module(module), function)).parameters
    assert parameters["device"].default == "auto"
    assert {"dtype", "revision"} <= set(parameters)
    assert "model_dtype" in parameters or parameters["dtype"].default == "auto"


def test_a_device_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--check", "scenes", "--device", "tpu"]) == 2
    said = capsys.readouterr().err
    assert "There is no device 'tpu' here" in said and said.count("\n") == 1
