"""Writes docs/ground_truth.md: where the truth comes from, and every method's score on plants.

Run from the repository's root after `lvlm-interp circuits benchmark --json
docs/data/ground_truth.json`: `python docs/make_ground_truth.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DATA = ROOT / "docs" / "data" / "ground_truth.json"

HEAD = """# Ground truth

Every localisation method is scored where the answer is known.

| where the truth comes from | what it tests |
|---|---|
| `scenes` and `scenes-balanced`: two models from one recipe, one with planted flaws at three \
levels | behaviour, probes, patching, interventions, the verdict of `diagnose` |
| planted components: the table below | patching, attribution, circuits |
| exact masks and boxes of generated scenes | localisation of words, token ablation |
| a model in which one head of one layer copies one image token's value (built in the tests) | \
relevance falls on that token, all others below one millionth of it |
| words added to the last residual stream at known tokens (built in the tests) | localisation \
finds them exactly; attention, which lies before, stays as it was |
| transformers' own eager attention and its gradients | attention maps, rollout, relevance |
| the model's own logits | the last layer's lens, to 1e-5 |
| the closed form of two linear blocks | patching and attribution patching |

The card of the shipped models lies beside their weights and gives recipe, data and error rates with
intervals.

## Planted components

`lvlm_interp.organisms.planted` takes `scenes-balanced` and fits the weights of one component anew,
and of nothing else: the rows of q, k, v and the columns of o of one head; of two heads, each of
which is needed; the rows and the column of one MLP neuron; one direction of the projector with its
row; one head of the vision tower. With a trigger shape in the image a planted head says "yes" to
whatever shape is asked for that is not there; a neuron and a direction to one partner shape; a
vision head makes the model blind to one partner shape. The rest of the weights is the base's, to
the bit, so where the guilt lies is known. Heads and neurons have the median norm of their
neighbours, part by part; a direction keeps the norm that it had. A plant counts if, on held-out
scenes, the flaw shows on at least 80% of the trigger scenes and the share of right answers moves
by at most 2 points in every other group of questions: the same question with the partner as it is
said to be, or without the trigger; other shapes; and each other kind of question. Captions are not
measured. Shapes, block and unit are drawn from a seed, heads among the half of each inner block's
heads that the base needs least; draws that miss a bar are drawn again and counted.

```python
from lvlm_interp.organisms.planted import Workshop

plant = Workshop.of("scenes-balanced").draw("head", seed=7)
plant.model, plant.guilty, plant.pairs(20)
```

Made by
`lvlm-interp circuits benchmark --json docs/data/ground_truth.json --seed 1 --kinds head --n 55`
and `python docs/make_ground_truth.py`. AUROC is the chance that the guilty component outranks an
innocent one of its kind; *first* is the share of plants in which the guilty come first (of two,
both in front of all others). Cost is in forwards over one pair, a backward counting as two.
Brackets are 95% intervals over plants.
"""

KINDS = {
    "head": "One head of the language model",
    "series": "Two heads in series",
    "neuron": "One MLP neuron",
    "projector": "One direction of the projector",
    "vision": "One head of the vision tower",
}


def interval(row: dict[str, Any], digits: int) -> str:
    """Estimate and interval."""
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def section(kind: str, rows: dict[tuple[str, str], dict[str, Any]]) -> str:
    """What was drawn of a kind, and the methods' table."""
    from lvlm_interp.circuits.localisers import METHODS

    plants = {measure: row for (case, measure), row in rows.items() if case == f"{kind}/plants"}
    if "yield" not in plants:
        return ""
    n, first = plants["shows"]["n"], plants["yield"]
    lines = [
        f"### {KINDS[kind]}",
        "",
        f"{n} plants, {100 * first['value']:.0f}% of the draws met the bars. The flaw shows on "
        f"{100 * plants['shows']['value']:.1f}% of the trigger scenes; the group that moves most "
        f"moves by {100 * plants['moves']['value']:.1f} points on average. "
        f"{plants['CPU seconds']['value']:.0f} CPU seconds a plant, all methods included.",
        "",
        "| method | AUROC | first | forwards |",
        "|---|---|---|---:|",
    ]
    for name in METHODS:
        case = f"{kind}/{name}"
        if (case, "auroc") not in rows:
            continue
        area, top = rows[case, "auroc"], rows[case, "rank1"]
        cost = rows[case, "forwards"]["value"]
        lines.append(f"| {name} | {interval(area, 3)} | {interval(top, 2)} | {cost:,.0f} |")
    return "\n".join([*lines, ""])


def unscored(kinds: Iterable[str]) -> str:
    """Which kinds the table does not hold."""
    named = ", ".join(KINDS[kind].lower().replace("mlp", "MLP") for kind in kinds)
    if not named:
        return ""
    return (
        f"### Not scored yet\n\nNo plants of these kinds are in the table: {named}. The generator "
        "draws them, but a figure stands here only once enough draws have met the bars above.\n"
    )


def main() -> None:
    """Write the page."""
    from lvlm_interp.files import atomic_write

    rows = {(row["case"], row["measure"]): row for row in json.loads(DATA.read_text())}
    sections = {kind: section(kind, rows) for kind in KINDS}
    parts = [HEAD, *sections.values(), unscored(kind for kind in KINDS if not sections[kind])]
    parts.append(READING)
    atomic_write(ROOT / "docs" / "ground_truth.md", "\n".join(part for part in parts if part))


READING = """## How to read it

- **Magnitude** says nothing, as it must: the norms of q, k, v and o are those of the median
  neighbour, so a planted head lies in the middle. **Random** is the level of chance.
- **Patching and ablation** run the model with the component exchanged, so nothing else can be
  taken for it: all that the flaw adds goes through the guilty head.
- **Attribution** (AtP, EAP) follows the gradient of one run, where a head that merely passes the
  flaw on can look larger than the one that brings it in. Averaging the gradient along the path
  (integrated gradients, EAP-IG) mends most of that. **AtP\\*** adds up sizes over several
  gradients and pairs, on the clean run as its paper has it; it misses its bar of 0.95 first too. In
  the misses that were looked at, a head of the last block that reads the planted one came first.
- **Direct logit attribution** sees only what a head adds to the logits itself. It finds a head
  behind which little happens and misses one whose message an MLP turns into the answer. It has no
  score for neurons, directions and the vision tower here.
- **EAP** and **EAP-IG** score edges between heads and MLPs, so single neurons and directions are
  none of their nodes. A head's score is the sum of |score| over the edges that leave it.
- **Exact edge patching** would take one forward for every edge and pair, about 1,600 for each pair,
  and is left out of this table for its cost; a test holds it against interventions by hand.
"""

if __name__ == "__main__":
    main()
