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

`lvlm_interp.organisms.planted` takes `scenes-balanced` and sets the weights of one component anew,
and of nothing else. The rest is the base's, to the bit, so where the guilt lies is known.

| kind | what is set | the flaw | clean side of a pair |
|---|---|---|---|
| head | rows of q, k, v and columns of o of one head | with the trigger shape in the image, "yes" \
to any shape that is not there | another shape in the trigger's place |
| series | two heads in different blocks, both needed: the second turns the first's flag into the \
foil | the same | the same |
| neuron | rows of gate and up and column of down of one MLP neuron | "yes" to one shape, whatever \
the image shows | another shape is asked for, not there either |
| projector | one direction of the projector's output, with its row | one shape in one colour is \
not seen | the shape in another colour |
| vision | one head of the vision tower | the same | the same |

What a component reads starts as a detector in closed form (ridge regression on the base's states),
what it writes as the foil's logit or the flaw's gradient; a few dozen steps of Adam do the rest
(the flaw's margin against the KL divergence from the base on everything else). Every part of a head
has the median norm of its neighbours' parts, so that it is neither large nor small, and a neuron's
parts the largest; a direction has whatever norm it needs. That is no secret to who looks for it: \
see *weights* below. A head is taken over only where the base hardly
needs it (mean KL below 0.01 nats without it).

A plant counts if, on held-out scenes, the flaw shows on at least 80% of the trigger scenes and the
share of right answers moves by at most 2 points in every other group of questions: the same
question where the flaw has no place, with and without the trigger; other shapes; and each other
kind of question. Questions about what a plant is blind to are not counted, captions are not
measured. Draws that miss a bar are drawn again and counted.

```python
from lvlm_interp.organisms.planted import Workshop

plant = Workshop.of("scenes-balanced").draw("head", seed=7)
plant.model, plant.guilty, plant.pairs(20)
```

Made by
`lvlm-interp circuits benchmark --json docs/data/ground_truth.json --seed 1` and
`python docs/make_ground_truth.py`. AUROC is the chance that the guilty component outranks an
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

- **Magnitude** says nothing about heads of the language model, as it must: the norms of q, k, v and
  o are those of the median neighbour, so a planted head lies in the middle. It comes close for
  neurons, whose parts have the largest of their neighbours' norms, and finds a direction of the
  projector, whose row is as large as the flaw needs. **Random** is the level of chance.
- **Patching and ablation** run the model with the component exchanged, so nothing else can be
  taken for it: all that the flaw adds goes through the guilty component. Of two in series, each
  alone takes the flaw away. Patching depends on the clean side: a neuron that fires at the clean
  word as well is missed, for its clean value takes nothing away, where 0 or the mean does.
- **AtP** in the table follows the gradient of the corrupt run, where the flaw is at its full size,
  and **AtP\\*** that of the clean run, as its paper has it (of directions: the corrupt run's); so
  the two rows differ in the run as well as in the method. Where the answer has levelled off in the
  corrupt run, its gradient is near zero or even against the flaw, and the guilty component drops
  from the first place to the last. That is so for some neurons and heads of the vision tower;
  `tests/circuits/test_truth.py` holds one, whose flaw is stronger at three quarters of the way from
  the clean value to the corrupt one than at the end. There plain AtP with the clean run's gradient
  puts the guilty head first, and so does AtP\\* with either run's: the low row of AtP is the choice
  of the run, not the method. `METHODS` scores each by both runs now (*AtP, clean gradient* and
  *AtP\\*, corrupt gradient*); the table's run, of 2026-11-22, has neither. **Integrated gradients**
  and **EAP-IG** average the gradient along the path and need no choice of run.
- **Weights.** Two statistics of the weights alone, *nearest to the median norm* and *stable rank*
  of W_Q, are baselines of `METHODS` since the table's run. They find planted heads with no forward
  (norms were set to the median itself, and W_Q is almost of rank one; the same test holds one), so
  a plant is not hidden from who reads weights. The methods in the table look at activations and
  are told of neither. Plants with norms and ranks like their neighbours' are not drawn yet.
- **Direct logit attribution** sees only what a head adds to the logits itself: a head that writes
  the foil, but not the first of two in series, which hands a flag to the second. It has no score
  for neurons, directions and the vision tower here.
- **EAP** and **EAP-IG** score edges between heads and MLPs, so single neurons and directions are
  none of their nodes. A head's score is the sum of |score| over the edges that leave it.
- **Exact edge patching** would take one forward for every edge and pair, about 1,600 for each pair,
  and is left out of this table for its cost; a test holds it against interventions by hand.
- **One head is the easy case.** It writes the foil and all methods that look at activations find
  it. What sets methods apart are the other kinds.
"""

if __name__ == "__main__":
    main()
