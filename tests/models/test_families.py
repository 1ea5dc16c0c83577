"""What every registered family must prove, on a tiny model: reads, writes, batches, generation."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.models.families import FAMILIES, family_of
from lvlm_interp.models.identities import Passage, block_errors, final_errors
from lvlm_interp.models.inputs.sample import synthetic_inputs
from lvlm_interp.models.loading import wrap
from lvlm_interp.models.selfcheck import inspect, self_check
from lvlm_interp.sites import Site
from tests.models import processors, zoo

NAMES = list(zoo.BUILDERS)
EXACT = {"atol": 1e-5, "rtol": 1e-5}
QUESTION = "is there a dog in the image?"

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

_models: dict[str, Any] = {}


def model_of(name: str) -> Any:
    if name not in _models:
        _models[name] = wrap(zoo.build(name), processors.build(name))
    return _models[name]


def picture(size: tuple[int, int] = (24, 24), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def inputs_of(name: str) -> Any:
    return model_of(name).prepare([(picture(), QUESTION)])


def test_the_fourteen_are_registered_and_have_a_processor() -> None:
    assert {family.name for family in FAMILIES} >= set(zoo.BUILDERS) == set(processors.BUILDERS)
    assert len({kind for family in FAMILIES for kind in family.model_types}) == len(FAMILIES)


# -- 1. reads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_a_block_is_the_sum_of_its_terms(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    _, cache = model.run_with_cache(inputs, "*")
    blocks = {(site.tower, site.layer) for site in cache.sites if site.layer is not None}
    assert {tower for tower, _ in blocks} == set(model.towers)
    for tower, layer in blocks:
        seen = {
            site.name: Passage(cache[site], cache[site])
            for site in cache.sites
            if (site.tower, site.layer) == (tower, layer)
        }
        errors = block_errors(model, Site(tower, layer, "resid_pre"), seen)
        assert {"resid_mid", "resid_post", "mlp_out"} <= set(errors)
        assert max(errors.values()) <= 1e-5, errors
    assert final_errors(model, cache["text.final_norm"], cache["logits"]) <= 1e-6


@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_last_residual_through_norm_and_unembedding_gives_the_logits(name: str) -> None:
    model = model_of(name)
    last = f"text.{model.n_layers - 1}.resid_post"
    logits, cache = model.run_with_cache(inputs_of(name), last)
    with torch.no_grad():
        expected = model.hf.get_output_embeddings()(model.unembed.norm(cache[last]))
    torch.testing.assert_close(logits, expected, **EXACT)


@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_the_stream_agrees_with_the_hidden_states_of_transformers(name: str) -> None:
    """An oracle that shares no code with the taps."""
    model, inputs = model_of(name), inputs_of(name)
    _, cache = model.run_with_cache(inputs, ["text.*.resid_pre", "text.*"])
    out = model.hf(**inputs.tensors, use_cache=False, output_hidden_states=True)
    if "language_model_outputs" in out:
        out = out.language_model_outputs
    for layer in range(model.n_layers):
        expected = out.hidden_states[layer].detach().clone()
        if layer and (added := f"text.{layer - 1}.deepstack") in cache:
            # transformers records a block's output before deepstack features are added to it.
            expected += cache[added]
        torch.testing.assert_close(cache[f"text.{layer}.resid_pre"], expected, **EXACT)


@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_reading_changes_nothing(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    bare = model.hf(**inputs.tensors, use_cache=False).logits.detach()
    torch.testing.assert_close(model(inputs), bare, **EXACT)
    torch.testing.assert_close(model.run_with_cache(inputs, "*")[0], bare, **EXACT)
    torch.testing.assert_close(model(inputs), bare, **EXACT)
    assert not _ours(model.hf)
    with model.edit({"text.0.z": torch.clone}):
        assert len(_ours(model.hf)) > 0


# -- 2. writes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_the_self_check_passes_and_leaves_nothing_behind(name: str) -> None:
    model = model_of(name)
    before = {key: value.clone() for key, value in model.hf.state_dict().items()}
    attention = [config._attn_implementation for config in _configs(model.hf)]
    state = torch.get_rng_state()
    report = self_check(model)
    assert {check.site for check in report.checks} == {str(site) for site in model.sites()}
    assert report.rows <= 30
    assert all(torch.equal(value, before[key]) for key, value in model.hf.state_dict().items())
    assert [config._attn_implementation for config in _configs(model.hf)] == attention
    assert torch.equal(torch.get_rng_state(), state)
    assert not _ours(model.hf)


@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_writing_the_value_already_there_changes_nothing(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    clean = model(inputs)
    with model.edit({"*": lambda value: value.clone()}):
        torch.testing.assert_close(model(inputs), clean, **EXACT)


def _stream_edit(value: Tensor) -> Tensor:
    ramp = torch.linspace(-1, 1, value.shape[-1])
    return value + 0.3 * ramp


def _by_hand(name: str, hf: Any, path: str, where: str, change: Callable) -> Any:
    """The same edit on the raw module, with a forward of its own in place of hooks."""
    module = hf.get_submodule(path)
    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if where == "input":
            if args:
                args = (change(args[0]), *args[1:])
            else:
                kwargs["hidden_states"] = change(kwargs["hidden_states"])
            return plain(*args, **kwargs)
        out = plain(*args, **kwargs)
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    module.forward = forward
    return hf


PATHS = {
    "vision": {
        "llava": "model.vision_tower.encoder.layers.1",
        "llava_next": "model.vision_tower.encoder.layers.1",
        "llava_onevision": "model.vision_tower.encoder.layers.1",
        "qwen2_vl": "model.visual.blocks.1",
        "qwen2_5_vl": "model.visual.blocks.1",
        "qwen3_vl": "model.visual.blocks.1",
        "idefics3": "model.vision_model.encoder.layers.1",
        "smolvlm": "model.vision_model.encoder.layers.1",
        "paligemma": "model.vision_tower.encoder.layers.1",
        "gemma3": "model.vision_tower.encoder.layers.1",
        "internvl": "model.vision_tower.encoder.layer.1",
        "mllama": "model.vision_model.transformer.layers.1",
        "blip_2": "vision_model.encoder.layers.1",
        "instructblip": "vision_model.encoder.layers.1",
    },
    "text": {
        **{name: "model.language_model.layers.1" for name in NAMES},
        "idefics3": "model.text_model.layers.1",
        "smolvlm": "model.text_model.layers.1",
        "blip_2": "language_model.model.decoder.layers.1",
        "instructblip": "language_model.model.decoder.layers.1",
    },
}
"""Written out from the architectures' sources, not taken from the families under test."""


