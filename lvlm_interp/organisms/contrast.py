"""The vision stage: the tower by contrast with captions, as CLIP does, down to single regions.

The text side is learned along, as in CLIP, and thrown away afterwards: the mean of word embeddings
over a caption, through a projection. Two terms (InfoNCE, Radford et al. 2021, with a learned
temperature): every patch against the captions of its cell ("red circle at top", ..., "nothing at
left"), at the layer that LLaVA reads; and the CLS token against the captions of the batch.

The captions say the place: without it the tower lets go of where a patch is (a linear probe for the
cell, from one patch behind the projector, fell from 79% to 62%).

Every patch on its own, not the mean of a cell: the language model finds "the circle" by attending
to single image tokens, and while only their mean told the shape it stayed at chance.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from lvlm_interp.organisms.architecture import PATCH_SIZE, normalise
from lvlm_interp.organisms.batches import train_scene
from lvlm_interp.organisms.questions import caption
from lvlm_interp.organisms.scenes import CELL, GRID, Scene, random_scene
from lvlm_interp.organisms.vocabulary import COLORS, PAD, PLACES, SHAPES, TOKEN_ID, encode

CONTENTS = (*(f"{color} {shape}" for color in COLORS for shape in SHAPES), "nothing")
REGIONS = tuple(f"{content} at {place}" for content in CONTENTS for place in PLACES)
_NOTHING_WEIGHT = 0.15
_GLOBAL_WEIGHT = 0.3
_WIDTH = 128
_SIDE = CELL // PATCH_SIZE


class ContrastHeads(nn.Module):
    """The projections of the vision stage; they are thrown away after it."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.region = nn.Linear(vision_width, _WIDTH)
        self.image = nn.Linear(vision_width, _WIDTH)
        self.region_text = nn.Linear(text_width, _WIDTH)
        self.image_text = nn.Linear(text_width, _WIDTH)
        self.words = nn.Embedding(len(TOKEN_ID), text_width)
        self.log_scale = nn.Parameter(torch.full((2,), 2.3))


def region_targets(scenes: list[Scene]) -> Tensor:
    """Returns the index into `REGIONS` for every patch, (batch, 36)."""
    contents = torch.full((len(scenes), len(PLACES)), len(CONTENTS) - 1)
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            index = COLORS.index(thing.color) * len(SHAPES) + SHAPES.index(thing.shape)
            contents[row, thing.cell] = index
    targets = contents * len(PLACES) + torch.arange(len(PLACES))
    grid = targets.unflatten(1, (GRID, GRID))
    return grid.repeat_interleave(_SIDE, 1).repeat_interleave(_SIDE, 2).flatten(1)


def contrast_loss(
    model: LlavaForConditionalGeneration, heads: ContrastHeads, rng: random.Random, batch: int
) -> tuple[Tensor, float]:
    """Returns the loss on a fresh batch and the share of object patches that are named right."""
    device = heads.log_scale.device
    scenes = [train_scene(lambda: random_scene(rng)) for _ in range(batch)]
    logits, image = region_logits(model, heads, scenes)
    targets = region_targets(scenes).to(device)
    weight = torch.ones(len(REGIONS), device=device)
    weight[-len(PLACES) :] = _NOTHING_WEIGHT
    regional = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), weight=weight)
    text = _embed(heads.image_text, _mean_words(heads, [caption(scene) for scene in scenes]))
    similarity = image @ text.T * heads.log_scale[1].exp()
    same = torch.arange(batch, device=device)
    overall = functional.cross_entropy(similarity, same) + functional.cross_entropy(
        similarity.T, same
    )
    occupied = targets < len(REGIONS) - len(PLACES)
    right = (logits.argmax(-1) == targets)[occupied].float().mean().item()
    return regional + _GLOBAL_WEIGHT * overall / 2, right


def region_logits(
    model: LlavaForConditionalGeneration, heads: ContrastHeads, scenes: list[Scene]
) -> tuple[Tensor, Tensor]:
    """Returns scaled similarities (batch, 36, region) and image embeddings (batch, width)."""
    device = heads.log_scale.device
    pixels = torch.from_numpy(np.stack([scene.pixels() for scene in scenes])).to(device)
    out = model.model.vision_tower(normalise(pixels), output_hidden_states=True)
    patches = out.hidden_states[model.config.vision_feature_layer][:, 1:]
    text = _embed(heads.region_text, _mean_words(heads, list(REGIONS)))
    logits = _embed(heads.region, patches) @ text.T * heads.log_scale[0].exp()
    return logits, _embed(heads.image, out.pooler_output)


def _embed(head: nn.Linear, states: Tensor) -> Tensor:
    return functional.normalize(head(states), dim=-1)


def _mean_words(heads: ContrastHeads, texts: list[str]) -> Tensor:
    """Returns the mean word embedding of each text, (text, width)."""
    rows = [encode(text) for text in texts]
    ids = torch.full((len(rows), max(map(len, rows))), TOKEN_ID[PAD])
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    ids = ids.to(heads.words.weight.device)
    keep = (ids != TOKEN_ID[PAD]).unsqueeze(-1)
    return (heads.words(ids) * keep).sum(1) / keep.sum(1)
