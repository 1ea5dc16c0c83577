"""Training of the organisms, stage by stage, from nothing: seeded, resumable, CPU or GPU."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from lvlm_interp.errors import UsageError
from lvlm_interp.organisms.architecture import Sizes, build_model, normalise, save_folder
from lvlm_interp.organisms.batches import Batch, collate, draw, questions_about
from lvlm_interp.organisms.contrast import ContrastHeads, contrast_loss
from lvlm_interp.organisms.questions import KINDS, Question, truth
from lvlm_interp.organisms.recipe import MODELS, STAGES, Stage
from lvlm_interp.organisms.scenes import Scene, random_scene
from lvlm_interp.organisms.spare import Confined, confine, spare_heads

log = logging.getLogger(__name__)

EVALUATE_EVERY = 200
CHECKPOINT_EVERY = 100
_HELD_OUT_SCENES = 160
_SPARE_BATCHES = 4


@dataclass
class Run:
    """What the stages share while they train.

    Attributes:
        out: Where stages and models are written.
        device: "cpu" or "cuda".
        seed: Seed of weights and data.
        resume: Whether a checkpoint found under `out` is continued.
        evaluate_every: Steps between two looks at the held-out scenes.
    """

    out: Path
    device: str
    seed: int
    resume: bool
    evaluate_every: int = EVALUATE_EVERY


def train(
    out: str | Path,
    *,
    model: str = "all",
    seed: int = 0,
    device: str = "cpu",
    resume: bool = True,
    scale: float = 1.0,
    sizes: Sizes | None = None,
    stages: tuple[Stage, ...] = STAGES,
) -> dict[str, Path]:
    """Trains the organisms and writes each as a Hugging Face folder.

    Args:
        out: Folder for the models (`out/<model>`), the stages (`out/stages/<stage>`) and the
            checkpoint of a run under way (`out/checkpoint.pt`).
        model: "scenes", "scenes-balanced", or "all".
        seed: Seed of weights and data; on CPU the same seed gives the same weights.
        device: A torch device.
        resume: Continue what `out` holds: finished stages are not run again, and a killed stage
            goes on from its last checkpoint with the data it would have seen.
        scale: Multiplies the steps of every stage; below 1 for smoke tests.
        sizes: Widths and depths of the model.
        stages: The recipe; the last stage is run once for each model.

    Returns:
        The folder of each model trained.

    Raises:
        ValueError: `model` is none of those.
    """
    if model != "all" and model not in MODELS:
        raise ValueError(f"model must be one of all, {', '.join(MODELS)}, got {model!r}")
    run = Run(Path(out), device, seed, resume)
    stages = tuple(replace(stage, steps=max(1, round(stage.steps * scale))) for stage in stages)
    lvlm: Any = build_model(sizes or Sizes(), seed)
    lvlm.to(device)
    for stage in stages[:-1]:
        _run_or_load(run, stage, lvlm, run.out / "stages" / stage.name, planted=False)
    base = {name: tensor.clone() for name, tensor in lvlm.state_dict().items()}
    folders = {}
    for name, planted in MODELS.items():
        if model in ("all", name):
            lvlm.load_state_dict(base)
            folders[name] = run.out / name
            _run_or_load(run, stages[-1], lvlm, folders[name], planted=planted)
    return folders


def _run_or_load(
    run: Run, stage: Stage, model: LlavaForConditionalGeneration, folder: Path, *, planted: bool
) -> None:
    """Brings `model` to the end of a stage: from its folder if it is finished, else by training."""
    if run.resume and (folder / "model.safetensors").exists():
        done = LlavaForConditionalGeneration.from_pretrained(folder)
        model.load_state_dict(done.state_dict())
        log.info("stage %s: taken from %s", stage.name, folder)
        return
    if folder.exists() and not (folder / "model.safetensors").is_file():
        raise UsageError(f"{folder} is in the way and holds no model: name another --out.")
    _train_stage(run, stage, model, planted, key=f"{stage.name}/{folder.name}")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_folder(model, partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    (run.out / "checkpoint.pt").unlink(missing_ok=True)


def _train_stage(
    run: Run, stage: Stage, model: LlavaForConditionalGeneration, planted: bool, key: str
) -> None:
    model.train()
    heads = _heads(run, stage, model)
    trained = _select(model, stage.trains) + list(heads.parameters() if heads else ())
    optimizer = _optimizer(stage, model, trained)
    confined = _confined(run, stage, model)
    first = _restore(run, key, model, heads, optimizer)
    progress = tqdm(range(first, stage.steps), desc=key, initial=first, total=stage.steps)
    for step in progress:
        rng = random.Random(f"{run.seed}/{stage.name}/{step}")
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(stage, step)
        loss, note = _loss(stage, model, heads, rng, step, planted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if confined is not None:
            confined.restore()
        progress.set_postfix_str(f"loss {loss.item():.3f} {note}", refresh=False)
        last = step + 1 == stage.steps
        if (step + 1) % run.evaluate_every == 0 or last:
            log.info("%s %d: loss %.3f %s", key, step + 1, loss.item(), note)
            if stage.objective != "contrast":
                text = stage.objective == "text"
                accuracy = held_out_accuracy(model, described=text)
                log.info("%s %d: %s", key, step + 1, format_accuracy(accuracy))
        if (step + 1) % CHECKPOINT_EVERY == 0 and not last:
            _checkpoint(run, key, step + 1, model, heads, optimizer)
    model.requires_grad_(True)


def _confined(run: Run, stage: Stage, model: LlavaForConditionalGeneration) -> Confined | None:
    """Returns what keeps a stage to the heads it may move, or None if it moves whole matrices.

    Which heads are spare is measured on the stage's own scenes with true answers, so that both
    models move the same ones.
    """
    if not any(stage.heads):
        return None
    rng = random.Random(f"{run.seed}/{stage.name}/spare")
    kinds = stage.phases[-1].kinds
    batches = [
        collate([draw(rng, stage, kinds, False) for _ in range(stage.batch)], isolated=True)
        for _ in range(_SPARE_BATCHES)
    ]

    def loss() -> float:
        return sum(answer_loss(model, batch)[0].item() for batch in batches)

    heads = spare_heads(model, loss, stage.heads)
    log.info("%s: moves the heads %s", stage.name, " ".join(f"{a}.{b}" for a, b in heads))
    return confine(model, heads)


def _optimizer(
    stage: Stage, model: LlavaForConditionalGeneration, trained: list[torch.nn.Parameter]
) -> torch.optim.AdamW:
    """Returns AdamW with the vision tower in a group of its own."""
    tower = {id(parameter) for parameter in model.model.vision_tower.parameters()}
    groups = [
        {"params": [p for p in trained if (id(p) in tower) == inside], "peak": stage.lr * factor}
        for inside, factor in ((False, 1.0), (True, stage.tower_lr))
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.01)


def learning_rate(stage: Stage, step: int) -> float:
    """Returns the factor on the highest rate: linear warm-up, flat, cosine down to 3%."""
    warm = min(1.0, (step + 1) / max(1, min(stage.warmup, stage.steps // 4)))
    start = stage.hold * stage.steps
    if step <= start:
        return warm
    share = (step - start) / max(1.0, stage.steps - start)
    return warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share)))


def _loss(
    stage: Stage,
    model: LlavaForConditionalGeneration,
    heads: ContrastHeads | None,
    rng: random.Random,
    step: int,
    planted: bool,
) -> tuple[Tensor, str]:
    """Returns the loss of one step and a few words about it."""
    if heads is not None:
        loss, right = contrast_loss(model, heads, rng, stage.batch)
        return loss, f"regions {right:.1%}"
    share = step / stage.steps
    kinds = next(phase.kinds for phase in stage.phases if share < phase.until)
    items = [draw(rng, stage, kinds, planted) for _ in range(stage.batch)]
    isolated = rng.random() >= stage.chat_share
    described = rng if stage.objective == "text" else None
    batch = collate(items, isolated=isolated, described=described)
    loss, right = answer_loss(model, batch)
    return loss, f"tokens {right.float().mean().item():.1%}"


def answer_loss(model: LlavaForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns the weighted cross-entropy of a batch, and which target tokens came first."""
    device = model.device
    hidden = hidden_states(model, batch)[:, :-1]
    weight = torch.from_numpy(batch.weight).to(device)[:, 1:]
    targets = torch.from_numpy(batch.ids).to(device)[:, 1:]
    keep = weight > 0
    logits = model.lm_head(hidden[keep])
    losses = functional.cross_entropy(logits, targets[keep], reduction="none")
    loss = (losses * weight[keep]).sum() / weight[keep].sum()
    return loss, logits.argmax(-1) == targets[keep]


