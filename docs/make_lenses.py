"""Writes docs/lenses.md: how good the lenses are on both shipped models.

Run from the repository's root: `python docs/make_lenses.py`. It reads the tables of `figures/data`,
which `python figures/make_data.py tuned_lens localisation detection ablation` measures.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "figures"))

from tables import read  # noqa: E402

METRICS = {"pointing": "pointing game", "auroc": "AUROC", "iou": "IoU"}
SCORES = {
    "internal_confidence": "internal confidence",
    "output_probability": "output probability",
    "shuffled": "shuffled labels",
}
HEAD = """# How good the lenses are

Made by `python docs/make_lenses.py` from the tables that
`python figures/make_data.py tuned_lens localisation detection ablation` measures on the shipped
models. Brackets are 95% intervals that resample whole scenes.
"""


def cell(row: pd.Series) -> str:
    """An estimate with its interval."""
    if pd.isna(row["low"]):
        return f"{row['estimate']:.2f}"
    return f"{row['estimate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def grid(frame: pd.DataFrame, rows: list[str], columns: str) -> str:
    """A Markdown table: one line per value of `rows`, one column per value of `columns`."""
    names = list(dict.fromkeys(frame[columns]))
    lines = [
        f"| {' | '.join([*rows, *map(str, names)])} |",
        "|---" * (len(rows) + len(names)) + "|",
    ]
    for key, part in frame.groupby(rows, sort=False):
        found = {row[columns]: cell(row) for _, row in part.iterrows()}
        cells = [*map(str, key), *(found.get(name, "") for name in names)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def localisation() -> str:
    """Where a word lights up, and the sentence that the numbers give."""
    frame = read("localisation").replace({"metric": METRICS})
    balanced = frame[(frame["model"] == "scenes-balanced") & (frame["metric"] == "pointing game")]
    said = []
    for word in ("color", "shape"):
        mine = balanced[balanced["word"] == word].set_index("method")
        for lens in ("logit lens", "tuned lens"):
            gain = 100 * mine.loc[f"{lens} minus chance", ["estimate", "low", "high"]]
            said.append(
                f"- the {lens} of the {word}: {100 * mine.loc[lens, 'estimate']:.0f}% of scenes, "
                f"{gain['estimate']:.0f} [{gain['low']:.0f}, {gain['high']:.0f}] above chance"
            )
    n = int(balanced["n"].max())
    sentences = "\n".join(said)
    return f"""
## Does a word light up where its object is?

Heat of a patch is the largest probability of the object's colour or shape over the layers
(`li.lens.localise`); {n} scenes per cell. On `scenes-balanced` the hottest patch lies on the object
(gains in points):

{sentences}

{grid(frame, ["model", "word", "method"], "metric")}
"""


def detection() -> str:
    """Internal confidence as a detector."""
    frame = read("detection").replace({"score": SCORES})
    missing = set(frame["model"]) - set(frame.loc[frame["label"] == "answer right", "model"])
    note = "".join(
        f" `{name}` answered every question right, so there it has nothing to tell apart."
        for name in sorted(missing)
    )
    return f"""
## Does internal confidence find absent objects and wrong answers?

AUROC (`li.lens.internal_confidence(...).detect`) of questions whether an object is there,
{int(frame["n"].max())} questions a cell.{note}

{grid(frame, ["model", "score"], "label")}
"""


def tuned_lens() -> str:
    """Held-out KL of both lenses."""
    frame = read("tuned_lens")
    names = {"kl_logit": "logit lens", "kl_tuned": "tuned lens"}
    frame = frame.assign(lens=frame["metric"].map(names), layer=frame["layer"].astype(int))
    wide = frame.pivot(index=["model", "layer"], columns="lens", values="estimate")
    lower = (wide["tuned lens"] < wide["logit lens"]).all()
    return f"""
## Is the tuned lens nearer to the model?

KL(model || lens) in nats on {int(frame["n"].max())} scenes that the lens was not trained on
(`li.lens.compare_lenses`). The last layer needs no translator. The tuned lens is
{"lower in every layer of both models" if lower else "not lower in every layer"}.

{grid(frame, ["model", "layer"], "lens")}
"""


def ablation() -> str:
    """What the answer loses without tokens, by level."""
    frame = read("ablation")
    frame = frame.assign(tokens=frame["position"].replace({"none": "none (intact)"}))
    parts = []
    for metric, what in (
        ("correct", "Share of questions in which the answer stays above the foil"),
        ("change", "Change of logit(answer) - logit(foil), in logits"),
    ):
        mine = frame[(frame["metric"] == metric)]
        mine = mine if metric == "correct" else mine[mine["position"] != "none"]
        parts.append(f"{what}:\n\n{grid(mine, ['model', 'level'], 'tokens')}\n")
    n = int(frame.loc[frame["position"] == "none", "n"].max())
    return f"""
## Which image tokens does the answer need?

Tokens are replaced by the mean image token where they enter the language model
(`li.lens.token_ablation`), {n} questions a level; `random` is five draws of as many tokens outside
of the object.

{chr(10).join(parts)}"""


def main() -> None:
    """Write the page."""
    from lvlm_interp.files import atomic_write

    sections = [localisation(), tuned_lens(), detection(), ablation()]
    atomic_write(ROOT / "docs" / "lenses.md", HEAD + "".join(sections))


if __name__ == "__main__":
    main()
