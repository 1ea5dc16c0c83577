"""`lvlm-interp attribute`."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from lvlm_interp.errors import UsageError
from lvlm_interp.files import atomic_write


def main(
    model: str,
    data: str | None = None,
    out: Path = Path("runs/attribute"),
    image_off: str = "balanced",
    n: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    skip_bad: bool = False,
) -> None:
    """Share each answer of a model out among the image, the prompt and the model's prior.

    Args:
        model: Folder, hub id, or shipped name.
        data: Rows or pairs, as every command takes them; `question` beside `prompt` names the bare
            question, without it the prompt is not tested.
        out: Folder for sources.parquet (every token), answers.csv and means.csv.
        image_off: What stands for no image: balanced, text_only, mean, grey or knockout.
        n: Take the first so many examples.
        batch_size: Rows in a forward.
        seed: Of the choice of donors and of the intervals.
        skip_bad: Leave wrong lines out.
    """
    from lvlm_interp.attribution.sources import three_sources
    from lvlm_interp.data.sources import load_examples
    from lvlm_interp.models.loading import load_model

    if data is None:
        raise UsageError("attribute needs --data: rows or pairs, such as scenes:object:40:0.")
    examples = load_examples(data, skip_bad=skip_bad)[:n]
    found = three_sources(
        load_model(model), examples, image_off=image_off, batch_size=batch_size, seed=seed
    )
    out.mkdir(parents=True, exist_ok=True)
    found.table.to_parquet(out / "sources.parquet")
    atomic_write(out / "answers.csv", found.by_example().to_csv(index=False))
    means = found.means(seed=seed)
    atomic_write(out / "means.csv", means.to_csv(index=False))
    sys.stdout.write(f"{sentence(means, found.table.frame)}\n")


def sentence(means: pd.DataFrame, frame: pd.DataFrame) -> str:
    """What the means say, with their intervals and the baseline that was run."""
    parts = [
        f"{row.source} {row.estimate:.2f} [{row.low:.2f}, {row.high:.2f}]"
        if row.n
        else f"{row.source} not tested"
        for row in means.itertuples()
        if row.source != "image:prompt"
    ]
    ways = ", ".join(sorted(set(frame["image_off"])))
    count = frame["example"].nunique()
    return f"Nats for the answers given, mean over {count} examples (image off: {ways}): " + (
        "; ".join(parts) + "."
    )