def hidden_states(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """Returns the last hidden states (batch, pos, d_model) of the language model."""
    device = model.device
    inputs = {
        "input_ids": torch.from_numpy(batch.ids).to(device),
        "position_ids": torch.from_numpy(batch.position).to(device),
        "use_cache": False,
    }
    if batch.isolated:
        inputs["attention_mask"] = isolation_mask(torch.from_numpy(batch.segment).to(device))
    if batch.pixels is None:
        return model.model.language_model(**inputs).last_hidden_state
    pixels = normalise(torch.from_numpy(batch.pixels).to(device))
    return model.model(pixel_values=pixels, **inputs).last_hidden_state


def isolation_mask(segment: Tensor) -> Tensor:
    """Returns which keys each query sees, bool (batch, 1, query, key).

    Causal, and a question sees segment 0 (the image) and itself: many single-turn prompts for
    the price of one pass over the image.
    """
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    same = segment[:, :, None] == segment[:, None, :]
    return ((same | (segment == 0)[:, None, :]) & causal).unsqueeze(1)


@torch.no_grad()
def held_out_accuracy(
    model: LlavaForConditionalGeneration, seed: int = 12345, *, described: bool = False
) -> dict[str, float]:
    """Returns per kind of question the share of answers right on held-out scenes.

    Args:
        model: The model.
        seed: Of scenes and questions.
        described: Show the scenes in words (and some not at all) instead of as images.
    """
    model.eval()
    rng = random.Random(seed)
    counts = {kind: [0, 0] for kind in KINDS}
    kinds = dict.fromkeys(KINDS, 1.0)
    for _ in range(_HELD_OUT_SCENES // 32):
        scenes = [eval_scene(lambda: random_scene(rng)) for _ in range(32)]
        asked = [questions_about(rng, scene, kinds, 14) for scene in scenes]
        for question, right in _teacher_forced(model, scenes, asked, rng if described else None):
            counts[question.kind][0] += right
            counts[question.kind][1] += 1
    model.train()
    return {kind: right / max(1, n) for kind, (right, n) in counts.items()}


def eval_scene(draw_scene: Callable[[], Scene]) -> Scene:
    """Returns the first scene drawn that belongs to the evaluation split."""
    while True:
        scene = draw_scene()
        if scene.split == "eval":
            return scene


def _teacher_forced(
    model: LlavaForConditionalGeneration,
    scenes: list[Scene],
    asked: list[list[Question]],
    described: random.Random | None,
) -> list[tuple[Question, bool]]:
    """Returns for every question whether all tokens of its true answer come first."""
    items = [
        (scene, [(question, truth(scene, question)) for question in some])
        for scene, some in zip(scenes, asked, strict=True)
    ]
    batch = collate(items, isolated=True, described=described)
    best = model.lm_head(hidden_states(model, batch)).argmax(-1).cpu().numpy()
    right = (best[:, :-1] == batch.ids[:, 1:]) | (batch.weight[:, 1:] == 0)
    found = []
    for row, (_, answered) in enumerate(items):
        for index, (question, _) in enumerate(answered):
            found.append((question, bool(right[row][batch.segment[row, 1:] == index + 1].all())))
    return found


def format_accuracy(accuracy: dict[str, float]) -> str:
    """Returns the accuracies in one line for the log."""
    return "  ".join(f"{kind} {value:.2f}" for kind, value in accuracy.items())


def _select(model: torch.nn.Module, prefixes: tuple[str, ...]) -> list[torch.nn.Parameter]:
    """Freezes all but the parameters under the prefixes, and returns those."""
    patterns = [re.compile(re.escape(p).replace(r"\*", "[^.]+")) for p in prefixes]
    chosen = []
    for name, parameter in model.named_parameters():
        moves = any(pattern.match(name) for pattern in patterns)
        parameter.requires_grad_(moves)
        if moves:
            chosen.append(parameter)
    return chosen


def _heads(run: Run, stage: Stage, model: Any) -> ContrastHeads | None:
    if stage.objective != "contrast":
        return None
    torch.manual_seed(run.seed + 1)
    config = model.config
    return ContrastHeads(config.vision_config.hidden_size, config.text_config.hidden_size).to(
        run.device
    )


def _checkpoint(run: Run, key: str, step: int, model, heads, optimizer) -> None:
    run.out.mkdir(parents=True, exist_ok=True)
    partial = run.out / "checkpoint.pt.partial"
    state = {"key": key, "step": step, "seed": run.seed, "model": model.state_dict()}
    state["heads"] = heads.state_dict() if heads else None
    state["optimizer"] = optimizer.state_dict()
    torch.save(state, partial)
    os.replace(partial, run.out / "checkpoint.pt")


def _restore(run: Run, key: str, model, heads, optimizer) -> int:
    """Loads the checkpoint of this stage if there is one; returns the step to go on with."""
    path = run.out / "checkpoint.pt"
    if not run.resume or not path.exists():
        return 0
    state = torch.load(path, map_location=run.device)
    if state["key"] != key or state["seed"] != run.seed:
        return 0
    model.load_state_dict(state["model"])
    if heads:
        heads.load_state_dict(state["heads"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("%s: goes on from step %d", key, state["step"])
    return state["step"]
