"""Writes docs/alignment.md: how often the null is passed without a relation, and the stages.

`python docs/make_alignment.py measure` simulates, measures the shipped checkpoints anew and stores
both in `docs/data/alignment.json` (some minutes); without the word the page is written from there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "docs" / "data" / "alignment.json"
PAGE = ROOT / "docs" / "alignment.md"
RUNS, N, WIDTH, LAYERS, PERMUTATIONS = 1200, 48, 12, (3, 4), 39
STAGE_SCENES, STAGE_SEED = 300, 11
COLUMNS = {
    "cka_in": "CKA in",
    "cka_out": "CKA out",
    "mutual_knn_in": "kNN in",
    "mutual_knn_out": "kNN out",
    "cosine_out": "raw cosine out",
    "accuracy": "right answers",
    "text_accuracy": "words for the image",
}


def unrelated(seed: int, *, classes: bool):
    """Layers of two sides that share nothing, or the class of a row alone.

    The layers of one side vary together, as those of a model do.
    """
    import numpy as np

    rng = np.random.default_rng([seed, 5])
    labels = np.arange(N) % 4
    shift = 3 * np.eye(4, WIDTH)[labels] if classes else 0.0
    sides = []
    for count in LAYERS:
        common = rng.standard_normal((N, WIDTH)) + shift
        sides.append([common + 0.7 * rng.standard_normal((N, WIDTH)) for _ in range(count)])
    return *sides, labels


def simulate() -> list[dict]:
    """Share of p at most .05 and mean score without a relation, by metric and null."""
    import torch

    from lvlm_interp.alignment import calibrated
    from lvlm_interp.alignment.null import judge
    from lvlm_interp.alignment.shifts import shifted_pairs
    from lvlm_interp.stats import wilson

    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for seed in range(RUNS):
        x, y, _ = unrelated(seed, classes=False)
        options = {"n_permutations": PERMUTATIONS, "seed": seed}
        for metric in ("mutual_knn", "cka"):
            one = calibrated(metric, x[0], y[0], **options)
            found.setdefault((metric, "one pair of layers"), []).append((one.p, one.score))
            most = calibrated(metric, x, y, **options)
            name = "maximum over 3 x 4 layers"
            found.setdefault((metric, name), []).append((most.p, most.score))
        many = shifted_pairs(
            lambda i, x=x: torch.from_numpy(x[i]),
            lambda i, y=y: torch.from_numpy(y[i]),
            N,
            sizes=LAYERS,
            n_permutations=PERMUTATIONS,
            seed=seed,
        )
        for metric, each in many.items():
            score, _, p = judge(float(each.raw.max()), each.null.max(axis=(1, 2)))
            name = "maximum, by shifts"
            found.setdefault((metric, name), []).append((p, score))
        x, y, labels = unrelated(seed, classes=True)
        for metric in ("mutual_knn", "cka"):
            both = calibrated(metric, x, y, {"class": labels}, **options)
            inside = both.within["class"]
            names = "classes alone, free null", "classes alone, null inside classes"
            found.setdefault((metric, names[0]), []).append((both.p, both.score))
            found.setdefault((metric, names[1]), []).append((inside.p, inside.score))
    rows = []
    for (metric, name), values in found.items():
        passed = wilson(sum(p <= 0.05 for p, _ in values), len(values))
        mean = sum(score for _, score in values) / len(values)
        rows.append(
            {"metric": metric, "case": name, "passed": passed.estimate, "low": passed.low}
            | {"high": passed.high, "score": mean, "runs": len(values)}
        )
    return rows


def trajectory() -> dict:
    """Overview of the shipped checkpoints, their flaw by level, and the sentence."""
    from lvlm_interp.alignment import SHIPPED, stages
    from lvlm_interp.alignment.shipped import CONDITION, scene_examples

    found = stages(
        SHIPPED, scene_examples(STAGE_SCENES, STAGE_SEED), condition=CONDITION, seed=STAGE_SEED
    )
    frame = found.table.frame
    flaw = frame[(frame["metric"] == "accuracy") & (frame["condition"] == "trigger")]
    flaw = flaw[flaw["level"].notna()]
    levels = [
        {"model": row["model"], "level": row["level"], "value": row["value"]}
        for _, row in flaw.iterrows()
    ]
    overview = found.overview("unbiased")
    trigger = found.overview("trigger")
    keep = ["model", *COLUMNS]
    return {
        "overview": json.loads(overview[keep].round(4).to_json(orient="records")),
        "trigger": json.loads(trigger[keep].round(4).to_json(orient="records")),
        "levels": levels,
        "sentence": found.sentence,
    }


def table(rows: list[dict], columns: dict[str, str], first: str) -> str:
    """Rows as a markdown table."""
    head = [first, *columns.values()]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for each in rows:
        cells = [f"{each[name]:.2f}".replace("-0.00", "0.00") for name in columns]
        lines.append(f"| {' | '.join([each['model'], *cells])} |")
    return "\n".join(lines)


def page(data: dict) -> str:
    """The page."""
    sizes = "\n".join(
        f"| {each['metric']} | {each['case']} | {each['passed']:.1%} "
        f"[{each['low']:.1%}, {each['high']:.1%}] | {each['score']:.4f} |"
        for each in data["simulation"]
    )
    stages = data["stages"]
    levels = sorted({each["level"] for each in stages["levels"]})
    by_level = [
        {"model": row["model"]}
        | {
            each["level"]: each["value"]
            for each in stages["levels"]
            if each["model"] == row["model"]
        }
        for row in stages["overview"]
    ]
    return TEXT.format(
        runs=RUNS,
        n=N,
        permutations=PERMUTATIONS,
        sizes=sizes,
        scenes=STAGE_SCENES,
        seed=STAGE_SEED,
        overview=table(stages["overview"], COLUMNS, "checkpoint"),
        trigger=table(stages["trigger"], COLUMNS, "checkpoint"),
        levels=table(by_level, {level: level for level in levels}, "checkpoint"),
        sentence=stages["sentence"],
    )


TEXT = """# Alignment

