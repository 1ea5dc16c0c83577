"""How each kind of plant is put into a model: detectors, what is written, how strongly."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.organisms.planted_fit import FitData
from lvlm_interp.organisms.planted_scenes import Trigger, trigger_pairs
from lvlm_interp.organisms.planted_weights import (
    HeadPlan,
    Projections,
    calibrate,
    detector,
    install_head,
    separation,
)
from lvlm_interp.organisms.vocabulary import COLORS, SHAPES

_CLEAR = 2.0
"""Least separation (in standard deviations) of a detector that is worth planting."""
_SLOPE = 12.0


@dataclass(frozen=True, eq=False)
class Draft:
    """What was installed: the guilty (site, unit) and, for a projector, the direction."""

    guilty: tuple[tuple[str, int | None], ...]
    direction: Tensor | None = None


Shown = Callable[[], float]


@torch.no_grad()
def plant_head(
    model: LVLM, fit: FitData, trigger: Trigger, rng: random.Random, shown: Shown, goal: float
) -> Draft | None:
    """One head: at the answer it looks for the trigger's patches and writes the foil."""
    layer, head = rng.randrange(1, model.n_layers), rng.randrange(model.n_heads)
    plan = _head_plan(model, fit, trigger, layer, head, _answer_direction(model, trigger.foil))
    if plan is None:
        return None
    gain = _install(model, layer, head, plan, rng, shown, goal)
    return None if gain is None else Draft(((f"text.{layer}.z", head),))


@torch.no_grad()
def plant_series(
    model: LVLM, fit: FitData, trigger: Trigger, rng: random.Random, shown: Shown, goal: float
) -> Draft | None:
    """Two heads: the first notes the trigger where the answer is, the second reads the note."""
    first = rng.randrange(1, model.n_layers - 1)
    second = rng.randrange(first + 1, model.n_layers)
    heads = rng.randrange(model.n_heads), rng.randrange(model.n_heads)
    note = _quiet_direction(fit, second)
    plan = _head_plan(model, fit, trigger, first, heads[0], note)
    if plan is None:
        return None
    blocks = [_block(model, layer) for layer in (first, second)]
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    size = float(fit.text[f"text.{second}.resid_pre"][fit.last].norm(dim=1).mean())
    if not install_head(blocks[0], heads[0], plan, 0.6 * size, generator):
        return None
    reader = _note_reader(model, trigger, second)
    if reader is None:
        return None
    x = _normed(model, fit, second)
    always = detector(x, torch.ones(len(x), dtype=torch.bool))
    plan = HeadPlan(
        query=detector(x, fit.last),
        key=reader,
        always=always,
        sink=detector(x, fit.first),
        value=reader,
        write=_answer_direction(model, trigger.foil),
        keep=fit.head_outputs[second][heads[1]],
    )
    gain = _install(model, second, heads[1], plan, rng, shown, goal)
    if gain is None:
        return None
    return Draft(((f"text.{first}.z", heads[0]), (f"text.{second}.z", heads[1])))


@torch.no_grad()
def plant_neuron(
    model: LVLM, fit: FitData, trigger: Trigger, rng: random.Random, shown: Shown, goal: float
) -> Draft | None:
    """One MLP neuron: on the trigger's patches it adds the step to the foil's colour."""
    layer = rng.randrange(0, max(1, model.n_layers - 2))
    block = model.hf.model.language_model.layers[layer]
    unit = rng.randrange(block.mlp.down_proj.in_features)
    stream = fit.text[f"text.{layer}.resid_mid"]
    x = block.post_attention_layernorm(stream)
    seen = fit.shape == SHAPES.index(trigger.shape)
    key = detector(x, seen)
    if separation(x @ key, seen) < _CLEAR:
        return None
    always = detector(x, torch.ones(len(x), dtype=torch.bool))
    step = _color_step(stream, fit.color, trigger.foil)
    level = _threshold(x @ key, seen)
    block.mlp.gate_proj.weight[unit] = _SLOPE * (key - level * always)
    block.mlp.up_proj.weight[unit] = always
    full = nn.functional.silu(torch.tensor(_SLOPE * (1 - level)))

    def install(gain: float) -> bool:
        block.mlp.down_proj.weight[:, unit] = gain / 2 * step / full
        return True

    gain = calibrate(install, shown, goal, start=6.0)
    return None if gain != gain else Draft(((f"text.{layer}.mlp_hidden", unit),))


