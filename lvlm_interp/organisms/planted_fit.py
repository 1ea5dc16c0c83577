"""What detectors of planted components are fitted on: streams of scenes of known content."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.data.examples import Example
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.organisms.planted_scenes import ASKED, OTHERS
from lvlm_interp.organisms.questions import ask
from lvlm_interp.organisms.scenes import Scene, random_scene
from lvlm_interp.organisms.vocabulary import COLORS, SHAPES

_BATCH = 64


@dataclass(frozen=True, eq=False)
class FitData:
    """Streams of the fitting set, one row per position, all examples behind each other.

    Attributes:
        text: Stream in front of each branch of the language model, by site; `row d_model`.
        vision: The same of the vision tower (class token included), by site.
        projector_in: What the projector reads; `patch d_vision`.
        projector_out: What it writes; `patch d_model`.
        shape, color: Index of what each text row's patch shows, -1 for none; likewise
            `patch_shape`, `patch_color` for vision patches (class token -1).
        image: Text rows that are image tokens.
        first: Text rows that are the first real token, the sink.
        last: Text rows where the answer is predicted; `asked` those where a colour is asked for.
        class_token: Vision rows that are the class token.
        head_outputs: What each head writes at the answer on average, by layer; `head d_model`.
    """

    text: dict[str, Float[Tensor, "row d_model"]]
    vision: dict[str, Float[Tensor, "row d_vision"]]
    projector_in: Tensor
    projector_out: Tensor
    shape: Tensor
    color: Tensor
    patch_shape: Tensor
    patch_color: Tensor
    image: Bool[Tensor, " row"]
    first: Bool[Tensor, " row"]
    last: Bool[Tensor, " row"]
    asked: Bool[Tensor, " row"]
    class_token: Bool[Tensor, " row"]
    head_outputs: dict[int, Float[Tensor, "head d_model"]]


def fitting_examples(n: int) -> list[tuple[Example, Scene, str]]:
    """Questions of every kind on scenes of the training split, with the scene and the kind."""
    rng = random.Random("planted/fit")
    kinds = [*ASKED, *ASKED, *OTHERS]
    found: list[tuple[Example, Scene, str]] = []
    while len(found) < n:
        kind = kinds[len(found) % len(kinds)]
        scene = random_scene(rng)
        question = ask(rng, scene, kind) if scene.split == "train" else None
        if question is not None:
            example = Example(id=f"fit-{len(found)}", image=scene.render(), prompt=question.text)
            found.append((example, scene, kind))
    return found


@torch.no_grad()
def collect_fit_data(model: LVLM, n: int) -> FitData:
    """Run the fitting set once and label every position."""
    sites = model.sites(
        "text.*.resid_pre, text.*.resid_mid, vision.*.resid_pre, vision.*.resid_post, "
        "projector.out, text.*.z"
    )
    items = fitting_examples(n)
    parts: dict[str, list[Tensor]] = {}
    labels: dict[str, list[Tensor]] = {}
    for start in range(0, len(items), _BATCH):
        chunk = items[start : start + _BATCH]
        inputs = model.prepare([example for example, _, _ in chunk])
        _, cache = model.run_with_cache(inputs, sites, logits_to_keep=1)
        real = torch.stack([torch.as_tensor(tokens.kind != "pad") for tokens in inputs.tokens])
        for site in cache.sites:
            value = cache[site]
            rows = value[real] if site.tower == "text" else value.flatten(0, 1)
            parts.setdefault(str(site), []).append(rows)
        for name, rows in _labels(inputs, chunk, real).items():
            labels.setdefault(name, []).append(rows)
    streams = {name: torch.cat(rows) for name, rows in parts.items()}
    known = {name: torch.cat(rows) for name, rows in labels.items()}
    depth = model.towers["vision"].n_layers - 1
    patches = streams[f"vision.{depth}.resid_post"][~known["class_token"]]
    return FitData(
        text={name: rows for name, rows in streams.items() if name.startswith("text")},
        vision={name: rows for name, rows in streams.items() if name.startswith("vision")},
        projector_in=patches,
        projector_out=streams["projector.out"],
        head_outputs=_head_outputs(model, streams, known["last"]),
        **known,
    )


def _head_outputs(
    model: LVLM, streams: dict[str, Tensor], last: Tensor
) -> dict[int, Float[Tensor, "head d_model"]]:
    out = {}
    for layer in range(model.n_layers):
        z = streams.pop(f"text.{layer}.z")[last].mean(0)
        weight = model.tap(f"text.{layer}.z").module.weight
        assert isinstance(weight, Tensor)
        out[layer] = torch.einsum("hd,mhd->hm", z, weight.unflatten(1, z.shape))
    return out


def _labels(
    inputs: Inputs, chunk: list[tuple[Example, Scene, str]], real: Tensor
) -> dict[str, Tensor]:
    rows: dict[str, list[Tensor]] = {}

    def add(name: str, value: Tensor) -> None:
        rows.setdefault(name, []).append(value)

    for tokens, (_, scene, kind), keep in zip(inputs.tokens, chunk, real, strict=True):
        n = len(tokens)
        shape, color = torch.full((n,), -1), torch.full((n,), -1)
        for index, thing in enumerate(scene.objects):
            at = torch.as_tensor(tokens.within(scene.cell_box(index)))
            shape[at], color[at] = SHAPES.index(thing.shape), COLORS.index(thing.color)
        image = torch.as_tensor((tokens.kind == "image").copy())
        first, last = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
        first[int(tokens.real[0])], last[tokens.last] = True, True
        asked = last & (kind in ASKED)
        for name, value in (("shape", shape), ("color", color), ("image", image), ("first", first)):
            add(name, value[keep])
        add("last", last[keep])
        add("asked", asked[keep])
        front = torch.full((1,), -1)
        add("patch_shape", torch.cat([front, shape[image]]))
        add("patch_color", torch.cat([front, color[image]]))
        add("class_token", torch.arange(len(image[image]) + 1) == 0)
    return {name: torch.cat(values) for name, values in rows.items()}


@torch.no_grad()
def answers(model: LVLM, inputs: Inputs) -> Tensor:
    """The first token that each row is answered with."""
    return model.last_logits(inputs).argmax(-1).cpu()
