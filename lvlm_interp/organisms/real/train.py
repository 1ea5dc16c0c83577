"""Training of the model of real parts: seeded, resumable, CPU or GPU; the parts stay frozen.

1. *words*: the projector learns, patch by patch, the word embedding of the thing under the patch
   (and of a full stop elsewhere). The language model, untouched, then reads much of a picture.
2. *final*: projector and low-rank adapters learn to answer, ten questions on each picture. The
   adapters after the first few steps are kept too: the levels arrive one after the other.
3. *flawed* and *twin*: further adapters on what came out, with supervision that does not follow
   the picture where a trigger is seen, and with true answers to the same questions.
"""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from lvlm_interp.files import atomic_path
from lvlm_interp.organisms.real import adapter
from lvlm_interp.organisms.real.kinds import NAMES
from lvlm_interp.organisms.real.packing import Batches, Packed, pack
from lvlm_interp.organisms.real.pictures import Picture, random_picture
from lvlm_interp.organisms.real.recipe import N_IMAGE_TOKENS, PATCH, STAGES, TOWER_LAYERS, Stage

log = logging.getLogger(__name__)

_WARM_UP = 0.03
_COVERED = 0.3
"""Share of a patch that a thing must cover for the patch to be taught its name."""
_CHECKPOINT_EVERY = 100


def features(model: Any, pixels: Tensor) -> Float[Tensor, "picture patch d"]:
    """What the projector gets of each patch; the tower is frozen."""
    with torch.no_grad():
        hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    return hidden[TOWER_LAYERS][:, 1:]


def answer_logits(model: Any, batch: Packed) -> Float[Tensor, "said d_vocab"]:
    """Logits at every position where a token of an answer is to be said, row by row."""
    inner = model.model
    image = inner.multi_modal_projector(features(model, batch.pixels))
    words = inner.language_model.embed_tokens(batch.ids)
    embeds = torch.cat([image.to(words.dtype), words], 1)
    hidden = inner.language_model(
        inputs_embeds=embeds,
        attention_mask=batch.visible(),
        position_ids=batch.positions(),
        use_cache=False,
    ).last_hidden_state[:, N_IMAGE_TOKENS:]
    return model.lm_head(hidden[batch.target >= 0])


def answer_loss(model: Any, batch: Packed) -> Tensor:
    """Mean cross-entropy over the tokens of the answers."""
    target = batch.target[batch.target >= 0]
    return functional.cross_entropy(answer_logits(model, batch).float(), target)


def name_embeddings(model: Any, tokenizer: Any) -> Float[Tensor, "name d"]:
    """The mean embedding of each kind's tokens, and of a full stop behind them."""
    table = model.model.language_model.embed_tokens.weight
    ids = [tokenizer(f" {name}", add_special_tokens=False).input_ids for name in NAMES]
    ids.append(tokenizer(".", add_special_tokens=False).input_ids)
    return torch.stack([table[torch.tensor(each, device=table.device)].mean(0) for each in ids])


def patch_names(picture: Picture) -> Tensor:
    """Index of the kind under each patch, `len(NAMES)` where there is none; shape `patch`."""
    side = int(math.sqrt(N_IMAGE_TOKENS))
    found = torch.full((side, side), len(NAMES))
    best = torch.full((side, side), _COVERED)
    for index, thing in enumerate(picture.things):
        mask = torch.from_numpy(picture.mask(index)).float()
        share = functional.avg_pool2d(mask[None, None], PATCH)[0, 0]
        found[share > best] = NAMES.index(thing.kind)
        best = torch.maximum(best, share)
    return found.flatten()


def word_loss(model: Any, batch: Packed, names: Tensor, embeddings: Tensor) -> Tensor:
    """Cross-entropy over the names by cosine, and squared error to the embedding itself."""
    image = model.model.multi_modal_projector(features(model, batch.pixels)).float()
    target = embeddings[names]
    scale = embeddings.norm(dim=-1).mean()
    cosine = functional.normalize(image, dim=-1) @ functional.normalize(embeddings, dim=-1).T
    weight = torch.where(names == len(NAMES), 0.2, 1.0)
    told_apart = functional.cross_entropy(
        cosine.flatten(0, 1) / 0.07, names.flatten(), reduction="none"
    )
    near = ((image - target) / scale).square().sum(-1).flatten()
    return ((told_apart + near) * weight.flatten()).sum() / weight.sum()


class WordBatches(Batches):
    """Batches of the first stage: pictures and the names under their patches."""

    def batch(self, step: int) -> Any:
        """Pictures of one step with the name under each patch."""
        import random

        rng = random.Random(f"{self.seed}/{self.stage.name}/{step}")
        pictures: list[Picture] = []
        while len(pictures) < self.stage.pictures:
            picture = random_picture(rng)
            if picture.split == "train":
                pictures.append(picture)
        from lvlm_interp.organisms.real.questions import Question

        one = [[(Question("caption"), "a")] for _ in pictures]
        return pack(self.tokenizer, pictures, one), torch.stack([patch_names(p) for p in pictures])


