"""What modules are asked, against what passed in the run itself: every family, as users hold it."""

import pytest
import torch
from torch import nn

from lvlm_interp.errors import ModelError
from lvlm_interp.models.inputs.sample import synthetic_inputs
from lvlm_interp.models.loading import wrap
from lvlm_interp.models.maps import BlockMaps, FrozenNorm, Tail, affine_of
from lvlm_interp.sites import Site
from tests.models import adapters, zoo

BOUND = {"fp32": 2e-6, "bf16": 2e-2}
HELD = [("fp32", "plain"), ("bf16", "plain"), ("fp32", "doubled")]


def off(value, expected):
    value, expected = value.detach().float(), expected.detach().float()
    return float((value - expected).abs().max() / expected.abs().max().clamp_min(1e-6))


@pytest.fixture(params=[f"{dtype} {kind}" for dtype, kind in HELD])
def held(request):
    return request.param.split()


@pytest.mark.parametrize("name", zoo.tiered(zoo.BUILDERS))
def test_every_block_writes_and_reads_what_passed_in_the_run(name, held):
    dtype, kind = held
    model = wrap(adapters.build(name, dtype, kind))
    logits, cache = model.run_with_cache(synthetic_inputs(model), "*")
    assert off(model.unembed(cache[Site("text", model.n_layers - 1, "resid_post")]), logits) < 1e-6
    for tower, size in model.towers.items():
        for layer in range(size.n_layers):
            seen = {s.name: cache[s] for s in cache.sites if (s.tower, s.layer) == (tower, layer)}
            check_block(BlockMaps(model, tower, layer), seen, BOUND[dtype])


def check_block(maps, seen, bound):
    prefix = "cross_" if maps.crossed else ""
    written = maps.writes(seen[prefix + "z"])
    assert off(written.heads.sum(0) + written.rest, seen[prefix + "attn_out"]) < bound
    assert off(written.shared.sum(0), seen[prefix + "attn_out"]) < bound
    if not (maps.crossed and maps.tower == "text"):  # Mllama masks rows without an image
        assert off(maps.mlp_writes(seen["resid_mid"]), seen["mlp_out"]) < bound
    stream = seen["resid_pre"][..., None, :]
    for part in "q" if maps.crossed else "qkv":
        count = maps.n_heads if part == "q" else maps.n_kv_heads
        expected = seen[prefix + part]
        got = maps.reads(part, stream.expand(*stream.shape[:-2], count, -1))
        assert off(got, expected) < bound, part


def test_one_head_alone_is_the_module_on_that_head(held):
    """The output projection of a vector in which every other head is zero."""
    dtype, kind = held
    model = wrap(adapters.build("llava", dtype, kind))
    z = torch.randn(2, 5, 4, 8, dtype=model.dtype)
    written = BlockMaps(model, "text", 1).writes(z)
    module = model.tap("text.1.z").module
    for head in range(4):
        alone = torch.zeros_like(z)
        alone[:, :, head] = z[:, :, head]
        assert off(written.heads[head], module(alone.flatten(2))) < BOUND[dtype]


