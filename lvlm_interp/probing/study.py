"""Studies: one question asked of several models, from a file that says all of it beforehand.

A study states its question, its controls and what would count as an answer before it runs. It is
checked as a whole (keys, sites, labels, positions) before a model is loaded, and only what is
missing is computed: activations are stored and resumed, and a result is kept under a key of
everything that decides it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lvlm_interp.activations.base import Activations
from lvlm_interp.activations.extract import extract
from lvlm_interp.data.examples import Example
from lvlm_interp.data.sources import data_hash, load_examples
from lvlm_interp.errors import UsageError
from lvlm_interp.files import atomic_write
from lvlm_interp.jobs import Engine
from lvlm_interp.models.loading import load_model
from lvlm_interp.probing.baselines import pixels, untrained
from lvlm_interp.probing.design import PIXELS, SHUFFLED, UNTRAINED
from lvlm_interp.probing.knowledge import known_but_not_said
from lvlm_interp.probing.plan import Study
from lvlm_interp.probing.summary import Best
from lvlm_interp.probing.sweep import ProbeSweep, sweep
from lvlm_interp.stats import Estimate

__all__ = ["run_study"]


def run_study(
    study: Study,
    model: str,
    folder: Path,
    stores: Path,
    *,
    engine: Engine | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """The answer of one model, computed only if it is not there.

    Args:
        study: The question.
        model: One of its models.
        folder: Where `table.parquet`, `summary.csv`, `known.csv` and `result.json` go.
        stores: Where activations are kept.
        engine: Of the extraction.
        progress: Show bars.

    Returns:
        What `result.json` holds: the sentence, and the figures in it.
    """
    examples = load_examples(study.data)
    study.check(examples)
    digest = data_hash(examples)
    key = study.key(model, digest)
    done = folder / "result.json"
    if done.is_file():
        result = json.loads(done.read_text())
        if result["key"] == key:
            return result
    for name in ("table.parquet", "summary.csv", "known.csv"):
        (folder / name).unlink(missing_ok=True)  # of another key
    store = stores / study.store_key(model, digest)
    data, baselines = _activations(study, model, examples, store, engine, progress)
    try:
        found = _sweep(study, data, baselines, progress)
    except UsageError as error:
        # A label may not vary enough on this model (it never errs): that is an answer too.
        if study.label not in ("wrong", "said"):
            raise
        result = {"sentence": f"{model}: not answerable: {error}", "answer": "not answerable"}
    else:
        found.table.to_parquet(folder / "table.parquet")
        atomic_write(folder / "summary.csv", found.summary.to_csv(index=False))
        result = _result(study, model, found)
        if study.known:
            result |= _known(study, found, folder, progress)
    result |= {"key": key, "model": model, "study": study.name, "question": study.question}
    atomic_write(done, json.dumps(result, indent=1) + "\n")
    return result


def _activations(
    study: Study,
    name: str,
    examples: Sequence[Example],
    store: Path,
    engine: Engine | None,
    progress: bool,
) -> tuple[Activations, dict[str, Activations]]:
    """The activations of a model, and those of the controls that have their own."""
    model = load_model(name)
    where: dict[str, Any] = {"sites": list(study.sites), "positions": list(study.positions)}
    where |= {"missing": "nan", "progress": progress}
    data = extract(model, examples, **where, out=store, resume=True, name=study.data, engine=engine)
    baselines: dict[str, Activations] = {}
    if UNTRAINED in study.controls:
        baselines[UNTRAINED] = untrained(model, examples, **where, seed=1)
    if PIXELS in study.controls:
        baselines[PIXELS] = pixels(examples)
    return data, baselines


def _sweep(
    study: Study, data: Activations, baselines: Mapping[str, Activations], progress: bool
) -> ProbeSweep:
    return sweep(
        data,
        label=study.label,
        group=study.group,
        where=study.where,
        heads=study.heads,
        probe=study.probe,
        controls=study.controls,
        control_type=study.control_type,
        baselines=baselines,
        n_folds=study.folds,
        n_shuffles=study.shuffles,
        seed=study.seed,
        progress=progress,
    )


def _result(study: Study, model: str, found: ProbeSweep) -> dict[str, Any]:
    best = found.best(study.answer_sites, study.answer_positions or None)
    score = best.balanced_accuracy
    controls = _controls(found, best)
    equals = [name for name in study.beyond if not score.low > controls[name].high]
    verdict, why = "not shown", ""
    if score.below(study.above):
        verdict = "no"
    elif score.above(study.above) and equals:
        why = f" since its interval is not above that of {' and '.join(map(_words, equals))}"
    elif score.above(study.above):
        verdict = "yes"
    shown = {_words(name): str(each) for name, each in controls.items()}
    return {
        "answer": verdict,
        "sentence": (
            f"{model}: {verdict}{why} (bar {study.above:.0%}): {study.label!r} is read at "
            f"{best.site}, {best.position} (chosen on training folds) with balanced accuracy "
            f"{score}, chance {found.design.chance:.2g}; "
            f"{'; '.join(f'{name} {text}' for name, text in shown.items())}."
        ),
        "best": best.to_dict(),
        "controls": shown,
        "chance": found.design.chance,
    }


def _controls(found: ProbeSweep, best: Best) -> dict[str, Estimate]:
    """The controls at the chosen site (for the pixels: at the best position), with intervals."""
    shown: dict[str, Estimate] = {}
    if best.shuffled:
        shown[SHUFFLED] = best.shuffled
    if best.selectivity:
        shown["selectivity"] = best.selectivity
    frame = found.summary
    for name in (UNTRAINED, PIXELS):
        part = frame[frame["control"] == name]
        if name == UNTRAINED:
            part = part[(part["site"] == best.site) & (part["position"] == best.position)]
        if len(part):
            row: Any = part.sort_values("balanced_accuracy").iloc[-1]
            bounds = (row["balanced_accuracy_low"], row["balanced_accuracy_high"])
            shown[name] = Estimate(row["balanced_accuracy"], *bounds, int(row["n"]))
    return shown


def _words(name: str) -> str:
    return name.replace("_", " ")


def _known(study: Study, found: ProbeSweep, folder: Path, progress: bool) -> dict[str, Any]:
    """What the probes know of the answers that are wrong: along the model, and in a sentence."""
    label, where = study.known_label or study.label, study.known_where or study.where
    try:
        if (label, where) != (study.label, study.where):
            found = sweep(
                found.data,
                label=label,
                group=study.group,
                where=where,
                probe=study.probe,
                controls=(),
                n_folds=study.folds,
                seed=study.seed,
                progress=progress,
            )
        known = known_but_not_said(found)
    except UsageError as error:
        return {"known": f"What it knows where it errs cannot be told: {error}"}
    atomic_write(folder / "known.csv", known.summary.to_csv(index=False))
    lines: Any = known.summary.set_index("site").to_dict("index")
    best = lines["best"]
    among = f" among {where}" if where else ""
    return {
        "known": (
            f"Where it errs{among} (n={int(best['n_wrong'])}), a probe of {label!r} is right in "
            f"{best['among_wrong']:.3g} [{best['among_wrong_low']:.3g}, "
            f"{best['among_wrong_high']:.3g}] of the answers (base rate {best['base_rate']:.3g}, "
            f"balanced over the truths {_or_missing(best)})."
        )
    }


def _or_missing(best: Mapping[str, Any]) -> str:
    if pd.isna(best["balanced"]):
        return "not defined, the errors have one truth alone"
    return f"{best['balanced']:.3g} [{best['balanced_low']:.3g}, {best['balanced_high']:.3g}]"