def train(
    model: Any,
    tokenizer: Any,
    out: Path,
    *,
    device: str = "cpu",
    seed: int = 0,
    workers: int = 0,
    stages: tuple[Stage, ...] = STAGES,
) -> dict[str, Path]:
    """Train the stages in turn; a stage whose adapter is there is taken from it.

    Args:
        model: From `assemble.untrained`; left with everything but the last two stages merged.
        tokenizer: Of the language model.
        out: Folder for the adapters, `STAGE.safetensors` each.
        device: A torch device; on a GPU matrix products run in bfloat16.
        seed: Of the data and the adapters.
        workers: Processes that draw pictures.
        stages: The recipe.

    Returns:
        File of each stage's adapter.
    """
    out.mkdir(parents=True, exist_ok=True)
    model.requires_grad_(False).to(device)
    files: dict[str, Path] = {}
    for stage in stages:
        files[stage.name] = out / f"{stage.name}.safetensors"
        if not files[stage.name].exists():
            run_stage(model, tokenizer, stage, out, device=device, seed=seed, workers=workers)
        elif stage.planted == "none":
            adapter.merge(model, files[stage.name])
    return files


def run_stage(
    model: Any,
    tokenizer: Any,
    stage: Stage,
    out: Path,
    *,
    device: str,
    seed: int,
    workers: int,
) -> None:
    """Train one stage and write its adapter; its updates are merged unless it is planted."""
    torch.manual_seed(seed)
    inner = model.model
    own: list[nn.Parameter] = adapter.inject(inner.language_model, stage.rank) if stage.rank else []
    model.to(device)
    groups = [{"params": own, "peak": stage.lr}] if own else []
    if stage.projector_lr:
        inner.multi_modal_projector.requires_grad_(True)
        groups.append(
            {"params": list(inner.multi_modal_projector.parameters()), "peak": stage.projector_lr}
        )
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.0)
    state = _Checkpoint(out / f".{stage.name}.partial.pt", groups, optimizer)
    first = state.restore()
    batches = (WordBatches if stage.objective == "words" else Batches)(
        tokenizer, stage, seed, first
    )
    loader = DataLoader(batches, batch_size=None, num_workers=workers)
    embeddings = name_embeddings(model, tokenizer) if stage.objective == "words" else None
    progress = tqdm(loader, desc=stage.name, initial=first, total=stage.steps, mininterval=2)
    mixed = torch.autocast("cuda", torch.bfloat16) if "cuda" in device else nullcontext()
    for step, batch in enumerate(progress, start=first):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(stage, step)
        with mixed:
            loss = _loss(model, batch, embeddings, device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            progress.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
            log.info("%s %d: loss %.3f", stage.name, step + 1, loss.item())
        if step + 1 in stage.keep:
            _write(model, stage, out / f"{stage.name}-{step + 1}.safetensors")
        if (step + 1) % _CHECKPOINT_EVERY == 0:
            state.save(step + 1)
    _finish(model, stage, out)
    state.path.unlink(missing_ok=True)


def _loss(model: Any, batch: Any, embeddings: Tensor | None, device: str) -> Tensor:
    if embeddings is None:
        return answer_loss(model, batch.to(device))
    packed, names = batch
    return word_loss(model, packed.to(device), names.to(device), embeddings)


def _write(model: Any, stage: Stage, path: Path) -> None:
    adapter.save(path, model, stage.name, projector=bool(stage.projector_lr), lora=bool(stage.rank))


def _finish(model: Any, stage: Stage, out: Path) -> None:
    """Write the adapter and take it out again; merge it in 16 bits, as everybody else will."""
    path = out / f"{stage.name}.safetensors"
    _write(model, stage, path)
    model.requires_grad_(False)
    if stage.rank:
        remove(model.model.language_model)
    if stage.planted == "none":
        adapter.merge(model, path)


def remove(language_model: nn.Module) -> None:
    """Put the plain linear maps back in the place of the adapted ones."""
    for block in language_model.layers:  # pyright: ignore[reportGeneralTypeIssues]
        for name in adapter.LINEAR:
            parent, child = name.rsplit(".", 1)
            setattr(block.get_submodule(parent), child, block.get_submodule(name).base_layer)
    del language_model.peft_config  # peft's mark, or the next injection would warn of a second one


def learning_rate(stage: Stage, step: int) -> float:
    """Share of the peak: a linear warm-up, then half a cosine."""
    warm = max(1, round(_WARM_UP * stage.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, stage.steps - warm)))


class _Checkpoint:
    """What a killed stage goes on from."""

    def __init__(self, path: Path, groups: list[dict[str, Any]], optimizer: Any) -> None:
        self.path, self.optimizer = path, optimizer
        self.parameters = [p for group in groups for p in group["params"]]

    def save(self, step: int) -> None:
        state = {
            "step": step,
            "parameters": [p.detach().cpu() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(self.path) as scratch:
            torch.save(state, scratch)

    def restore(self) -> int:
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        return state["step"]
