"""Every lens on a tiny model of every family, against the model's own forward.

The oracles are the logits, transformers' eager attention, and gradients through it. Families that
have no token grid (query tokens, cross-attention) must say so before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_interp.data.examples import Example
from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.lens import (
    attention_maps,
    compare_lenses,
    internal_confidence,
    localise,
    logit_lens,
    patchscope,
    relevance,
    rollout,
    self_consistency,
    token_ablation,
    train_tuned_lens,
    visual_sinks,
)
from lvlm_interp.lens.readout import decode_ids
from lvlm_interp.models.loading import wrap
from lvlm_interp.plotting.display import show_lens, show_scores
from tests.models import processors, zoo

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FAST = ("llava", "qwen2_vl", "gemma3", "mllama")
ALL = list(zoo.BUILDERS)
QUERIES = ("blip_2", "instructblip")
WITH_TOKENS = [name for name in ALL if name != "mllama"]
WITH_GRID = [name for name in WITH_TOKENS if name not in QUERIES]
NEEDS_IMAGE = ("paligemma", "mllama", *QUERIES)
EXACT = {"atol": 1e-5, "rtol": 1e-4}
QUESTION = "is there a dog in the image?"
BOX = (0, 0, 12, 12)

_models: dict[str, Any] = {}


def model_of(name: str) -> Any:
    if name not in _models:
        _models[name] = wrap(zoo.build(name), processors.build(name))
    return _models[name]


def some(n: int = 2) -> list[Example]:
    made = []
    for seed in range(n):
        pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        made.append(
            Example(
                id=f"e{seed}",
                image=Image.fromarray(pixels),
                prompt=QUESTION,
                group=f"g{seed}",
                boxes={"object": BOX},
                # The tiniest of the tokenizers has pieces for these behind a space.
                answer="the",
                foil="a",
            )
        )
    return made


@contextmanager
def eager(model: Any) -> Iterator[None]:
    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.hf.set_attn_implementation(before)


def own_attention(model: Any, inputs: Any) -> tuple[Any, dict[int, torch.Tensor]]:
    """Output and self-attention patterns by layer, from transformers and nothing of ours."""
    with eager(model):
        out = model.hf(**inputs.tensors, output_attentions=True, use_cache=False)
    inner = out.language_model_outputs if "language_model_outputs" in out else out
    layers = [site.layer for site in model.sites("text.*.pattern")]
    found = [pattern for pattern in inner.attentions if pattern is not None]
    if len(found) != len(layers):  # Mllama lists the patterns of its cross-attention too
        found = [inner.attentions[layer] for layer in layers]
    return out, dict(zip(layers, found, strict=True))


# -- decoding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.tiered(ALL, FAST))
def test_the_last_layers_lens_is_the_models_prediction(name: str) -> None:
    model, word = model_of(name), "dog"
    inputs = model.prepare(some())
    last = f"text.{model.n_layers - 1}.resid_post"
    found = logit_lens(model, inputs, sites=last, positions="all", top_k=5, words=[word])
    probs = model(inputs).softmax(-1)[found.selection.rows, found.selection.at]
    top, ids = probs.topk(5)
    np.testing.assert_allclose(found.top_probs[0], top.numpy(), atol=1e-5)
    names = decode_ids(model, ids.numpy())
    texts = [names[i] for i in ids[:, 0].tolist()]
    same = [a == b for a, b in zip(texts, found.top[0, :, 0], strict=True) if a]
    assert same and all(same)
    entropy = -(probs * probs.log()).sum(-1)
    np.testing.assert_allclose(found.entropy[0], entropy.numpy(), atol=1e-4)
    piece = model.tokenizer(word, add_special_tokens=False).input_ids[0]
    assert (found.prob(word)[0] >= probs[:, piece].numpy() - 1e-6).all()


@pytest.mark.parametrize("name", zoo.tiered(ALL, FAST))
def test_every_kind_of_site_is_decoded(name: str) -> None:
    model = model_of(name)
    inputs = model.prepare(some(1))
    kinds = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")
    sites = ["text.embed", *(f"text.*.{kind}" for kind in kinds)]
    found = logit_lens(model, inputs, sites=sites, positions="all", top_k=3)
    by_name = {kind: [s for s in found.sites if s.name == kind] for kind in kinds}
    assert all(by_name.values())
    assert len(by_name["z"]) % model.n_heads == 0
    assert np.isfinite(found.entropy).all() and (found.top_probs.sum(-1) <= 1 + 1e-5).all()
    # What leaves a block enters the next one (deepstack features are added in between).
    for layer in range(model.n_layers - 1):
        if not any(site.name == "deepstack" for site in model.sites(f"text.{layer}.*")):
            left = found.entropy[found.index(layer, "resid_post")]
            np.testing.assert_allclose(left, found.entropy[found.index(layer + 1, "resid_pre")])


@pytest.mark.parametrize("name", zoo.tiered(WITH_TOKENS, FAST))
def test_internal_confidence_is_the_maximum_over_layers_and_image_tokens(name: str) -> None:
    model, word = model_of(name), "dog"
    examples = some()
    found = internal_confidence(model, examples, [word] * 2, outputs="the")
    inputs = model.prepare(examples)
    lens = logit_lens(model, inputs, words=[word], positions="image")
    _, cache = model.run_with_cache(inputs, "text.*.resid_post")
    spellings = {word, f" {word}"}
    ids = {
        next(i for i in pieces if model.tokenizer.decode([i]).strip())
        for pieces in (model.tokenizer(s, add_special_tokens=False).input_ids for s in spellings)
    }
    head = model.hf.get_output_embeddings()
    for row, tokens in enumerate(inputs.tokens):
        states = torch.stack([cache[site][row][tokens.image] for site in cache.sites])
        with torch.no_grad():
            probs = head(model.unembed.norm(states)).softmax(-1)[..., sorted(ids)].sum(-1)
        value = found.table.select(metric="internal_confidence", example=f"e{row}").frame["value"]
        assert float(value.iloc[0]) >= float(probs.max()) - 1e-6
        assert float(value.iloc[0]) == pytest.approx(
            lens.prob(word)[:, lens.selection.rows == row].max()
        )


@pytest.mark.parametrize("name", zoo.tiered(ALL, FAST))
def test_a_tuned_lens_is_nearer_to_the_model_on_other_images(name: str) -> None:
    model = model_of(name)
    lens = train_tuned_lens(model, some(4), steps=6, batch_size=4, progress=False)
    held_out = [*some(6)[4:]]
    means = compare_lenses(model, lens, held_out).table.mean(["layer", "metric"])
    pivot = means.pivot(index="layer", columns="metric", values="estimate")
    assert list(pivot.index) == list(range(model.n_layers - 1))
    assert (pivot["kl_tuned"] < pivot["kl_logit"]).all()
    inputs = model.prepare(held_out)
    last = f"text.{model.n_layers - 1}.resid_post"
    found = lens(model, inputs, sites=last, positions="last", top_k=3)
    expected = model.last_logits(inputs).softmax(-1).topk(3).values
    np.testing.assert_allclose(found.top_probs[0], expected.numpy(), atol=1e-5)


# -- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.tiered(WITH_GRID, FAST))
def test_a_word_put_at_the_object_is_found_there(name: str) -> None:
    model, word = model_of(name), "dog"
    examples = some()
    inputs = model.prepare(examples)
    direction = model.hf.get_output_embeddings().weight[_first_id(model, word)].detach()

    def light(value: torch.Tensor) -> torch.Tensor:
        new = value.clone()
        for row, tokens in enumerate(inputs.tokens):
            new[row, tokens.within(BOX)] += 200 * direction
        return new

    with model.edit({f"text.{model.n_layers - 1}.resid_post": light}):
        found = localise(model, examples, [word] * 2)
    score = found.table.select(method="logit lens").frame.groupby("metric")["value"].mean()
    # The threshold of the IoU comes from the other scene, whose heat is another.
    assert score["pointing"] == 1 and score["auroc"] == 1 and score["iou"] >= 0.6
    grid = logit_lens(model, inputs, words=[word]).grid(word, 0)
    assert grid.ndim == 2 and np.isfinite(grid).any()


@pytest.mark.parametrize("name", zoo.tiered(WITH_GRID, FAST))
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_ablating_the_object_is_the_edit_done_by_hand(name: str, kind: str) -> None:
    model, examples = model_of(name), some()
    found = token_ablation(model, examples, kind=kind, groups=["object", "random"], n_random=1)
    inputs = model.prepare(examples)
    _, cache = model.run_with_cache(inputs, "text.embed")
    states = [cache["text.embed"][row][t.image] for row, t in enumerate(inputs.tokens)]
    fill = torch.zeros(model.d_model) if kind == "zero" else torch.cat(states).mean(0)

    def by_hand(value: torch.Tensor) -> torch.Tensor:
        new = value.clone()
        for row, tokens in enumerate(inputs.tokens):
            new[row, tokens.within(BOX)] = fill
        return new

    clean = model.last_logits(inputs)
    with model.edit({"text.embed": by_hand}):
        edited = model.last_logits(inputs)
    first, second = model.answer_id("the"), model.answer_id("a")
    expected = (edited - clean)[:, first] - (edited - clean)[:, second]
    change = found.table.select(metric="change", position="object").frame["value"]
    np.testing.assert_allclose(change, expected.numpy(), atol=2e-5)
    assert np.abs(change).max() > 1e-4


# -- attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.tiered(WITH_TOKENS, FAST))
def test_attention_maps_and_rollout_are_the_models_own_attention(name: str) -> None:
    model = model_of(name)
    inputs = model.prepare(some())
    maps, flow = attention_maps(model, inputs), rollout(model, inputs)
    _, patterns = own_attention(model, inputs)
    rows, at = maps.selection.rows, maps.selection.at
    total = np.eye(inputs["input_ids"].shape[1])[None]
    for index, pattern in enumerate(patterns.values()):
        weights = pattern.detach().numpy()
        mine = maps.scores[index * model.n_heads : (index + 1) * model.n_heads]
        np.testing.assert_allclose(mine, weights[rows, :, -1, at].T, atol=1e-5)
        mixed = 0.5 * np.eye(weights.shape[-1]) + 0.5 * weights.mean(1)
        total = (mixed / mixed.sum(-1, keepdims=True)) @ total
    np.testing.assert_allclose(flow.scores[0], total[rows, -1, at], atol=1e-5)
    assert visual_sinks(model, inputs, threshold=1e9).scores.max() == 0
    if name in WITH_GRID:
        grid = maps.grid()
        assert grid.shape == flow.grid().shape == inputs.tokens[0].grid().shape


@pytest.mark.parametrize("name", zoo.tiered(ALL, FAST))
def test_relevance_against_gradients_of_eager_attention(name: str) -> None:
    model = model_of(name)
    inputs = model.prepare(some())
    found = relevance(model, inputs, ["the"] * 2, foils=["a"] * 2, positions="all")
    out, patterns = own_attention(model, inputs)
    logits = out.logits[:, -1]
    metric = logits[:, model.answer_id("the")] - logits[:, model.answer_id("a")]
    gradients = torch.autograd.grad(metric.sum(), list(patterns.values()))
    total = np.eye(inputs["input_ids"].shape[1])[None]
    for pattern, gradient in zip(patterns.values(), gradients, strict=True):
        step = (pattern * gradient).clamp_min(0).mean(1).detach().numpy()
        total = total + step @ total
    expected = total[found.selection.rows, -1, found.selection.at]
    np.testing.assert_allclose(found.scores[0], expected, **EXACT)
    assert np.abs(found.scores[0]).max() > 0


# -- patchscope ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.tiered(ALL, FAST))
def test_a_patchscope_that_puts_a_state_back_says_the_same(name: str) -> None:
    model, prompt = model_of(name), "the dog is"
    blank = Image.new("RGB", (24, 24), "grey") if name in NEEDS_IMAGE else None
    own = model.prepare([(blank, prompt)])
    at = [int(own.tokens[0].text("dog")[-1])]
    layers = range(-1, model.n_layers)
    options = {"prompt": prompt, "placeholder": "dog", "max_new_tokens": 3, "target_image": blank}
    found = patchscope(model, own, layers=layers, positions=at, **options)
    said = model.generate(own, max_new_tokens=3)[0].strip()
    assert set(found.texts.ravel()) == {said}
    if name != "mllama":
        source = model.prepare(some(1))
        other = patchscope(model, source, layers=[-1], words=["dog"], **options)
        assert other.texts.shape == (1, len(source.tokens[0].image))
        expected = model.generate(
            own,
            edits={"text.embed": _put(model, source, at[0], len(own.tokens[0]))},
            max_new_tokens=3,
        )
        assert other.texts[0, 0] == expected[0].strip()


def _put(model: Any, source: Any, at: int, length: int) -> Any:
    _, cache = model.run_with_cache(source, "text.embed")
    state = cache["text.embed"][0, source.tokens[0].image[0]]

    def put(value: torch.Tensor) -> torch.Tensor:
        new = value.clone()
        if value.shape[1] == length:
            new[:, at] = state
        return new

    return put


@pytest.mark.parametrize("name", zoo.tiered(ALL, FAST))
def test_self_consistency_holds_at_the_input(name: str) -> None:
    model = model_of(name)
    blank = Image.new("RGB", (24, 24), "grey") if name in NEEDS_IMAGE else None
    options = {"layers": [-1], "max_new_tokens": 2, "target_image": blank}
    frame = self_consistency(model, ["z", "k"], prompt="the q is", placeholder="q", **options).frame
    assert frame["value"].tolist() == [1.0, 1.0]


# -- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.tiered(NEEDS_IMAGE, ("blip_2",)))
def test_a_model_that_needs_an_image_asks_for_one(name: str) -> None:
    model = model_of(name)
    with pytest.raises(InputError, match="pass target_image"):
        patchscope(model, model.prepare(some(1)), positions="last")
    with pytest.raises(InputError, match="pass target_image"):
        self_consistency(model, ["z"])


@pytest.mark.parametrize("name", zoo.tiered(QUERIES, ("blip_2",)))
def test_query_tokens_have_no_place(name: str) -> None:
    model, examples = model_of(name), some()
    inputs = model.prepare(examples)
    # In Jupyter they show what they have.
    assert "Entropy, by layer" in show_lens(logit_lens(model, inputs))
    assert "attention" in show_scores(attention_maps(model, inputs))
    for refused in (
        lambda: localise(model, examples, ["dog"] * 2),
        lambda: token_ablation(model, examples),
        lambda: logit_lens(model, inputs, words=["dog"]).grid("dog", 0),
        lambda: attention_maps(model, inputs).grid(),
    ):
        with pytest.raises(InputError, match="query tokens stand for the whole image"):
            refused()


def test_cross_attention_leaves_no_image_tokens() -> None:
    model, examples = model_of("mllama"), some()
    inputs = model.prepare(examples)
    for refused in (
        lambda: logit_lens(model, inputs),
        lambda: internal_confidence(model, examples, ["dog"] * 2, outputs="the"),
        lambda: localise(model, examples, ["dog"] * 2),
        lambda: token_ablation(model, examples),
        lambda: attention_maps(model, inputs),
        lambda: rollout(model, inputs),
        lambda: visual_sinks(model, inputs),
        lambda: relevance(model, inputs, ["the"] * 2),
        lambda: patchscope(model, inputs),
    ):
        with pytest.raises(InputError, match="the image enters by cross-attention"):
            refused()


@pytest.mark.slow
def test_words_that_a_space_stands_for() -> None:
    """A template that continues with a lone space gives all answers one first token."""
    model, examples = model_of("idefics3"), some()
    assert model.answer_id("yes") == model.answer_id("no")
    found = logit_lens(model, model.prepare(examples), words=["dog", "red"])
    assert not np.allclose(found.prob("dog"), found.prob("red"))
    with pytest.raises(UsageError, match="'yes' and the foil 'no' begin with the same token"):
        relevance(model, model.prepare(examples), ["yes"] * 2, foils=["no"] * 2)
    for example in examples:
        object.__setattr__(example, "answer", "yes")
        object.__setattr__(example, "foil", "no")
    with pytest.raises(UsageError, match="begin with the same token"):
        token_ablation(model, examples)


def _first_id(model: Any, word: str) -> int:
    pieces = model.tokenizer(f" {word}", add_special_tokens=False).input_ids
    return next(i for i in pieces if model.tokenizer.decode([i]).strip())
