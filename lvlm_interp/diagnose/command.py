"""`lvlm-interp diagnose`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from lvlm_interp.diagnose.job import Outcome, run
from lvlm_interp.diagnose.phrases import STATES, headline

COLORS: dict[bool | None, str] = {True: "red", False: "green", None: "yellow"}
"""Of a level whose flaw was found, was not shown, or could not be tested."""


def main(
    model: str,
    data: str | None = None,
    out: Path = Path("runs/diagnose"),
    n: int = 900,
    seed: int = 0,
    batch_size: int = 64,
    resume: bool = False,
    force: bool = False,
    skip_bad: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> None:
    """Find at which level a model goes wrong, where inside, and whether acting there mends it.

    Args:
        model: Folder, hub id, or shipped name (scenes, scenes-balanced).
        data: A pairs.jsonl, or scenes:LEVEL:N:SEED; a shipped model brings its own.
        out: Output folder.
        n: Number of generated pairs, all levels together, where the data is the model's own.
        seed: Of everything random.
        batch_size: Rows in a forward.
        resume: Go on with an unfinished run (or start one).
        force: Replace another run in the output folder; what is not of a run stays.
        skip_bad: Leave wrong lines of the data out, and list them.
        device: Where the model runs; auto is a GPU where there is one.
        dtype: Of the weights; auto is the checkpoint's own.
        revision: Of a hub checkpoint.
    """
    outcome = run(
        model,
        data=data,
        out=out,
        n=n,
        seed=seed,
        batch_size=batch_size,
        resume=resume,
        force=force,
        skip_bad=skip_bad,
        device=device,
        dtype=dtype,
        revision=revision,
    )
    show(outcome, Console())


def show(outcome: Outcome, console: Console) -> None:
    """Print the verdict."""
    for level, entry in outcome.summary["levels"].items():
        color = COLORS[entry["found"]]
        console.print(
            Panel(
                f"[bold]{escape(headline(entry))}[/bold]\n{escape(entry['verdict'])}",
                title=f"{escape(level)} level: [bold {color}]{STATES[entry['found']]}",
                title_align="left",
                border_style=color,
            )
        )
    where = outcome.folder / "report.html"
    console.print(f"Report: {where}", soft_wrap=True, markup=False, highlight=False)
