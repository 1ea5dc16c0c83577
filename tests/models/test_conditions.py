"""The view under real conditions: compiled, in threads, in training, with unknown attention."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from lvlm_interp.errors import ModelError, SiteError
from lvlm_interp.models.inputs.sample import synthetic_inputs
from lvlm_interp.models.loading import wrap
from lvlm_interp.models.selfcheck import inspect
from lvlm_interp.models.zoo import randomised
from lvlm_interp.models.zoo.parts import text_config, vision_config
from lvlm_interp.patching import activation_patch
from tests.models import processors, zoo
from tests.models.test_backbones import GRANITE, llava_with
from tests.models.test_families import _ours
from tests.patching.conftest import make_pairs

EXACT: Any = {"atol": 1e-5, "rtol": 1e-5}
ZERO = {"text.0.z": torch.zeros_like}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def plain() -> Any:
    return wrap(zoo.build("llava"), processors.build("llava"))


@pytest.fixture(scope="module")
def inputs(plain: Any) -> Any:
    return plain.prepare(make_pairs(1)[0].clean)


@pytest.fixture(scope="module")
def edited(plain: Any, inputs: Any) -> Tensor:
    with plain.edit(ZERO):
        return plain(inputs)


# -- compiled --------------------------------------------------------------------------------------


def compiled(how: str) -> Any:
    net = zoo.build("llava")
    if how == "method":
        net.compile(backend="eager")
        return net
    if how == "blocks":
        for block in net.model.language_model.layers:
            block.compile(backend="eager")
        return net
    return torch.compile(net, backend="eager")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", zoo.tiered(("blocks", "method", "function"), ("blocks",)))
def test_hooks_are_seen_after_compilation(
    how: str, plain: Any, inputs: Any, edited: Tensor
) -> None:
    model = wrap(compiled(how), selfcheck=False)
    torch.testing.assert_close(model(inputs), plain(inputs), **EXACT)
    with model.edit(ZERO):
        torch.testing.assert_close(model(inputs), edited, **EXACT)
        torch.testing.assert_close(model.hf(**inputs.tensors).logits, edited, **EXACT)
    _, cache = model.run_with_cache(inputs, "text.*.resid_post")
    assert len(cache) == 2
    torch.testing.assert_close(model(inputs), plain(inputs), **EXACT)
    assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_edits_hold_in_generation_with_a_compiled_static_cache(plain: Any, inputs: Any) -> None:
    config = hf.CompileConfig(backend="eager", mode=None)
    config._compile_all_devices = True  # what CUDA does by itself
    static = {"cache_implementation": "static", "compile_config": config}
    more = {"max_new_tokens": 4, "eos_token_id": None}
    edit = {"text.1.resid_post": torch.ones_like}
    model = wrap(zoo.build("llava"))
    bare = model.generate(inputs, **more, **static)
    changed = model.generate(inputs, edits=edit, **more, **static)
    expected = wrap(zoo.build("llava")).generate(inputs, edits=edit, **more)
    assert changed.tolist() == expected.tolist() != bare.tolist()
    assert model.generate(inputs, **more, **static).tolist() == bare.tolist()


# -- threads and order -----------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["text.0.z", "text.0.pattern"])
def test_an_edit_is_seen_by_the_runs_of_its_own_thread(site: str, plain: Any, inputs: Any) -> None:
    bare = plain(inputs)
    opened, done, found = threading.Event(), threading.Event(), []

    def other() -> None:
        with plain.edit({site: torch.zeros_like}):
            opened.set()
            done.wait(10)
            found.append(plain(inputs))

    thread = threading.Thread(target=other)
    thread.start()
    opened.wait(10)
    mine = plain(inputs)
    done.set()
    thread.join()
    assert torch.equal(mine, bare)
    assert (found[0] - bare).abs().max() > 1e-2
    assert torch.equal(plain(inputs), bare)


def test_many_threads_each_get_their_own_runs(plain: Any, inputs: Any) -> None:
    factors = [0.0, 0.5, 1.0, 2.0]

    def run(factor: float) -> Tensor:
        with plain.edit({"text.0.pattern": lambda pattern: pattern * factor}):
            return plain(inputs)

    expected = [run(factor) for factor in factors]
    found: dict[int, list[Tensor]] = {i: [] for i in range(len(factors))}

    def work(index: int) -> None:
        for _ in range(4):
            found[index].append(run(factors[index]))

    threads = [threading.Thread(target=work, args=(i,)) for i in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, values in found.items():
        assert len(values) == 4
        for value in values:
            torch.testing.assert_close(value, expected[index], **EXACT)


@pytest.mark.parametrize("own", ["sdpa", "eager"])
def test_contexts_may_be_closed_in_any_order(own: str, plain: Any, inputs: Any) -> None:
    net = zoo.build("llava")
    net.set_attn_implementation(own)
    one, two = wrap(net), wrap(net)
    before = [c._attn_implementation for c in (net.config, net.config.text_config)]
    a, b = one.record("text.0.pattern"), two.record("text.1.pattern")
    first, second = a.__enter__(), b.__enter__()
    one(inputs)
    assert len(first) == len(second) == 1  # two views of one model are both served
    a.__exit__(None, None, None)
    seen = second["text.1.pattern"]
    two(inputs)
    assert second["text.1.pattern"] is not seen
    b.__exit__(None, None, None)
    assert [c._attn_implementation for c in (net.config, net.config.text_config)] == before
    assert not _ours(net)
    torch.testing.assert_close(one(inputs), plain(inputs), **EXACT)


def test_a_model_in_training_stays_so_and_runs_without_dropout(inputs: Any) -> None:
    net = llava_with("llama", attention_dropout=0.5).train()
    model = wrap(net)
    assert net.training and all(module.training for module in net.modules())
    torch.testing.assert_close(model(inputs), model(inputs), atol=0, rtol=0)
    assert model.generate(inputs, max_new_tokens=3).shape[1] <= 3
    assert all(module.training for module in net.modules())


def test_a_view_does_not_keep_its_model_alive() -> None:
    import gc
    import weakref

    net = zoo.build("llava")
    gone = weakref.ref(net)
    wrap(net)
    del net
    gc.collect()
    assert gone() is None


def test_an_edit_that_runs_the_model_is_refused(plain: Any, inputs: Any) -> None:
    with (
        pytest.raises(SiteError, match=r"text\.0\.z runs the model in which it is open itself"),
        plain.edit({"text.0.z": lambda z: z + plain(inputs).mean()}),
    ):
        plain(inputs)
    assert torch.equal(plain(inputs), plain(inputs))


def test_an_edit_that_is_never_reached_is_named_however_the_model_runs(plain: Any) -> None:
    bare = {"input_ids": torch.tensor([[1, 20, 21, 22]])}
    for run in (plain, lambda x: plain.generate(x, max_new_tokens=2), lambda x: plain.hf(**x)):
        with (
            pytest.raises(SiteError, match=r"never reached vision\.0\.z"),
            plain.edit({"vision.0.z": torch.zeros_like}),
        ):
            run(bare)


# -- attention that is not understood --------------------------------------------------------------


def sinks() -> Any:
    net = llava_with("granite_swa", **GRANITE)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "sinks" in name:
                parameter.fill_(1.0)
    return net


def test_attention_sinks_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"GraniteSWAAttention gives its attention s_aux"):
        wrap(sinks())


def test_patching_beside_sinks_measures_the_models_own_runs() -> None:
    model = wrap(sinks(), processors.build("llava"), selfcheck=False)
    pairs = make_pairs(1)
    frames = [
        activation_patch(model, pairs, "text.*.z", engine=engine, progress=False).table.frame
        for engine in ("full", "auto")
    ]
    assert set(frames[1]["path"]) == {"full"}
    for column in ("m_clean", "m_corrupt", "m_patched"):
        assert (frames[0][column] - frames[1][column]).abs().max() < 1e-5


def test_an_edit_around_patching_is_part_of_every_run(plain: Any) -> None:
    pairs = make_pairs(1)
    with plain.edit({"text.0.mlp_out": lambda value: value * 0.5}):
        found = [
            activation_patch(plain, pairs, "text.1.z", engine=engine, progress=False).table.frame
            for engine in ("full", "auto")
        ]
    assert (found[0]["m_patched"] - found[1]["m_patched"]).abs().max() < 1e-5


# -- the self-check --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_massive_activations_hide_no_fault(dtype: torch.dtype) -> None:
    """A branch that is off by a factor, beside a channel of a thousand as real models have it."""
    net = llava_with("llama")
    with torch.no_grad():
        net.model.language_model.embed_tokens.weight[:, 3] += 1000
    assert inspect(wrap(net.to(dtype), selfcheck=False)).failed == []
    for block in net.model.language_model.layers:
        block.self_attn.o_proj.register_forward_hook(lambda _m, _a, out: out.clone())
        plain = block.mlp.forward
        block.mlp.forward = lambda value, plain=plain: 4.5 * plain(value)
    names = {check.site for check in inspect(wrap(net, selfcheck=False)).failed}
    assert {"text.0.mlp_out", "text.1.mlp_out"} <= names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_added_beside_the_sites_is_found(dtype: torch.dtype) -> None:
    net = llava_with("granite", **{**GRANITE, "embedding_multiplier": 1.0})
    with torch.no_grad():
        net.model.language_model.embed_tokens.weight[:, 3] += 1000
    model = wrap(net.to(dtype), selfcheck=False)
    assert inspect(model).failed == []
    for block in net.model.language_model.layers:
        own = block.forward
        # The block adds 1 / 0.22 of what its sites say.
        block.forward = lambda hidden_states, own=own, **more: (
            hidden_states + (own(hidden_states, **more) - hidden_states) / 0.22
        )
    assert "text.0.resid_post" in {check.site for check in inspect(model).failed}


def test_attention_that_is_not_the_registered_one_is_named() -> None:
    """As in Q-Formers of older transformers: patterns that no function of ours sees."""
    net = zoo.build("llava")
    attention = net.model.language_model.layers[1].self_attn
    given = torch.zeros(1)

    def forward(hidden_states: Tensor, **_kwargs: Any) -> tuple[Tensor, None]:
        z = attention.v_proj(attention.q_proj(hidden_states)[..., :32])
        attention.k_proj(hidden_states)
        return attention.o_proj(torch.cat([z, z], -1)) + given, None

    attention.forward = forward
    with pytest.raises(ModelError, match=r"text\.1\.\w+ has no effect when written"):
        wrap(net)


def test_a_tower_of_many_patches_is_checked_in_three_forwards() -> None:
    config = hf.LlavaConfig(
        vision_config=vision_config("clip_vision_model", image_size=37 * 6),
        text_config=text_config(max_position_embeddings=2048),
        image_token_index=zoo.IMAGE,
        vision_feature_layer=-2,
    )
    net = randomised(hf.LlavaForConditionalGeneration, config)
    model = wrap(net, selfcheck=False)
    rows: list[int] = []

    def note(_module: Any, _args: Any, kwargs: Any) -> None:
        rows.append(len(kwargs["input_ids"]))

    net.register_forward_pre_hook(note, with_kwargs=True)
    start = time.process_time()
    assert inspect(model, synthetic_inputs(model)).failed == []
    assert rows == [5, 1, 1]
    assert time.process_time() - start < 60