@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_a_stream_edit_is_the_raw_modules_edit(name: str, tower: str, site: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    raw = deepcopy(model.hf)
    where = "input" if site == "resid_pre" else "output"
    _by_hand(name, raw, PATHS[tower][name], where, _stream_edit)
    expected = raw(**inputs.tensors, use_cache=False).logits.detach()
    with model.edit({f"{tower}.1.{site}": _stream_edit}):
        edited = model(inputs)
    torch.testing.assert_close(edited, expected, **EXACT)
    assert (edited - model(inputs)).abs().max() > 1e-4


ZEROED = {
    "text.0.attn_out": ("self_attn.o_proj", "self_attn.out_proj"),
    "text.0.mlp_out": ("mlp.down_proj", "fc2"),
    "vision.0.attn_out": (
        "self_attn.out_proj",
        "self_attn.projection",
        "self_attn.o_proj",
        "attn.proj",
        "attention.projection_layer",
    ),
    "vision.0.mlp_out": ("mlp.fc2", "mlp.down_proj", "mlp.linear_fc2"),
}


@pytest.mark.parametrize("site", list(ZEROED))
@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_ablating_a_branch_is_the_model_without_its_output_weights(name: str, site: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    raw = deepcopy(model.hf)
    block = raw.get_submodule(
        PATHS[site.split(".")[0]][name].replace("s.1", "s.0").replace("r.1", "r.0")
    )
    path = next(each for each in ZEROED[site] if _has(block, each))
    with torch.no_grad():
        for parameter in block.get_submodule(path).parameters():
            parameter.zero_()
    expected = raw(**inputs.tensors, use_cache=False).logits.detach()
    with model.edit({site: torch.zeros_like}):
        torch.testing.assert_close(model(inputs), expected, **EXACT)


@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_heads_are_cut_where_the_weights_are(name: str, tower: str) -> None:
    """Zeroing z of one head is the output projection without that head's columns."""
    model, inputs = model_of(name), inputs_of(name)
    raw = deepcopy(model.hf)
    block = raw.get_submodule(PATHS[tower][name].replace("s.1", "s.0").replace("r.1", "r.0"))
    names = ZEROED[f"{tower}.0.attn_out"]
    module = block.get_submodule(next(each for each in names if _has(block, each)))
    size, head = model.towers[tower], 1
    with torch.no_grad():
        module.weight[:, head * size.d_head : (head + 1) * size.d_head] = 0
    expected = raw(**inputs.tensors, use_cache=False).logits.detach()

    def cut(z: Tensor) -> Tensor:
        z = z.clone()
        z[..., head, :] = 0
        return z

    with model.edit({f"{tower}.0.z": cut}):
        edited = model(inputs)
    torch.testing.assert_close(edited, expected, **EXACT)
    assert (edited - model(inputs)).abs().max() > 1e-6


def _without_first(value: Tensor) -> Tensor:
    new = value.clone()
    new[:, 0] = new[:, 0] * 0.5 - 0.1
    return new


@pytest.mark.parametrize("part", ["q", "k", "v"])
@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_projections_are_before_rotation_and_norms(name: str, part: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    raw = deepcopy(model.hf)
    path = PATHS["text"][name].replace("s.1", "s.0") + f".self_attn.{part}_proj"
    size = model.towers["text"]
    n = size.n_heads if part == "q" else size.n_kv_heads

    def by_head(value: Tensor) -> Tensor:
        return _change(value.unflatten(-1, (n, size.d_head))).flatten(-2)

    def _change(value: Tensor) -> Tensor:
        new = value.clone()
        new[..., 0, :] = new[..., 0, :].flip(-1) + 0.2
        return new

    _by_hand(name, raw, path, "output", by_head)
    expected = raw(**inputs.tensors, use_cache=False).logits.detach()
    with model.edit({f"text.0.{part}": _change}):
        torch.testing.assert_close(model(inputs), expected, **EXACT)


@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_pattern_and_scores_edits_agree_with_z(name: str, tower: str) -> None:
    """A knocked-out edge: by scores, by pattern, and by hand through z."""
    model, inputs = model_of(name), inputs_of(name)
    _, cache = model.run_with_cache(inputs, [f"{tower}.0.{p}" for p in ("pattern", "scores", "v")])
    open_ = cache[f"{tower}.0.pattern"] > 0
    key = int(open_.float().mean((0, 1, 2)).argmax())

    def by_scores(scores: Tensor) -> Tensor:
        new = scores.clone()
        new[:, 0, -1, key] = torch.finfo(scores.dtype).min
        return new

    def pattern_of(scores: Tensor) -> Tensor:
        return torch.softmax(by_scores(scores), -1)

    pattern = pattern_of(cache[f"{tower}.0.scores"])
    assert (pattern[:, 0, -1, key] == 0).all()
    v = cache[f"{tower}.0.v"].repeat_interleave(
        pattern.shape[1] // cache[f"{tower}.0.v"].shape[2], 2
    )
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
    results = []
    for site, edit in (
        ("scores", by_scores),
        ("pattern", lambda _: pattern),
        ("z", lambda old: z.reshape(old.shape)),
    ):
        with model.edit({f"{tower}.0.{site}": edit}):
            results.append(model(inputs))
    torch.testing.assert_close(results[0], results[1], **EXACT)
    torch.testing.assert_close(results[0], results[2], **EXACT)
    if int(open_[:, 0, -1].sum()) > open_.shape[0]:
        assert (results[0] - model(inputs)).abs().max() > 0


# -- 4. batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_rows_of_unlike_length_and_size_give_what_single_runs_give(name: str) -> None:
    model = model_of(name)
    rows = [(picture((48, 48)), QUESTION + " the cat is red"), (picture((24, 48), 1), "the dog")]
    both = model.prepare(rows)
    sites = "text.*.resid_post"
    logits, cache = model.run_with_cache(both, sites)
    for index, row in enumerate(rows):
        one = model.prepare([row])
        alone, single = model.run_with_cache(one, sites)
        real = both.tokens[index].real
        torch.testing.assert_close(logits[index, real], alone[0, one.tokens[0].real], **EXACT)
        for site in single:
            torch.testing.assert_close(
                cache[site][index, real], single[site][0, one.tokens[0].real], **EXACT
            )
    torch.testing.assert_close(
        model.last_logits(both), torch.stack([logits[i, t.last] for i, t in enumerate(both.tokens)])
    )


# -- 5. generation -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_generation_is_that_of_transformers_and_edits_hold_in_every_step(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    expected = model.hf.generate(**inputs.tensors, **options)
    new = expected[:, inputs["input_ids"].shape[1] :]
    assert model.generate(inputs, max_new_tokens=5, eos_token_id=None) == (
        model.tokenizer.batch_decode(new, skip_special_tokens=True)
    )
    lengths: list[int] = []

    def towards(value: Tensor) -> Tensor:
        lengths.append(value.shape[1])
        return torch.ones_like(value)

    # With a constant final residual every step must predict the same token.
    last = f"text.{model.n_layers - 1}.resid_post"
    with model.edit({last: torch.ones_like}):
        constant = model.last_logits(inputs).argmax(-1)
    raw = wrap(model.hf)
    ids = raw.generate(inputs, edits={last: towards}, max_new_tokens=4, eos_token_id=None)
    assert lengths == [inputs["input_ids"].shape[1], 1, 1, 1]
    assert (ids == constant).all()


# -- 6. image-bound ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_what_an_image_needs_is_asked_for_before_a_forward(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name)
    for missing in model.family.needs:
        tensors = {key: value for key, value in inputs.items() if key != missing}
        with pytest.raises(InputError, match=missing), _no_forward(model):
            model(tensors)
    text = inputs["input_ids"].clone()
    image = getattr(model.config, model.family.image_token)
    text[text == image] = 20
    with pytest.raises(InputError, match="placeholder"), _no_forward(model):
        model({**inputs, "input_ids": text})
    fewer = inputs["input_ids"].clone()
    fewer[0, int((fewer[0] == image).nonzero()[0])] = 20
    with pytest.raises(InputError, match="placeholder"), _no_forward(model):
        model({**inputs, "input_ids": fewer})


class _no_forward:
    def __init__(self, model: Any) -> None:
        self.handle = model.hf.register_forward_pre_hook(self._fail)

    def _fail(self, *_: Any) -> None:
        raise AssertionError("a forward ran")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        self.handle.remove()


# -- wrapping, dtypes, refusals --------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.tiered(NAMES))
def test_without_a_processor_a_mapping_is_enough(name: str) -> None:
    model = wrap(zoo.build(name))
    inputs = synthetic_inputs(model)
    logits, cache = model.run_with_cache(dict(inputs), "text.*.z")
    torch.testing.assert_close(logits, model.hf(**inputs, use_cache=False).logits.detach(), **EXACT)
    assert len(cache) > 0
    with model.edit({"text.0.mlp_out": torch.zeros_like}):
        assert (model(dict(inputs)) - logits).abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", zoo.tiered(NAMES, ("llava", "mllama")))
def test_half_precision_loads_caches_and_passes_the_self_check(name: str, dtype: Any) -> None:
    model = wrap(zoo.build(name).to(dtype))
    assert not inspect(model).failed
    _, cache = model.run_with_cache(synthetic_inputs(model), "text.*.resid_post")
    _, exact = model_of(name).run_with_cache(
        synthetic_inputs(wrap(model_of(name).hf)), "text.*.resid_post"
    )
    tolerance = 0.1 if dtype == torch.bfloat16 else 0.02
    for site in exact:
        assert cache[site].dtype == dtype
        gap = (cache[site].float() - exact[site]).norm() / exact[site].norm()
        assert gap < tolerance


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_callers_attention_is_restored_exactly(implementation: str) -> None:
    hf = zoo.build("qwen2_5_vl")
    hf.set_attn_implementation(implementation)
    hf.model.visual.config._attn_implementation_internal = "eager"
    before = [config._attn_implementation for config in _configs(hf)]
    model = wrap(hf)
    inputs = synthetic_inputs(model)
    with pytest.raises(ZeroDivisionError), model.edit({"*.pattern": lambda _: 1 / 0}):
        model(inputs)
    assert [config._attn_implementation for config in _configs(hf)] == before


def test_an_encoder_decoder_language_model_is_refused() -> None:
    config = deepcopy(zoo.build("blip_2").config)
    config.text_config.model_type, config.text_config.is_encoder_decoder = "t5", True
    with pytest.raises(ModelError, match="encoder-decoder"):
        family_of(config)


def _configs(hf: Any) -> list[Any]:
    return [module.config for module in hf.modules() if hasattr(module, "config")]


def _ours(hf: nn.Module) -> list[Any]:
    """Hooks of this package on a model (transformers and accelerate install their own)."""
    return [
        hook
        for module in hf.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if hook.__module__.startswith("lvlm_interp")
    ]


def _has(block: nn.Module, path: str) -> bool:
    try:
        block.get_submodule(path)
    except AttributeError:
        return False
    return True