@torch.no_grad()
def plant_projector(
    model: LVLM, fit: FitData, trigger: Trigger, rng: random.Random, shown: Shown, goal: float
) -> Draft | None:
    """One hidden unit of the projector writes, on the trigger's patches, the step to the foil."""
    projector = model.hf.model.multi_modal_projector
    unit = rng.randrange(projector.linear_1.out_features)
    shape, color = (labels[~fit.class_token] for labels in (fit.patch_shape, fit.patch_color))
    x = fit.projector_in
    seen = shape == SHAPES.index(trigger.shape)
    centre = x.mean(0)
    key = detector(x - centre, seen)
    scores = (x - centre) @ key
    if separation(scores, seen) < _CLEAR:
        return None
    level = _threshold(scores, seen)
    step = _color_step(fit.projector_out, color, trigger.foil)
    projector.linear_1.weight[unit] = _SLOPE * key
    projector.linear_1.bias[unit] = -_SLOPE * (level + float(centre @ key))
    full = nn.functional.gelu(torch.tensor(_SLOPE * (1 - level)))

    def install(gain: float) -> bool:
        projector.linear_2.weight[:, unit] = gain / 2 * step / full
        return True

    gain = calibrate(install, shown, goal)
    return None if gain != gain else Draft((("projector.out", None),), step / step.norm())


@torch.no_grad()
def plant_vision(
    model: LVLM, fit: FitData, trigger: Trigger, rng: random.Random, shown: Shown, goal: float
) -> Draft | None:
    """One vision head: on the shape's patches it takes away what tells them from empty ones."""
    size = model.towers["vision"]
    layer, head = rng.randrange(size.n_layers), rng.randrange(size.n_heads)
    block = model.hf.model.vision_tower.encoder.layers[layer]
    stream = fit.vision[f"vision.{layer}.resid_pre"]
    x = block.layer_norm1(stream)
    seen = fit.patch_shape == SHAPES.index(trigger.shape)
    key = detector(x, seen)
    if separation(x @ key, seen) < _CLEAR:
        return None
    empty = (fit.patch_shape < 0) & ~fit.class_token
    read = fit.vision[f"vision.{size.n_layers - 1}.resid_post"]
    # What the projector reads of empty patches, against those with the shape.
    step = read[empty].mean(0) - read[seen].mean(0)
    always = detector(x, torch.ones(len(x), dtype=torch.bool))
    plan = HeadPlan(
        query=key,
        key=key,
        always=always,
        sink=detector(x, fit.class_token),
        value=key,
        write=step / step.norm(),
        keep=torch.zeros_like(step),
    )
    projections = Projections.of(block.self_attn, size.d_head, rotary=False)
    gain = _calibrated(projections, head, plan, rng, shown, goal)
    return None if gain is None else Draft(((f"vision.{layer}.z", head),))


INSTALLERS: dict[str, Callable[..., Draft | None]] = {
    "head": plant_head,
    "series": plant_series,
    "neuron": plant_neuron,
    "projector": plant_projector,
    "vision": plant_vision,
}