def test_a_head_of_the_stream_alone_changes_only_that_head(held):
    dtype, kind = held
    model = wrap(adapters.build("qwen3_vl", dtype, kind))
    maps = BlockMaps(model, "text", 1)
    streams = torch.randn(1, 3, 2, 32, dtype=model.dtype)
    before = maps.reads("v", streams)
    streams[:, :, 1] += 1
    after = maps.reads("v", streams)
    assert torch.equal(before[:, :, 0], after[:, :, 0])
    assert not torch.allclose(before[:, :, 1], after[:, :, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_large_bias_does_not_round_the_weight_away(dtype):
    layer = nn.Linear(7, 5).to(dtype)
    with torch.no_grad():
        layer.bias.fill_(100.0)
    found = affine_of(layer, torch.zeros(2, 7, dtype=dtype))
    scale = torch.finfo(dtype).eps * float(layer.weight.detach().abs().max())
    torch.testing.assert_close(found.weight, layer.weight.detach().float(), atol=scale, rtol=0)
    torch.testing.assert_close(found.bias, layer.bias.detach().float())


class Shifted(nn.Module):
    """Gemma's RMS norm: the weight is stored without the 1."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width) * 0.3)

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)
        return (y * (1 + self.weight.float())).to(x.dtype)


@pytest.mark.parametrize("width", [8, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [nn.LayerNorm, nn.RMSNorm, Shifted])
def test_a_frozen_norm_is_linear_and_the_norm_itself_at_its_stream(make, dtype, width):
    torch.manual_seed(0)
    norm = make(width)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    norm, stream = norm.to(dtype), (torch.randn(4, width) * 3 + 1).to(dtype)
    frozen, out = FrozenNorm(norm, stream), norm(stream).float()
    assert frozen.centred == (make is nn.LayerNorm)
    bound = 4 * torch.finfo(dtype).eps
    assert off(frozen(stream) + frozen.bias, out) < max(bound, 1e-5)
    one, two = torch.randn(2, 4, width)
    torch.testing.assert_close(frozen(one) + frozen(two), frozen(one + two), atol=1e-5, rtol=1e-5)


def test_what_is_no_norm_is_refused():
    with pytest.raises(ModelError, match="neither a layer norm nor an RMS norm"):
        FrozenNorm(nn.Tanh(), torch.randn(3, 8))


def behind(net, change):
    """A model that changes its logits behind its head, as some architectures do."""
    own = net.forward

    def forward(*args, **kwargs):
        out = own(*args, **kwargs)
        out.logits = change(out.logits)
        return out

    net.forward = forward
    return net


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("change", "tail"),
    [
        (lambda x: x, Tail()),
        (lambda x: x / 13, Tail(1 / 13)),
        (lambda x: torch.tanh(x / 5) * 5, Tail(1.0, 5.0)),
        (lambda x: torch.tanh(x * 0.25 / 30) * 30, Tail(0.25, 30.0)),
    ],
)
def test_what_follows_the_head_is_measured(change, tail, dtype):
    model = wrap(behind(adapters.build("llava", dtype), change))
    assert model.unembed.tail.scale == pytest.approx(tail.scale, rel=1e-3)
    assert (model.unembed.tail.cap or 0) == pytest.approx(tail.cap or 0, rel=1e-3)
    with model.record("text.1.resid_post") as cache:
        logits = model(synthetic_inputs(model))
    assert off(model.unembed(cache["text.1.resid_post"]), logits) < BOUND[dtype]


def test_a_cap_that_the_configuration_names_and_the_model_does_not_use_is_not_applied():
    net = zoo.build("gemma3")
    net.config.text_config.final_logit_softcapping = 1.0
    model = wrap(net)
    with model.record("text.1.resid_post") as cache:
        logits = model(synthetic_inputs(model))
    assert off(model.unembed(cache["text.1.resid_post"]), logits) < 1e-6


def test_a_tail_that_is_neither_is_refused():
    model = wrap(behind(zoo.build("llava"), lambda x: x.square()))
    with pytest.raises(ModelError, match="neither a scale nor a soft cap"):
        model.unembed(torch.zeros(1, 32))


def test_maps_pass_by_the_edits_that_are_open():
    """An edit is for runs; what a module is asked is not a run, of another length at that."""
    model = wrap(zoo.build("llava"))
    stream = torch.randn(2, 32)
    plain = model.unembed(stream)
    other = wrap(zoo.build("llava"))
    with other.edit({"*.0.resid_pre": lambda v: v[:, :1] / 0, "logits": lambda v: v * 0}):
        assert torch.equal(other.unembed(stream), plain)


@pytest.mark.parametrize("kind", ["plain", "doubled"])
def test_the_direction_of_two_words_is_the_difference_of_their_logits(kind):
    model = wrap(adapters.build("llava", "fp32", kind))
    answer, foil = torch.tensor([10, 20]), torch.tensor([11, 30])
    slope, offset = model.unembed.direction(answer, foil)
    hidden = torch.randn(2, 32)
    logits, rows = model.unembed.head(hidden), torch.arange(2)
    expected = logits[rows, answer] - logits[rows, foil]
    torch.testing.assert_close((slope * hidden).sum(-1) + offset, expected, atol=1e-5, rtol=1e-5)


def test_weights_that_live_elsewhere_are_asked_where_they_are():
    """Offloaded: every weight is on no device between the calls of its module."""
    accelerate = pytest.importorskip("accelerate")
    inputs = synthetic_inputs(wrap(zoo.build("llava")))
    _, cache = wrap(zoo.build("llava")).run_with_cache(inputs, ["text.1.z", "text.1.attn_out"])
    net = zoo.build("llava")
    accelerate.cpu_offload(net, execution_device="cpu")
    assert next(net.model.language_model.layers[1].parameters()).is_meta
    written = BlockMaps(wrap(net), "text", 1).writes(cache["text.1.z"])
    assert off(written.heads.sum(0) + written.rest, cache["text.1.attn_out"]) < 2e-6


def test_what_is_opened_among_the_silenced_leaves_them_as_they_were():
    model, seen = wrap(zoo.build("llava")), []
    inputs = synthetic_inputs(model)
    with model.edit({"text.0.z": lambda v: v * 0, "text.1.pattern": lambda v: v * 0}):
        edited = model(inputs)
        with model._board.silenced(), model.edit({"text.0.z": lambda v: seen.append(1) or v}):
            with model.record(["text.1.pattern"]):
                bare = model(inputs)
        assert torch.equal(model(inputs), edited)
    assert seen and off(model(inputs), bare) < 1e-5 and off(edited, bare) > 1e-2
