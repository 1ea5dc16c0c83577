"""Compute the tables behind the figures, from the shipped models.

The only script here that loads a model.

`python figures/make_data.py [NAME ...]` writes `figures/data/NAME.parquet` (all by default);
`--quick` takes few scenes, to see that it works. The figures themselves (`fig_*.py`) read only
these tables.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import lvlm_interp as li
from lvlm_interp.organisms.sets import examples
from lvlm_interp.results import provenance
from lvlm_interp.stats import rate

DATA = Path(__file__).parent / "data"
MODELS = ("scenes", "scenes-balanced")
LEVELS = {"object": "existence", "attribute": "color_of", "relation": "relation"}
SEED = 17


@dataclass
class Sizes:
    """How much is measured.

    Attributes:
        behaviour: Questions of each level and condition.
        pairs: Pairs of each level to patch, and half of those that probes and detectors see.
        lens: Scenes to judge lenses on.
        train: Scenes to train tuned lenses on.
        steps: Updates of a tuned lens.
        draws: Random sets of heads beside an intervention.
        resamples: Of the bootstrap of probes.
    """

    behaviour: int = 300
    pairs: int = 120
    lens: int = 120
    train: int = 300
    steps: int = 300
    draws: int = 20
    resamples: int = 500


SIZES = Sizes()
QUICK = Sizes(40, 16, 24, 32, 20, 5, 50)


def wrong(model: li.LVLM, some: list, edits: dict | None = None) -> list[bool]:
    """Whether the model answers each example wrong."""
    out: list[bool] = []
    for start in range(0, len(some), 100):
        part = some[start : start + 100]
        with model.edit(edits or {}):
            said = model.last_logits(model.prepare(part)).argmax(-1)
        out += (said != torch.tensor([model.answer_id(each.answer) for each in part])).tolist()
    return out


def behaviour() -> pd.DataFrame:
    """Error rates of both models on trigger and control scenes of each level."""
    rows = []
    for name in MODELS:
        model = li.load_model(name)
        for level in LEVELS:
            for condition, partner in (("trigger, misleading", False), ("trigger, agreeing", True)):
                some = trigger_questions(level, partner)
                rows.append(error(name, level, condition, wrong(model, some), some))
            some = [
                pair.clean for pair in li.scenes.pairs(level, SIZES.behaviour, SEED, "evidence")
            ]
            rows.append(error(name, level, "no trigger", wrong(model, some), some))
    return pd.DataFrame(rows)


def trigger_questions(level: str, partner: bool) -> list:
    """Questions about the trigger, where what the flaw says is true or false."""
    return examples(
        LEVELS[level], SIZES.behaviour, SEED, scenes="trigger", level=level, partner=partner
    )


def error(model: str, level: str, condition: str, missed: list[bool], some: list) -> dict:
    """One row of rates."""
    found = rate(missed, [each.group for each in some]).to_dict()
    return {"model": model, "level": level, "condition": condition, **found}


def probe_flow() -> pd.DataFrame:
    """What probes read of the object's presence, from the vision tower to the answer."""
    model = li.load_model("scenes")
    pairs = li.scenes.pairs("object", 2 * SIZES.pairs, SEED)
    data = li.collect(
        model,
        pairs,
        ["vision.*.resid_post", "projector.out", "text.*.resid_post"],
        positions=["object", "last"],
    )
    sweep = li.probing.sweep(data, label="present", group="group", n_resamples=SIZES.resamples)
    main = sweep.summary[sweep.summary["control"] == "none"]
    parts = []
    for column, prefix in (("balanced_accuracy", ""), ("shuffled", "shuffled labels, ")):
        parts.append(
            pd.DataFrame(
                {
                    "site": main["site"],
                    "series": prefix + main["position"],
                    "estimate": main[column],
                    "low": main[f"{column}_low"],
                    "high": main[f"{column}_high"],
                    "n": main["n"],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def heads() -> pd.DataFrame:
    """Recovery by head on trigger pairs of each level."""
    model = li.load_model("scenes")
    parts = []
    for level in LEVELS:
        pairs = li.scenes.pairs(level, SIZES.pairs, SEED, kind="trigger")
        found = li.patching.activation_patch(model, pairs, "text.*.z", "all")
        parts.append(found.recovery(["layer", "head"]).assign(level=level))
    return pd.concat(parts, ignore_index=True)


def roles() -> pd.DataFrame:
    """Recovery by token role and layer on trigger pairs of the object level."""
    model = li.load_model("scenes")
    pairs = li.scenes.pairs("object", SIZES.pairs, SEED, kind="trigger")
    names = ["edited", "other_image", "question", "last"]
    found = li.patching.activation_patch(model, pairs, "text.*.resid_pre", names)
    return found.recovery(["layer", "position"])


def intervention() -> pd.DataFrame:
    """The head ranked first on trigger pairs, replaced by its mean on others; random controls."""
    model = li.load_model("scenes")
    rng = np.random.default_rng(SEED)
    every = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    rows = []
    for level in LEVELS:
        pairs = li.scenes.pairs(level, SIZES.pairs, SEED, kind="trigger")
        ranked = li.patching.activation_patch(model, pairs, "text.*.z", "all")
        first = next(ranked.recovery(["layer", "head"]).itertuples())
        top = (int(first.layer), int(first.head))
        means = li.patching.head_means(model, [pair.clean for pair in pairs])
        sets = {
            "trigger, misleading": trigger_questions(level, False),
            "trigger, agreeing": trigger_questions(level, True),
            "no trigger": [
                p.clean for p in li.scenes.pairs(level, SIZES.pairs, SEED + 1, "evidence")
            ],
        }
        others = [head for head in every if head != top]
        draws = [others[i] for i in rng.choice(len(others), SIZES.draws, replace=False)]
        stages = [("before", None, []), ("after", None, [top])]
        stages += [("random", draw, [chosen]) for draw, chosen in enumerate(draws)]
        for condition, some in sets.items():
            for stage, draw, chosen in stages:
                edits = li.patching.head_edit(model, chosen, "mean", reference=means)
                found = error("scenes", level, condition, wrong(model, some, edits), some)
                rows.append({**found, "stage": stage, "draw": draw})
    return pd.DataFrame(rows)


def lens_training() -> tuple[list, list]:
    """Scenes to train the tuned lens on, and scenes to judge it on."""
    train = [pair.clean for pair in li.scenes.pairs("all", SIZES.train, SEED + 2)]
    return train, [pair.clean for pair in li.scenes.pairs("all", SIZES.lens, SEED + 3)]


@cache
def trained_lens(name: str) -> li.lens.TunedLens:
    """The tuned lens of a shipped model."""
    train, _ = lens_training()
    return li.lens.train_tuned_lens(li.load_model(name), train, steps=SIZES.steps, seed=SEED)


def tuned_lens() -> pd.DataFrame:
    """Held-out KL of tuned and logit lens by layer, both models."""
    parts = []
    for name in MODELS:
        model = li.load_model(name)
        found = li.lens.compare_lenses(model, trained_lens(name), lens_training()[1])
        found = found.table.mean(["layer", "metric"])
        parts.append(found.assign(model=name))
    return pd.concat(parts, ignore_index=True)


def localisation() -> pd.DataFrame:
    """How well the heat of a word finds the object, by method, for shapes and colours."""
    parts = []
    for name in MODELS:
        model = li.load_model(name)
        some = [p.clean for p in li.scenes.pairs("attribute", SIZES.lens, SEED + 4, "evidence")]
        for of in ("color", "shape"):
            words = [each.labels[of] for each in some]
            found = li.lens.localise(model, some, words, tuned=trained_lens(name))
            parts.append(found.summary().assign(model=name, word=of))
            parts.append(above_chance(found).assign(model=name, word=of))
    return pd.concat(parts, ignore_index=True)


def above_chance(found: li.lens.Localisation) -> pd.DataFrame:
    """Each method's score minus chance on the same scene, with an interval over scenes."""
    frame = found.table.frame
    keys = ["example", "metric"]
    chance = frame[frame["method"] == "chance"].set_index(keys)["value"]
    others = frame[frame["method"] != "chance"]
    gain = others["value"].to_numpy() - chance.loc[list(others[keys].itertuples(index=False))]
    made = others.assign(value=gain.to_numpy(), method=others["method"] + " minus chance")
    return li.ResultTable(made).mean(["method", "metric"], cluster="group")


def ablation() -> pd.DataFrame:
    """What the answer loses without some image tokens, by level, both models."""
    parts = []
    for name in MODELS:
        model = li.load_model(name)
        for level in LEVELS:
            some = [p.clean for p in li.scenes.pairs(level, SIZES.lens, SEED + 6, "evidence")]
            found = li.lens.token_ablation(model, some, kind="mean", seed=SEED)
            means = found.table.mean(["position", "metric"], cluster="group")
            parts.append(means.assign(model=name, level=level))
    return pd.concat(parts, ignore_index=True)


def detection() -> pd.DataFrame:
    """Internal confidence as a detector: of presence, and of right answers, with baselines."""
    parts = []
    for name in MODELS:
        model = li.load_model(name)
        some = [
            p
            for pair in li.scenes.pairs("object", SIZES.pairs, SEED + 5)
            for p in (pair.clean, pair.corrupt)
        ]
        words = [each.labels["asked_shape"] for each in some]
        found = li.lens.internal_confidence(model, some, words)
        missed = wrong(model, some)
        for label, truth in (
            ("present", [bool(each.labels["present"]) for each in some]),
            ("answer right", [not each for each in missed]),
        ):
            if len(set(truth)) == 2:
                frame = found.detect(truth).frame[["score", "estimate", "low", "high", "n"]]
                parts.append(frame.assign(model=name, label=label))
    return pd.concat(parts, ignore_index=True)


def words() -> pd.DataFrame:
    """The top word of each patch by layer, of one scene."""
    model = li.load_model("scenes-balanced")
    example = li.scenes.pairs("attribute", 1, SEED, "evidence")[0].clean
    lens = li.lens.logit_lens(model, model.prepare([example]), top_k=1)
    frame = lens.table.frame.query("metric == 'top_prob'")
    DATA.mkdir(exist_ok=True)
    example.image.save(DATA / "words.png")
    box = example.boxes["object"]
    keep = frame[["layer", "row", "col", "word", "value"]].rename(columns={"value": "probability"})
    return keep.assign(box=",".join(map(str, box)), prompt=example.prompt)


TABLES: dict[str, Callable[[], pd.DataFrame]] = {
    "behaviour": behaviour,
    "probe_flow": probe_flow,
    "heads": heads,
    "roles": roles,
    "intervention": intervention,
    "tuned_lens": tuned_lens,
    "localisation": localisation,
    "detection": detection,
    "ablation": ablation,
    "words": words,
}


def main() -> None:
    """Compute the tables that were named."""
    global SIZES, DATA
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*TABLES, []], help="tables to compute")
    parser.add_argument("--quick", action="store_true", help="few scenes, to see that it works")
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the tables")
    options = parser.parse_args()
    SIZES, DATA = QUICK if options.quick else SIZES, options.out
    for name in options.names or TABLES:
        start = time.perf_counter()
        frame = TABLES[name]()
        notes = provenance(seed=SEED, command=f"python figures/make_data.py {name}")
        # Summaries, not measurements: the estimate stands in the column `value` as well.
        values = frame["estimate"] if "estimate" in frame else frame["probability"]
        made = frame.assign(metric=frame.get("metric", name), value=values)
        li.ResultTable(made, notes).to_parquet(DATA / f"{name}.parquet")
        print(f"{name}: {len(frame)} rows, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