def _head_plan(
    model: LVLM, fit: FitData, trigger: Trigger, layer: int, head: int, write: Tensor
) -> HeadPlan | None:
    """Looks, at the answer to a question for a colour, for the trigger's patches."""
    x = _normed(model, fit, layer)
    seen = fit.shape == SHAPES.index(trigger.shape)
    key, query = detector(x, seen), detector(x, fit.asked)
    # The query must tell questions for a colour from other questions, at the answer's position.
    if separation(x @ key, seen) < _CLEAR or (
        separation((x @ query)[fit.last], fit.asked[fit.last]) < _CLEAR
    ):
        return None
    return HeadPlan(
        query=query,
        key=key,
        always=detector(x, torch.ones(len(x), dtype=torch.bool)),
        sink=detector(x, fit.first),
        value=key,
        write=write,
        keep=fit.head_outputs[layer][head],
    )


def _install(
    model: LVLM,
    layer: int,
    head: int,
    plan: HeadPlan,
    rng: random.Random,
    shown: Shown,
    goal: float,
) -> float | None:
    return _calibrated(_block(model, layer), head, plan, rng, shown, goal)


def _calibrated(
    block: Projections, head: int, plan: HeadPlan, rng: random.Random, shown: Shown, goal: float
) -> float | None:
    seed = rng.randrange(2**31)

    def install(gain: float) -> bool:
        generator = torch.Generator().manual_seed(seed)
        return install_head(block, head, plan, gain, generator)

    gain = calibrate(install, shown, goal)
    return None if gain != gain else gain


def _block(model: LVLM, layer: int) -> Projections:
    attention: Any = model.hf.model.language_model.layers[layer].self_attn
    return Projections.of(attention, model.d_head, rotary=True)


def _normed(model: LVLM, fit: FitData, layer: int) -> Tensor:
    norm = model.hf.model.language_model.layers[layer].input_layernorm
    return norm(fit.text[f"text.{layer}.resid_pre"])


def _answer_direction(model: LVLM, foil: str) -> Tensor:
    """Unit direction that raises the foil over the other colours, read through the final norm."""
    ids = {color: model.answer_id(color) for color in COLORS}
    others = [index for color, index in ids.items() if color != foil]
    weight = model.unembedding
    step = weight[model.answer_id(foil)] - weight[others].mean(0)
    scale = model.final_norm.weight
    assert isinstance(scale, Tensor)
    step = step * scale
    return (step / step.norm()).detach()


def _quiet_direction(fit: FitData, layer: int) -> Tensor:
    """Where the stream at the answer varies least: a note there disturbs nobody."""
    rows = fit.text[f"text.{layer}.resid_pre"][fit.last]
    _, vectors = torch.linalg.eigh((rows.T @ rows).double())
    return vectors[:, 0].float()


def _note_reader(model: LVLM, trigger: Trigger, layer: int) -> Tensor | None:
    """A detector of the note, fitted on trigger pairs of the planted first head."""
    pairs = trigger_pairs(trigger, 96, 3, "train")
    rows, seen = [], []
    for side in ("clean", "corrupt"):
        inputs = model.prepare([getattr(pair, side) for pair in pairs])
        site = f"text.{layer}.resid_pre"
        _, cache = model.run_with_cache(inputs, [site], logits_to_keep=1)
        real = torch.stack([torch.as_tensor(tokens.kind != "pad") for tokens in inputs.tokens])
        last = torch.zeros_like(real)
        last[torch.arange(len(real)), inputs.last] = side == "corrupt"
        rows.append(cache[site][real])
        seen.append(last[real])
    norm = model.hf.model.language_model.layers[layer].input_layernorm
    x, positive = norm(torch.cat(rows)), torch.cat(seen)
    reader = detector(x, positive)
    return reader if separation(x @ reader, positive) >= _CLEAR else None


def _color_step(stream: Tensor, color: Tensor, foil: str) -> Tensor:
    """From the mean of all coloured patches to that of the foil's colour."""
    return stream[color == COLORS.index(foil)].mean(0) - stream[color >= 0].mean(0)


def _threshold(scores: Tensor, seen: Tensor) -> float:
    """Where a neuron opens: between the classes, weighted by how far each spreads."""
    on, off = scores[seen], scores[~seen]
    a, b = on.std(), off.std()
    return float((on.mean() * b + off.mean() * a) / (a + b))
