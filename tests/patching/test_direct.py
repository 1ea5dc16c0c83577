"""Direct logit attribution of models as users hold them: the terms are the model's own."""

import pytest
import torch

from lvlm_interp.lens.readout import head_outputs
from lvlm_interp.models.loading import wrap
from lvlm_interp.patching import direct_logit_attribution
from lvlm_interp.sites import Site
from tests.models import adapters, processors, zoo
from tests.patching.conftest import make_pairs, told_apart

QUIET = {"progress": False}


def held(name, dtype="fp32", kind="plain", n=2):
    model = wrap(adapters.build(name, dtype, kind), processors.build(name))
    return model, told_apart(model, make_pairs(n))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", zoo.tiered(zoo.BUILDERS))
def test_terms_sum_to_the_logit_difference_in_every_family_and_precision(name, dtype):
    model, pairs = held(name, dtype, n=3)
    frame = direct_logit_attribution(model, pairs, **QUIET).table.frame
    summed, m = frame.groupby("pair").value.sum(), frame.groupby("pair").m.first()
    bound = 1e-4 if dtype == "fp32" else 3e-2
    assert float((summed - m).abs().max()) < bound * max(1.0, float(m.abs().max()))
    other = frame[frame.site == "other"].value.abs().max()
    assert other < (1e-4 if dtype == "fp32" else 0.1)


def test_fp16_gives_what_fp32_gives():
    whole, pairs = held("llava")
    half = wrap(zoo.build("llava").half(), processors.build("llava"))
    first, second = (
        direct_logit_attribution(model, pairs, **QUIET).table.frame for model in (whole, half)
    )
    torch.testing.assert_close(
        torch.tensor(second.value.to_numpy()), torch.tensor(first.value.to_numpy()),
        atol=5e-3, rtol=1e-2,
    )  # fmt: skip


def terms(model, pairs):
    frame = direct_logit_attribution(model, pairs, **QUIET).table.frame
    return frame[frame.site != "other"].set_index(["pair", "layer", "site", "head"]).value


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_adapters_give_what_the_merged_model_gives(name):
    net = adapters.build(name, kind="doubled")
    merged = wrap(adapters.undoubled(net), processors.build(name))
    model = wrap(net, processors.build(name))
    pairs = told_apart(model, told_apart(merged, make_pairs(2)))
    assert float((terms(model, pairs) - terms(merged, pairs)).abs().max()) < 1e-5
    plain, _ = held(name)
    assert float((terms(plain, pairs) - terms(merged, pairs)).abs().max()) > 1e-2


def test_lora_gives_what_the_merged_model_gives():
    model = wrap(adapters.lora(zoo.build("llava")).get_base_model(), processors.build("llava"))
    whole = adapters.lora(zoo.build("llava")).merge_and_unload()
    merged, pairs = wrap(whole, processors.build("llava")), make_pairs(2)
    assert float((terms(model, pairs) - terms(merged, pairs)).abs().max()) < 1e-5


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_terms_sum_to_the_model_s_own_logits(bits, tmp_path):
    model = adapters.quantised(tmp_path, bits)
    frame = direct_logit_attribution(model, make_pairs(2), **QUIET).table.frame
    summed, m = frame.groupby("pair").value.sum(), frame.groupby("pair").m.first()
    assert float((summed - m).abs().max()) < 2e-2
    # Kernels round activations too (8 bits), or multiply in half precision: that is no head's.
    assert frame[frame.site == "other"].value.abs().max() < 3e-2


@pytest.mark.parametrize("name", ["llava", "gemma3", "internvl"])
def test_what_heads_write_is_what_the_adapter_adds_too(name):
    model, _ = held(name, kind="doubled")
    site = Site("vision" if name == "internvl" else "text", 1, "z")
    inputs = model.prepare(make_pairs(1)[0].clean)
    _, cache = model.run_with_cache(inputs, [site, Site(site.tower, 1, "attn_out")])
    written = head_outputs(model, site, cache[site][0]).sum(0)
    added = cache[Site(site.tower, 1, "attn_out")][0]
    bias = added - written
    torch.testing.assert_close(bias, bias[:1].expand_as(bias), atol=1e-5, rtol=1e-4)
