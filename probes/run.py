"""Run a study: one YAML file into a table, a figure and a sentence with an interval per model.

    python probes/run.py probes/configs/object_presence.yaml [--set key=value ...] [--engine ray]

Only what is missing is computed. Results go to `probes/results/STUDY/MODEL/`, activations to
`runs/probes/`, and the index in `probes/README.md` is written anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

import lvlm_interp as li
from lvlm_interp.errors import LvlmInterpError, UsageError
from lvlm_interp.files import atomic_write

HERE = Path(__file__).resolve().parent
MARK = "<!-- results: written by run.py, do not edit below -->"


def main() -> int:
    """Run the study that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    parser.add_argument("--engine", choices=["here", "ray"], default="here")
    parser.add_argument("--address", help="of a Ray cluster")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--stores", type=Path, default=HERE.parent / "runs" / "probes")
    options = parser.parse_args()
    if options.address and options.engine != "ray":
        parser.error("--address is that of a Ray cluster: it needs --engine ray")
    try:
        study = li.probing.load_study(options.config, changes(options.changes))
        study.check(li.load_examples(study.data))
        engine = li.jobs.on_ray(options.address) if options.engine == "ray" else None
        print(f"{study.name}: {study.question}\ncontrol: {study.control}\nanswer: {study.answer}")
        for model in study.models:
            folder = folder_of(options.results / study.name, model, study.models)
            result = li.probing.run_study(study, model, folder, options.stores, engine=engine)
            draw(folder)
            print(f"\n{result['sentence']}\n{result.get('known', '')}".rstrip())
        if options.results == HERE / "results":
            index(options.results)
    except LvlmInterpError as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def folder_of(parent: Path, model: str, models: Sequence[str]) -> Path:
    """Where the results of a model go; two models of one name would overwrite each other."""
    name = Path(model).name
    alike = [each for each in models if Path(each).name == name]
    if not name or len(alike) > 1:
        raise UsageError(
            f"The models {', '.join(alike)} need folders of unlike names: results go to STUDY/NAME."
        )
    return parent / name


def changes(words: list[str]) -> dict[str, Any]:
    """`key=value` with the value read as YAML."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--set needs KEY=VALUE, got {word!r}.")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {word}: the value is not valid YAML.") from error
    return found


def draw(folder: Path) -> None:
    """Figures from the tables, where they are older than these."""
    summary, known = folder / "summary.csv", folder / "known.csv"
    if fresh(summary, folder / "sweep.png"):
        table = pd.read_csv(summary)
        chance = float(table["chance"].iloc[0])
        save(li.plotting.probe_flow(sweep_lines(table), chance=chance), folder / "sweep")
    if fresh(known, folder / "known.png"):
        lines = known_lines(pd.read_csv(known))
        save(li.plotting.probe_flow(lines, chance=None, label="share right"), folder / "known")


def fresh(table: Path, figure: Path) -> bool:
    """Whether a table has no figure yet that is younger than it."""
    if not table.is_file():
        return False
    return not figure.is_file() or figure.stat().st_mtime < table.stat().st_mtime


def save(figure: Any, stem: Path) -> None:
    """A figure as PNG and PDF."""
    figure.savefig(stem.with_suffix(".png"), dpi=200)
    figure.savefig(stem.with_suffix(".pdf"))


def sweep_lines(summary: pd.DataFrame) -> pd.DataFrame:
    """A line per position; in grey each control, at the position where it is highest."""
    task = summary[summary["control"] == "none"]
    untrained = summary[summary["control"] == "untrained"]
    lines = [points(task, "balanced_accuracy", task["position"])]
    for name, part, column in (
        ("shuffled labels", task, "shuffled"),
        ("control: untrained model", untrained, "balanced_accuracy"),
    ):
        if column in part and part[column].notna().any():
            part = part.loc[part.dropna(subset=[column]).groupby("site")[column].idxmax()]
            lines.append(points(part, column, f"{name} (its best position)"))
    return pd.concat(lines, ignore_index=True)


def points(part: pd.DataFrame, column: str, series: str | pd.Series) -> pd.DataFrame:
    """One column of a summary as a line of `probe_flow`."""
    named = {"estimate": column, "low": f"{column}_low", "high": f"{column}_high"}
    columns = {name: part[of] for name, of in named.items()}
    return pd.DataFrame({"site": part["site"], "series": series, **columns, "n": part["n"]})


def known_lines(known: pd.DataFrame) -> pd.DataFrame:
    """On all examples and among the model's errors, along the model to its answer.

    In grey the share that always saying the commonest truth of the errors would get right.
    """
    known = known[known["site"] != "best"]
    known = known.assign(base_rate_low=known["base_rate"], base_rate_high=known["base_rate"])
    lines = [
        pd.DataFrame(
            {
                "site": known["site"],
                "series": name,
                "estimate": known[column],
                "low": known[f"{column}_low"],
                "high": known[f"{column}_high"],
                "n": known[count],
            }
        )
        for name, column, count in (
            ("all examples (balanced)", "overall", "n"),
            ("where the model errs (share right)", "among_wrong", "n_wrong"),
            ("control: always the errors' commonest truth", "base_rate", "n_wrong"),
        )
    ]
    return pd.concat(lines, ignore_index=True).dropna(subset=["estimate"])


def index(results: Path) -> None:
    """Write the last results into the README: per study its question, sentences and figures."""
    readme = HERE / "README.md"
    lines = [readme.read_text().split(MARK)[0].rstrip(), "", MARK]
    found = [
        (path, json.loads(path.read_text())) for path in sorted(results.glob("*/*/result.json"))
    ]
    for study in dict.fromkeys(result["study"] for _, result in found):
        mine = [(path.parent, result) for path, result in found if result["study"] == study]
        lines += ["", f"### {study}", "", mine[0][1]["question"], ""]
        for folder, result in mine:
            lines += [f"- {result['sentence']}"]
            lines += [f"  {result['known']}"] if result.get("known") else []
            drawn = [folder / f"{name}.png" for name in ("sweep", "known")]
            links = [f"[{p.stem}]({p.relative_to(HERE)})" for p in drawn if p.is_file()]
            lines += [f"  Figures: {', '.join(links)}."] if links else []
    atomic_write(readme, "\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