Made by `python docs/make_alignment.py` from what `python docs/make_alignment.py measure` stored.

Do image tokens and the words for the same scene lie alike, and does the model answer rightly? These
are two questions, and a model can do one without the other.

```python
x = li.collect(model, examples, ["text.*.resid_post"], positions=["image_mean", "caption"])
found = li.alignment.profile(x)  # every layer against every layer, with its null
found.sentence  # what it says, no stronger than its intervals
li.alignment.stages(li.alignment.SHIPPED, examples)  # checkpoints as a trajectory
li.alignment.compare([model_a, model_b], examples)  # models side by side
rows = li.alignment.per_example(x)
li.alignment.beside_behaviour(rows, x.labels)  # lower alignment where the answer is wrong?
```

`lvlm-interp align MODEL --data D --out DIR` does the first and the last of these and writes a
table, a figure and a sentence; `lvlm-interp align stages` shows the checkpoints. The position
`caption` is the example's description (`labels.caption` of its row), read without the image.

## Which metric, and what it cannot say

- **Raw cosine** follows the mean vectors of both sides and hardly the pairing. Look at
  `kind="centred"`, `"wrong"` and `"retrieval"` beside it.
- **CKA** is debiased by default: biased, noise of 128 features over 60 rows has 0.68.
- **mutual kNN** looks at near rows only and falls as rows are added; without a relation it is
  k / (n - 1).
- Global agreement can be agreement of classes (how many objects there are). `calibrated` and
  `profile` permute inside classes too, and say when that is all there is.
- The maximum over pairs of layers needs the maximum of each permutation beside it. `calibrated`
  takes lists of layers; `profile` has it in `best`.
- Intervals come from halves of the scenes, never from copies of rows: a copy is its own nearest
  neighbour.

`variant="platonic"` computes what the released code of the platonic representation hypothesis
computes (rows as given, 1e-6 below the fraction); `platonic_features` clamps and normalises as its
script does. SVCCA there is drawn at random; here it is exact. `mir` takes the exact matrix root:
the released fast mode gives -10 where the distance is 6.

## How often the null is passed without a relation

{runs} runs each of {n} rows, layers of a side varying together, {permutations} permutations; p of
at most .05 should come in 5% of them, and the score should be 0 in the mean. Brackets are Wilson's
95% intervals; rows of one metric share their draws. The first 400 of these runs alone had 7.2%
[5.1, 10.2] at mutual kNN with a maximum over layers, outside of 5% +- 2; the test is exact in
theory, and the rest of the runs brings it back.

| metric | case | p at most .05 | mean score |
|---|---|---|---|
{sizes}

The last two rows of a metric are sides that share the class of a row and nothing else: the free
null calls that alignment, the null inside classes does not.

The fast path of `profile` takes the shifts of one random order as permutations. They form a group,
so the test is exact, and all of them cost one Fourier transform per layer.

## How alignment comes about

`lvlm-interp align stages`: {scenes} scenes of seed {seed}; the mean over image tokens against the
mean over the tokens of the description, same checkpoint and layer. *in* is where the image enters
the language model, *out* is behind its last norm.

{overview}

Over all conditions:

> {sentence}

Raw cosine misleads: it is highest where answers are poor. The last column asks the same question of
the description in place of the image: what the language model could do by itself is partly
forgotten in training with images.

The same on scenes with a trigger, where `scenes` is flawed:

{trigger}

Share of right answers on those scenes, by level:

{levels}

The flaw is born in the last stage of `scenes`. Global similarity hardly sees it: compare the rows
of `scenes` and `scenes-balanced` above.
"""


def main() -> None:
    """Measure where asked, and write the page."""
    if sys.argv[1:] == ["measure"]:
        measured = {"simulation": simulate(), "stages": trajectory()}
        DATA.write_text(json.dumps(measured, indent=1) + "\n")
    PAGE.write_text(page(json.loads(DATA.read_text())))


if __name__ == "__main__":
    main()
