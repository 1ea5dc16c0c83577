"""`lvlm-interp organisms train` and `lvlm-interp organisms evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from lvlm_interp.organisms import WEIGHTS


def train(
    out: Path = Path("runs/organisms"),
    model: Literal["all", "scenes", "scenes-balanced"] = "all",
    seed: int = 0,
    device: str = "cpu",
    resume: bool = True,
    threads: int = 1,
) -> None:
    """Train the shipped models from nothing, stage by stage.

    Args:
        out: Folder for models, stages and the checkpoint of a run under way.
        model: Which to train.
        seed: Of weights and data; the shipped ones have 0.
        device: A torch device.
        resume: Go on with what the folder holds.
        threads: Of torch; the shipped models were trained on one, and the last bits depend on it.
    """
    import torch

    from lvlm_interp.organisms.train import train as run

    torch.set_num_threads(threads)
    for name, folder in run(out, model=model, seed=seed, device=device, resume=resume).items():
        sys.stdout.write(f"{name}: {folder}\n")


def evaluate(weights: Path = WEIGHTS, n: int = 1000, seed: int = 0, device: str = "cpu") -> None:
    """Measure both models on held-out scenes and write the model card beside their weights.

    Args:
        weights: Folder that holds a folder per model, as `organisms train` writes it.
        n: Scenes of each kind.
        seed: Of the scenes.
        device: A torch device.
    """
    from lvlm_interp.organisms.card import write_model_card

    card = write_model_card(weights, n=n, seed=seed, device=device)
    sys.stdout.write(f"{card}\n")
