"""Every method at the sites of every tower, with several pairs at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lvlm_interp.errors import UsageError
from lvlm_interp.models.loading import wrap
from lvlm_interp.patching import (
    ablate,
    activation_patch,
    attention_knockout,
    attribution_patch,
    path_patch,
)
from tests.models import processors, zoo
from tests.patching.conftest import make_pairs, told_apart

NAMES = list(zoo.BUILDERS)
FAST = ("llava_next", "qwen2_5_vl", "mllama", "blip_2")
"""Tiles, windows on a flat axis, cross-attention, and a Q-Former with OPT behind it."""
QUIET = {"progress": False}
STEP = 5e-3
"""Of central differences: norms and rotary angles are in single precision in every model."""
SMALL = 2e-4
"""Where the language model has kinks (ReLU of OPT) and nothing is in single precision."""

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

_models: dict[Any, Any] = {}


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    if (name, dtype) not in _models:
        net = zoo.build(name).to(dtype)
        _models[name, dtype] = wrap(net, processors.build(name), selfcheck=False)
    return _models[name, dtype]


def both_of(model: Any, pairs: Any) -> Any:
    sides = ("clean", "corrupt")
    return tuple(model.prepare([getattr(pair, side) for pair in pairs]) for side in sides)


def some_sites(model: Any) -> list[str]:
    """One of each kind outside of the language model, and what is special inside of it."""
    wanted = ["vision.1.resid_pre", "vision.1.resid_mid", "vision.0.z", "vision.0.v"]
    wanted += ["vision.1.pattern", "vision.1.scores", "vision.0.mlp_hidden", "projector.out"]
    wanted += ["qformer.0.resid_mid", "qformer.0.cross_v", "qformer.1.z", "text.0.resid_mid"]
    wanted += ["text.0.deepstack", "text.1.cross_k", "text.1.cross_v", "text.1.cross_z"]
    declared = {str(site) for site in model.sites()}
    return [site for site in wanted if site in declared]


@pytest.mark.parametrize("name", zoo.tiered(NAMES, FAST))
def test_attribution_is_the_central_difference(name: str) -> None:
    """Of three pairs at once, each against a finite step of its own row towards the clean run."""
    model = model_of(name, torch.float64)
    pairs = told_apart(model, make_pairs(3))
    clean, corrupt = both_of(model, pairs)
    answer, foil = model.answer_id("yes"), model.answer_id("no")
    sites, size = some_sites(model), SMALL if "blip" in name else STEP
    found = attribution_patch(model, pairs, sites, "all", heads="all", **QUIET).table.frame
    with model.record(sites) as source:
        model.last_logits(clean)
    for site in sites:
        tower, name_of = site.split(".")[0], site.split(".")[-1]
        rows = found[(found.tower == tower) & (found.site == name_of)]
        layer = site.split(".")[1]
        estimate = (rows if layer == "out" else rows[rows.layer == int(layer)]).value.to_numpy()

        def at(step: float, site: str = site) -> np.ndarray:
            towards = source[site]
            with model.edit({site: lambda value: value + step * (towards - value)}):
                logits = model.last_logits(corrupt)
            return (logits[:, answer] - logits[:, foil]).numpy()

        if name_of == "scores":  # masked scores are the smallest number in both runs
            assert np.isfinite(estimate).all()
        expected = (at(size) - at(-size)) / (2 * size)
        np.testing.assert_allclose(estimate, expected, atol=3e-4, rtol=0.03, err_msg=site)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", zoo.tiered(NAMES, FAST))
def test_pairs_together_are_pairs_by_themselves(name: str, dtype: torch.dtype) -> None:
    model = model_of(name, dtype)
    pairs = told_apart(model, make_pairs(3))
    loose = {"atol": 0.06} if dtype == torch.bfloat16 else {"atol": 2e-5}
    for site in ("vision.0.z", "vision.1.pattern", "projector.out"):
        options = {"positions": ["all", "3"], **QUIET}
        together = activation_patch(model, pairs, site, **options).table.frame
        alone = activation_patch(model, pairs, site, batch_size=1, **options).table.frame
        keys = ["pair", "head", "position"]
        joined = together.merge(alone, on=keys, suffixes=("", "_alone"))
        assert len(joined) == len(together) == len(alone)
        np.testing.assert_allclose(joined.m_patched, joined.m_patched_alone, rtol=0, **loose)
        if site == "projector.out" and dtype == torch.float32 and name != "qwen3_vl":
            whole = together[together.position == "all"]
            np.testing.assert_allclose(whole.m_patched, whole.m_clean, atol=2e-5)


@pytest.mark.parametrize("mode", ["zero", "mean", "resample"])
@pytest.mark.parametrize("name", zoo.tiered(NAMES, ("llava_next", "qwen2_5_vl")))
def test_ablation_reaches_every_tower(name: str, mode: Any) -> None:
    model = model_of(name)
    pairs = told_apart(model, make_pairs(3))
    table = ablate(model, pairs, ["vision.0.z", "projector.out"], "all", mode=mode, **QUIET).table
    assert table.frame.groupby("site").value.apply(lambda effect: effect.abs().max() > 1e-6).all()


def test_each_position_of_a_tile_is_one_position() -> None:
    """The effects of all positions in turn sum to AtP of all of them at once."""
    model = model_of("llava_next", torch.float64)
    pairs = told_apart(model, make_pairs(2))
    every, whole = (
        attribution_patch(model, pairs, "projector.out", at, **QUIET).table.frame
        for at in ("each", "all")
    )
    assert every.position.nunique() == 48
    np.testing.assert_allclose(
        every.groupby("pair").value.sum(), whole.set_index("pair").value, rtol=1e-9
    )


def test_a_cut_gradient_is_refused() -> None:
    model = model_of("llava")
    pairs = told_apart(model, make_pairs(1))
    with model.edit({"projector.out": torch.Tensor.detach}):
        with pytest.raises(UsageError, match=r"no gradient at vision\.1\.resid_mid"):
            attribution_patch(model, pairs, "vision.1.resid_mid", **QUIET)


def test_what_deepstack_adds_is_patched_in_a_full_run() -> None:
    model = model_of("qwen3_vl")
    pairs = told_apart(model, make_pairs(2))
    frame = activation_patch(model, pairs, "text.0.deepstack", "all", **QUIET).table.frame
    _, clean = model.run_with_cache(model.prepare([p.clean for p in pairs]), "text.0.deepstack")
    with model.edit({"text.0.deepstack": lambda _: clean["text.0.deepstack"]}):
        logits = model.last_logits(model.prepare([p.corrupt for p in pairs]))
    expected = logits[:, model.answer_id("yes")] - logits[:, model.answer_id("no")]
    assert set(frame.path) == {"full"}
    np.testing.assert_allclose(frame.m_patched, expected, atol=1e-5)
    assert (frame.m_patched - frame.m_corrupt).abs().min() > 1e-4


def test_knockout_of_a_model_that_reads_the_image_across() -> None:
    model = model_of("mllama")
    pairs = told_apart(model, make_pairs(2))
    edges = [("question", "last"), ("image_all", "last")]
    frame = attention_knockout(model, pairs, edges, renormalise=False, **QUIET).table.frame
    effect = (frame.m_knocked_out - frame.m).abs()
    hit = effect.groupby([frame.position, frame.layer]).max() > 1e-6
    assert hit["question->last"].tolist() == [True, False, True]
    assert hit["image_all->last"].tolist() == [False, True, False]
    inputs = model.prepare([p.clean for p in pairs])
    last = torch.arange(2), inputs.last

    def silent(z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        z[last] = 0
        return z

    with model.edit({"text.1.cross_z": silent}):
        logits = model.last_logits(inputs)
    expected = logits[:, model.answer_id("yes")] - logits[:, model.answer_id("no")]
    mine = frame[(frame.position == "image_all->last") & (frame.layer == 1)]
    np.testing.assert_allclose(mine.m_knocked_out, expected, atol=1e-5)


def test_graddrop_closes_cross_attention_too() -> None:
    model = model_of("mllama", torch.float64)
    pairs = told_apart(model, make_pairs(2))
    options = {"positions": "all", **QUIET}
    frame = attribution_patch(model, pairs, "projector.out", graddrop=True, **options).table.frame
    clean, corrupt = both_of(model, pairs)
    with model.record("projector.out") as source:
        model.last_logits(clean)
    expected = []
    for layer in range(3):  # each layer's branches held at what the corrupt run gives
        names = [f"text.{layer}.{name}" for name in ("attn_out", "cross_attn_out", "mlp_out")]
        held = [site for site in model.sites(f"text.{layer}.*") if str(site) in names]
        _, kept = model.run_with_cache(corrupt, held)

        def at(step: float, kept: Any = kept) -> Any:
            towards = source["projector.out"]
            edits: dict[Any, Any] = {site: (lambda _, v=kept[site]: v) for site in kept.sites}
            edits["projector.out"] = lambda value: value + step * (towards - value)
            with model.edit(edits):
                logits = model.last_logits(corrupt)
            return (logits[:, model.answer_id("yes")] - logits[:, model.answer_id("no")]).numpy()

        expected.append(np.abs(at(STEP) - at(-STEP)) / (2 * STEP))
    assert np.abs(expected[1]).max() < 1e-9  # the image enters by one block
    np.testing.assert_allclose(frame.value, np.sum(expected, 0) / 2, rtol=0.05)


def test_path_patching_holds_what_cross_attention_gives() -> None:
    """With cross_z held, what a head of layer 0 says reaches the logits around cross-attention."""
    model = model_of("mllama", torch.float64)
    pairs = told_apart(model, make_pairs(2, "is the cat there ?"))
    for pair, other in zip(pairs, make_pairs(2, "is there the cat ?"), strict=True):
        object.__setattr__(pair, "corrupt", other.clean)
    options = {"heads": "all", "freeze_mlps": True, **QUIET}
    frame = path_patch(model, pairs, "text.0.z", "logits", **options).table.frame
    held = [site for site in model.sites("text.*") if site.name in ("z", "cross_z", "mlp_out")]
    clean, corrupt = both_of(model, pairs)
    _, target = model.run_with_cache(corrupt, held)
    _, source = model.run_with_cache(clean, "text.0.z")
    edits = {site: (lambda _, kept=target[site]: kept) for site in held}
    edits[held[0]] = lambda _: source["text.0.z"]
    with model.edit(edits):
        logits = model.last_logits(corrupt)
    expected = logits[:, model.answer_id("yes")] - logits[:, model.answer_id("no")]
    np.testing.assert_allclose(frame.m_patched, expected, rtol=1e-6)
