"""`sweep`: probes over sites, positions and heads, with controls, intervals and an honest choice.

For every problem (site x position x head): each of the folds is predicted by a probe trained on the
other folds, groups whole; its regularisation is chosen on one of the training folds. Beside the
task run the controls: labels shuffled, a random label per type (Hewitt and Liang 2019, "Designing
and Interpreting Probes with Control Tasks"; selectivity is the accuracy on the task minus that on
the control task, here with balanced accuracies), an untrained model, and the raw pixels.
`ProbeSweep.best` chooses site and position anew in each fold, on the training folds alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import joblib
import numpy as np
import pandas as pd
from tqdm import tqdm

from lvlm_interp.activations.base import Activations
from lvlm_interp.errors import UsageError
from lvlm_interp.probing.design import (
    CONTROLS,
    MAIN,
    PIXELS,
    SHUFFLED,
    TYPES,
    UNTRAINED,
    Design,
    design_of,
)
from lvlm_interp.probing.directions import Direction, fit_direction
from lvlm_interp.probing.fitting import Outcome, Problem, fit_problem, probe_of
from lvlm_interp.probing.summary import Best, best_of, rows_of, summary_of
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.sites import Site, select

__all__ = ["ProbeSweep", "sweep"]


@dataclass(frozen=True, repr=False)
class ProbeSweep(Result):
    """What a sweep found.

    Attributes:
        table: One row per example x site x position x head x control: metric `correct`, with the
            columns `control` (`none` is the task), `draw` (which shuffle), `group`, `fold`,
            `truth`, `predicted`, `score`.
        summary: One row per site x position x head x baseline, with intervals; see `sweep`.
        design: Labels and folds.
        outcomes: Predictions per problem.
        data: The activations.
        probe: The unfitted probe and the settings that were tried.
    """

    summary: pd.DataFrame
    design: Design = field(repr=False)
    outcomes: tuple[Outcome, ...] = field(repr=False)
    data: Activations = field(repr=False)
    probe: tuple[Any, list[dict[str, Any]]] = field(repr=False)
    seed: int = 0

    def best(
        self, sites: str | Sequence[str] = "*", positions: str | Sequence[str] | None = None
    ) -> Best:
        """Score with the site and position (and head) chosen on the training folds of each fold.

        A tie is taken by the earlier site. Problems that lack examples take no part.

        Args:
            sites: Among which sites to choose, as names or globs.
            positions: Among which positions; all by default.

        Raises:
            UsageError: No problem of the sweep is at these sites and positions.
        """
        places = [positions] if isinstance(positions, str) else positions
        n = len(self.design.rows)
        among = [each for each in self.problems_at(sites, places) if len(each.rows) == n]
        if not among:
            where = f"{sites} and {positions or 'any position'}"
            raise UsageError(f"No problem of this sweep is at {where}.")
        picks = self.picks(among)
        return best_of(picks, self.design)

    def direction(
        self, site: str, position: str | None = None, head: int | None = None
    ) -> Direction:
        """The direction of a two-class label at a site, from a probe on all examples of the sweep.

        Its regularisation is the one that most folds chose.

        Args:
            site: One site of the sweep.
            position: The position it is read at; the one with the best validation score by default.
            head: One head, where the sweep went over heads.

        Raises:
            UsageError: No such problem, or more than two classes.
        """
        among = self.problems_at(site, None if position is None else [position])
        among = [each for each in among if each.head == head]
        if not among:
            raise UsageError(f"The sweep has no probe at {site}, {position or 'any position'}.")
        outcome = max(among, key=lambda each: float(each.inner.mean()))
        if len(self.design.classes) != 2:
            label, n = self.design.label, len(self.design.classes)
            raise UsageError(f"A direction needs two classes; {label!r} has {n}.")
        settings = max(outcome.chosen, key=outcome.chosen.count)
        X, rows = self.data[outcome.site].rows_at(outcome.position, head)
        keep = np.isin(rows, outcome.rows)
        codes = self.design.codes[MAIN][rows[keep]]
        return fit_direction(
            outcome.site, outcome.position, head, X[keep], codes, self.probe[0], settings
        )

    def problems_at(
        self, sites: str | Sequence[str] = "*", positions: Sequence[str] | None = None
    ) -> list[Outcome]:
        """Outcomes of the task itself at some sites and positions."""
        wanted = {str(site) for site in _matching(sites, self.outcomes)}
        return [
            outcome
            for outcome in self.outcomes
            if outcome.control == MAIN
            and outcome.site in wanted
            and (positions is None or outcome.position in positions)
        ]

    def picks(self, among: Sequence[Outcome]) -> list[Outcome]:
        """For each fold the problem with the best validation score; ties go to the first."""
        return [
            among[int(np.argmax([each.inner[fold] for each in among]))]
            for fold in range(self.design.n_folds)
        ]


def sweep(
    data: Activations,
    *,
    label: str,
    group: str | None = "group",
    sites: str | Iterable[str] = "*",
    positions: str | Iterable[str] | None = None,
    heads: bool = False,
    where: str | None = None,
    probe: str | Any = "logistic",
    grid: Mapping[str, Sequence[Any]] | None = None,
    controls: Sequence[str] = (SHUFFLED, TYPES),
    control_type: str | None = "type",
    baselines: Mapping[str, Activations] | None = None,
    n_folds: int = 5,
    n_shuffles: int = 5,
    seed: int = 0,
    n_jobs: int = 1,
    n_resamples: int = 1000,
    progress: bool = True,
) -> ProbeSweep:
    """Fit probes for a label at every site and position.

    Args:
        data: Activations from `collect` or of a store.
        label: Column of the labels to predict, for example `present` or `wrong`.
        group: Column whose equal values are never split (scene or image).
        sites: Names or globs among the sites of `data`.
        positions: Among those of `data`; all by default.
        heads: One problem per head at sites that have heads.
        where: Which examples take part, for example `"asked_shape == 'ring'"`.
        probe: `logistic`, `ridge`, `mean_difference`, `mlp`, or a scikit-learn classifier.
        grid: Settings to choose from inside the training folds; the probe's usual ones by default.
        controls: Among `shuffled_labels`, `control_task`, `untrained`, `pixels`; the last two need
            their activations in `baselines`.
        control_type: Column of the types of the control task (`shape|color|cell` in scenes).
        baselines: Activations by control: `untrained` at the same sites and positions; `pixels`.
        n_folds: Outer folds, at least 3: one is held out, one chooses the regularisation.
        n_shuffles: How often the labels are shuffled, at least 2; the interval of `shuffled` is
            made of the spread between them.
        seed: Of folds, controls and intervals.
        n_jobs: Processes; problems are spread over them.
        n_resamples: Has no effect: the intervals are in closed form.
        progress: Show a bar.

    Returns:
        The table of all held-out predictions, and a summary with, per problem, `balanced_accuracy`,
        `auroc` (two classes), `shuffled` and `selectivity` (each with `_low` and `_high`), `n`,
        `chance` (the best guess without the image, see `probing.chance`), and the p-value that
        balanced accuracy is above chance, with its Benjamini-Hochberg adjustment over the problems.
        `selectivity` is over several labellings of the control task.

    Raises:
        UsageError: No group, an unknown label, control, probe or position, or a missing baseline.
        SiteError: No site matches.
    """
    baselines = dict(baselines or {})
    _check_controls(controls, baselines, data)
    estimator, settings = probe_of(probe, grid)
    design = design_of(
        data,
        label=label,
        group=group,
        where=where,
        control_type=control_type,
        controls=tuple(controls),
        n_folds=n_folds,
        n_shuffles=n_shuffles,
        seed=seed,
    )
    places = [positions] if isinstance(positions, str) else positions
    problems = list(_problems(MAIN, data, sites, places, heads))
    for name, other in baselines.items():
        trained_alike = name == UNTRAINED
        problems += _problems(
            name, other, sites if trained_alike else "*", places if trained_alike else None, heads
        )
    if not problems:
        raise UsageError(f"The sites {sites} have none of the positions {places}.")
    bar = tqdm(problems, desc="probes", unit="problem", disable=not progress)
    tasks = (joblib.delayed(fit_problem)(each, design, estimator, settings) for each in bar)
    found: Any = joblib.Parallel(n_jobs=n_jobs)(tasks)
    outcomes: tuple[Outcome, ...] = tuple(found)
    table = ResultTable(
        pd.concat([rows_of(each, design, data) for each in outcomes], ignore_index=True),
        {**data.provenance, "seed": seed, "label": label, "group": group, "where": where}
        | {"probe": str(probe), "grid": settings, "controls": list(controls), "n_folds": n_folds}
        | {"n_shuffles": n_shuffles},
    )
    summary = summary_of(outcomes, design)
    return ProbeSweep(table, summary, design, outcomes, data, (estimator, settings), seed)


def _check_controls(
    controls: Sequence[str], baselines: Mapping[str, Activations], data: Activations
) -> None:
    for name in controls:
        if name not in CONTROLS:
            raise UsageError(f"There is no control {name!r}; there are {', '.join(CONTROLS)}.")
        if name in (UNTRAINED, PIXELS) and name not in baselines:
            raise UsageError(
                f"The control {name!r} needs its activations: pass baselines={{{name!r}: "
                f"probing.{name}(...)}}."
            )
    for name, other in baselines.items():
        if name not in controls:
            raise UsageError(f"The baseline {name!r} is not among the controls {list(controls)}.")
        if list(other.label("example")) != list(data.label("example")):
            raise UsageError(f"The baseline {name!r} is of other examples than the activations.")


def _problems(
    control: str,
    data: Activations,
    sites: str | Iterable[str],
    positions: Iterable[str] | None,
    heads: bool,
) -> Iterable[Problem]:
    wanted = None if positions is None else list(positions)
    unknown = [name for name in wanted or [] if name not in data.positions]
    if unknown and control == MAIN:
        raise UsageError(
            f"There is no position {unknown[0]!r} in these activations; they have "
            f"{', '.join(data.positions)}."
        )
    for site in data.select(sites if isinstance(sites, str) else list(sites)):
        here = data[site]
        for position in (*here.positions, *here.every):
            if wanted is not None and position not in wanted:
                continue
            split = heads and here.heads is not None
            for head in range(here.heads or 0) if split else [None]:
                X, rows = here.rows_at(position, head)
                name = PIXELS if control == PIXELS else site
                yield Problem(control, name, position, head, X, rows)


def _matching(sites: str | Sequence[str], outcomes: Sequence[Outcome]) -> list[Site]:
    names = dict.fromkeys(each.site for each in outcomes if each.control == MAIN)
    return select(sites, [Site.parse(name) for name in names])
