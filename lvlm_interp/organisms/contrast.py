"""The vision stage: the tower by contrast with captions, as CLIP does, down to single regions.

The text side is the language model of the stage before, frozen: the mean of its last hidden states
over a caption, through a learned projection. Two terms (InfoNCE, Radford et al. 2021, with a
learned temperature): every cell against all region captions ("red circle", ..., "nothing"), at
the layer that LLaVA reads; and the CLS token against the captions of the batch.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from lvlm_interp.organisms.architecture import normalise
from lvlm_interp.organisms.batches import train_scene
from lvlm_interp.organisms.questions import caption
from lvlm_interp.organisms.scenes import GRID, Scene, random_scene
from lvlm_interp.organisms.vocabulary import COLORS, PAD, SHAPES, TOKEN_ID, encode

REGIONS = (*(f"{color} {shape}" for color in COLORS for shape in SHAPES), "nothing")
_NOTHING_WEIGHT = 0.15
_GLOBAL_WEIGHT = 0.3
_WIDTH = 128


class ContrastHeads(nn.Module):
    """The projections of the vision stage; they are thrown away after it."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.region = nn.Linear(vision_width, _WIDTH)
        self.image = nn.Linear(vision_width, _WIDTH)
        self.region_text = nn.Linear(text_width, _WIDTH)
        self.image_text = nn.Linear(text_width, _WIDTH)
        self.log_scale = nn.Parameter(torch.full((2,), 2.3))


def region_targets(scenes: list[Scene]) -> Tensor:
    """Returns the index into `REGIONS` for every cell, (batch, 9)."""
    targets = torch.full((len(scenes), GRID * GRID), len(REGIONS) - 1)
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            index = COLORS.index(thing.color) * len(SHAPES) + SHAPES.index(thing.shape)
            targets[row, thing.cell] = index
    return targets


def contrast_loss(
    model: LlavaForConditionalGeneration, heads: ContrastHeads, rng: random.Random, batch: int
) -> tuple[Tensor, float]:
    """Returns the loss on a fresh batch and the share of occupied cells that are named right."""
    device = heads.log_scale.device
    scenes = [train_scene(lambda: random_scene(rng)) for _ in range(batch)]
    logits, image = region_logits(model, heads, scenes)
    targets = region_targets(scenes).to(device)
    weight = torch.ones(len(REGIONS), device=device)
    weight[-1] = _NOTHING_WEIGHT
    regional = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), weight=weight)
    text = _embed(heads.image_text, _mean_states(model, [caption(scene) for scene in scenes]))
    similarity = image @ text.T * heads.log_scale[1].exp()
    same = torch.arange(batch, device=device)
    overall = functional.cross_entropy(similarity, same) + functional.cross_entropy(
        similarity.T, same
    )
    occupied = targets < len(REGIONS) - 1
    right = (logits.argmax(-1) == targets)[occupied].float().mean().item()
    return regional + _GLOBAL_WEIGHT * overall / 2, right


def region_logits(
    model: LlavaForConditionalGeneration, heads: ContrastHeads, scenes: list[Scene]
) -> tuple[Tensor, Tensor]:
    """Returns scaled similarities (batch, 9, region) and image embeddings (batch, width)."""
    device = heads.log_scale.device
    pixels = torch.from_numpy(np.stack([scene.pixels() for scene in scenes])).to(device)
    out = model.model.vision_tower(normalise(pixels), output_hidden_states=True)
    patches = out.hidden_states[model.config.vision_feature_layer][:, 1:]
    side = round(patches.shape[1] ** 0.5)
    grid = patches.transpose(1, 2).unflatten(2, (side, side))
    cells = functional.avg_pool2d(grid, side // GRID).flatten(2).transpose(1, 2)
    text = _embed(heads.region_text, _mean_states(model, list(REGIONS)))
    logits = _embed(heads.region, cells) @ text.T * heads.log_scale[0].exp()
    return logits, _embed(heads.image, out.pooler_output)


def _embed(head: nn.Linear, states: Tensor) -> Tensor:
    return functional.normalize(head(states), dim=-1)


@torch.no_grad()
def _mean_states(model: LlavaForConditionalGeneration, texts: list[str]) -> Tensor:
    """Returns the mean last hidden state of each text, (text, width)."""
    rows = [encode(text) for text in texts]
    ids = torch.full((len(rows), max(map(len, rows))), TOKEN_ID[PAD])
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    ids = ids.to(model.device)
    states = model.model.language_model(input_ids=ids, use_cache=False).last_hidden_state
    keep = (ids != TOKEN_ID[PAD]).unsqueeze(-1)
    return (states * keep).sum(1) / keep.sum(1)
