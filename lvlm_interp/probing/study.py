"""Studies: one question asked of several models, from a file that says all of it beforehand.

A study states its question, its controls and what would count as an answer before it runs. It is
checked as a whole (keys, sites, labels, positions) before a model is loaded, and only what is
missing is computed: activations are stored and resumed, and a result is kept under a key of
everything that decides it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lvlm_interp.activations.extract import Engine, extract
from lvlm_interp.activations.forward import OWN_COLUMNS
from lvlm_interp.activations.roles import check_sites, parse_roles
from lvlm_interp.data.examples import Example
from lvlm_interp.data.sources import data_hash, load_examples
from lvlm_interp.errors import UsageError
from lvlm_interp.files import atomic_write
from lvlm_interp.models.loading import load_model
from lvlm_interp.models.skeleton import files_hash, skeleton
from lvlm_interp.probing.baselines import pixels, untrained
from lvlm_interp.probing.fitting import PROBES
from lvlm_interp.probing.knowledge import known_but_not_said
from lvlm_interp.probing.sweep import CONTROLS, PIXELS, UNTRAINED, Best, ProbeSweep, sweep

__all__ = ["Study", "load_study", "run_study"]


@dataclass(frozen=True)
class Study:
    """What is asked, of whom, and what would count as an answer.

    Attributes:
        name: Of its folder of results.
        question: In one sentence.
        control: What rules out the trivial explanations, in words.
        answer: What would count as an answer, in words.
        above: Yes if the whole interval of the balanced accuracy lies above this, no if it lies
            below, else not shown.
        data: A source of examples.
        label: Column to predict.
        models: Names, folders or hub ids.
        sites: Where to look.
        positions: Likewise.
        answer_sites: Among which sites the answer is sought; all by default.
        where: Which examples take part.
        group: As in `sweep`; so are `control_type`, `heads`, `probe`, `controls`, `folds`, `seed`.
        known: Also ask what the probes know where the model errs.
    """

    name: str
    question: str
    control: str
    answer: str
    above: float
    data: str
    label: str
    models: tuple[str, ...] = ("scenes", "scenes-balanced")
    sites: tuple[str, ...] = ("vision.*.resid_post", "projector.out", "text.*.resid_post")
    positions: tuple[str, ...] = ("object", "last")
    answer_sites: str = "*"
    where: str | None = None
    group: str = "group"
    control_type: str = "type"
    heads: bool = False
    probe: str = "logistic"
    controls: tuple[str, ...] = CONTROLS
    known: bool = False
    folds: int = 5
    seed: int = 0

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse what cannot be run, before a model is loaded.

        Raises:
            UsageError: An unknown label, group, control, probe or position.
            SiteError: A model has no such site.
        """
        labels = {name for example in examples for name in example.labels} | set(OWN_COLUMNS)
        for what in ("label", "group"):
            _known(what, getattr(self, what), sorted(labels))
        for control in self.controls:
            _known("control", control, CONTROLS)
        _known("probe", self.probe, list(PROBES))
        roles = parse_roles(self.positions)
        for name in self.models:
            check_sites(skeleton(name).sites(self.sites), roles)

    def key(self, model: str, data: str) -> str:
        """Changes when anything that decides the result changes."""
        deciding = asdict(self)
        for words in ("question", "control", "answer", "above", "models", "answer_sites"):
            deciding.pop(words)
        text = json.dumps([deciding, files_hash(model), data], sort_keys=True)
        return sha256(text.encode()).hexdigest()


def load_study(path: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read a study and set some of its keys anew.

    Raises:
        UsageError: No such file, a key that is unknown or missing, or a value of the wrong kind.
    """
    if not path.is_file():
        raise UsageError(f"There is no study file {path}.")
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: expected keys and values, got {type(found).__name__}.")
    values = {"name": path.stem, **found, **(overrides or {})}
    known = {each.name: each for each in fields(Study)}
    for name, value in values.items():
        _known(f"key of {path.name}", name, list(known))
        if str(known[name].type).startswith("tuple"):
            values[name] = tuple([value] if isinstance(value, str) else value)
    for name, each in known.items():
        if each.default is MISSING and values.get(name) is None:
            raise UsageError(f"{path}: the key {name!r} is missing; a study needs it.")
    return Study(**values)


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
    key = study.key(model, data_hash(examples))
    done = folder / "result.json"
    if done.is_file():
        result = json.loads(done.read_text())
        if result["key"] == key:
            return result
    try:
        found = _sweep(study, model, examples, stores / key[:16], engine, progress)
    except UsageError as error:
        # A label may not vary enough on this model (it never errs): that is an answer too.
        if study.label not in ("wrong", "said"):
            raise
        result = {"sentence": f"{model}: not answerable: {error}", "answer": "not answerable"}
    else:
        found.table.to_parquet(folder / "table.parquet")
        atomic_write(folder / "summary.csv", found.summary.to_csv(index=False))
        result = _result(study, model, found) | _known_line(study, found, folder)
    result |= {"key": key, "model": model, "study": study.name}
    atomic_write(done, json.dumps(result, indent=1) + "\n")
    return result


def _sweep(
    study: Study,
    name: str,
    examples: Sequence[Example],
    store: Path,
    engine: Engine | None,
    progress: bool,
) -> ProbeSweep:
    model = load_model(name)
    where: dict[str, Any] = {"sites": list(study.sites), "positions": list(study.positions)}
    data = extract(
        model, examples, **where, out=store, resume=True, name=study.data, engine=engine,
        missing="nan", progress=progress,
    )  # fmt: skip
    baselines = {}
    if UNTRAINED in study.controls:
        baselines[UNTRAINED] = untrained(model, examples, **where, seed=1, progress=progress)
    if PIXELS in study.controls:
        baselines[PIXELS] = pixels(examples)
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
        seed=study.seed,
        progress=progress,
    )


def _result(study: Study, model: str, found: ProbeSweep) -> dict[str, Any]:
    best = found.best(study.answer_sites)
    score = best.balanced_accuracy
    verdict = "not shown"
    if score.above(study.above):
        verdict = "yes"
    elif score.below(study.above):
        verdict = "no"
    controls = _controls(found, best)
    return {
        "answer": verdict,
        "sentence": (
            f"{model}: {verdict} (bar {study.above:.0%}): {study.label!r} is read at {best.site}, "
            f"{best.position} (chosen on training folds) with balanced accuracy {score}, chance "
            f"{found.design.chance:.2g}; {'; '.join(f'{k} {v}' for k, v in controls.items())}."
        ),
        "best": best.to_dict(),
        "controls": controls,
        "chance": found.design.chance,
    }


def _controls(found: ProbeSweep, best: Best) -> dict[str, str]:
    """The controls at the chosen site (for the pixels: at the best position), with intervals."""
    shown: dict[str, str] = {}
    if best.shuffled:
        shown["shuffled labels"] = str(best.shuffled)
    if best.selectivity:
        shown["selectivity"] = str(best.selectivity)
    frame = found.summary
    for name in (UNTRAINED, PIXELS):
        part = frame[frame["control"] == name]
        if name == UNTRAINED:
            part = part[(part["site"] == best.site) & (part["position"] == best.position)]
        if len(part):
            row: Any = part.sort_values("balanced_accuracy").iloc[-1]
            low, high = row["balanced_accuracy_low"], row["balanced_accuracy_high"]
            shown[name] = f"{row['balanced_accuracy']:.3g} [{low:.3g}, {high:.3g}]"
    return shown


def _known_line(study: Study, found: ProbeSweep, folder: Path) -> dict[str, Any]:
    if not study.known:
        return {}
    try:
        known = known_but_not_said(found)
    except UsageError as error:
        return {"known": str(error)}
    atomic_write(folder / "known.csv", known.summary.to_csv(index=False))
    lines: Any = known.summary.set_index("site").to_dict("index")
    best = lines["best"]
    return {
        "known": (
            f"Where it errs (n={int(best['n_wrong'])}), the probe is right in "
            f"{best['among_wrong']:.3g} [{best['among_wrong_low']:.3g}, "
            f"{best['among_wrong_high']:.3g}] of the answers (base rate {best['base_rate']:.3g}, "
            f"balanced over the truths {_or_missing(best)})."
        )
    }


def _or_missing(best: Mapping[str, Any]) -> str:
    if pd.isna(best["balanced"]):
        return "not defined, the errors have one truth alone"
    return f"{best['balanced']:.3g} [{best['balanced_low']:.3g}, {best['balanced_high']:.3g}]"


def _known(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
        raise UsageError(f"There is no {what} {name!r}; {hint}")
