"""A circuit beside random circuits of its size, on every measure of `evaluation`.

What a circuit scores says little by itself: where a model is redundant, any forty edges may carry
its effect. So every measure is taken of random circuits too, and the rank of the circuit among them
is a test (the sufficiency test of Shi et al. 2024, arXiv 2410.13032, for faithfulness).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lvlm_interp.circuits.evaluation import (
    FRACTIONS,
    circuit_metric,
    faithfulness_curve,
    groups_of,
    sets_of_nodes,
    without,
)
from lvlm_interp.circuits.graph import Circuit, Graph
from lvlm_interp.circuits.selection import grow, random_circuit
from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.results import Result, ResultTable, provenance
from lvlm_interp.stats import Estimate, cluster_bootstrap, ratio_of_means

OWN = "own"
UNIT = "share of the full effect"
MORE_IS_BETTER = {
    "faithfulness": True,
    "completeness": False,
    "minimality": True,
    "cpr": True,
    "cmd": False,
}
"""Measures, and whether a larger value is better."""


@dataclass(frozen=True, repr=False)
class AgainstRandom(Result):
    """Measures of a circuit and of random ones.

    The table has one row per measure (`metric`) and circuit (`circuit`: `own`, `random 0`, ...)
    with `value`, `low` and `high`, its 95% interval over groups of pairs, and `n`, the pairs.
    """

    def of(self, measure: str) -> tuple[Estimate, list[Estimate]]:
        """One measure, of the circuit and of each random one.

        Raises:
            UsageError: It was not measured.
        """
        rows = self.table.frame[self.table.frame["metric"] == measure]
        if not len(rows):
            known = ", ".join(self.table.frame["metric"].unique())
            raise UsageError(f"No measure {measure!r} here: it has {known}.")
        columns = zip(rows["value"], rows["low"], rows["high"], rows["n"], strict=True)
        own, *random = (Estimate(value, low, high, int(n)) for value, low, high, n in columns)
        return own, random

    def summary(self) -> pd.DataFrame:
        """One row per measure.

        Returns:
            `measure`; `estimate, low, high` of the circuit; `random`, the mean of the random ones,
            with `random_low` and `random_high`, between which 95% of them lie; `better`, whether
            more or less of the measure is; and `p_value`, (1 + random circuits that are at least as
            good) / (1 + random circuits).
        """
        rows = []
        for measure in self.table.frame["metric"].unique():
            own, random = self.of(measure)
            values = np.array([each.estimate for each in random])
            more = MORE_IS_BETTER[measure]
            as_good = values >= own.estimate if more else values <= own.estimate
            low, high = np.quantile(values, [0.025, 0.975])
            rows.append(
                {
                    "measure": measure,
                    **{name: getattr(own, name) for name in ("estimate", "low", "high")},
                    "random": values.mean(),
                    "random_low": low,
                    "random_high": high,
                    "better": "more" if more else "less",
                    "p_value": (1 + as_good.sum()) / (1 + len(values)),
                }
            )
        return pd.DataFrame(rows)


def against_random(
    model: LVLM,
    circuit: Circuit,
    pairs: Sequence[ContrastPair],
    *,
    importance: Tensor | None = None,
    of: Literal["edges", "nodes"] = "edges",
    strategy: Literal["top", "greedy"] = "top",
    fractions: Sequence[float] = FRACTIONS,
    draws: int = 20,
    sets: int = 5,
    seed: int = 0,
    **options,
) -> AgainstRandom:
    """Measure a circuit, and random circuits of its size, on the same pairs.

    - `faithfulness`: F(C);
    - `completeness`: mean of |F(C without K) - F(M without K)| over sets K of the circuit's nodes,
      0 where the circuit is complete. Read it beside faithfulness: where K breaks the model, a
      circuit that does nothing is complete too;
    - `minimality`: mean of F(C) - F(C without v) over nodes v of the circuit;
    - `cpr`, `cmd`: of the ranking, beside random rankings; with `importance` only.

    Args:
        model: The model.
        circuit: The circuit.
        pairs: Pairs that had no part in its selection.
        importance: What the circuit was chosen by, of edges (`sender receiver role`) or of nodes
            (`sender`).
        of: What random circuits have as many of, and what a fraction counts.
        strategy: `top` draws random circuits uniformly; with `greedy` their edges too are grown
            from the logits, so that each lies on a path to them. For `cpr` and `cmd` as in
            `faithfulness_curve`.
        fractions: As in `faithfulness_curve`.
        draws: Random circuits.
        sets: Sets K, and at most as many nodes v, drawn for each circuit.
        seed: Of the draws and of the bootstrap.
        options: For `circuit_metric`.

    Raises:
        UsageError: The circuit is empty, or there are no draws.
    """
    if circuit.n_edges == 0 or draws < 1 or sets < 1:
        raise UsageError(
            f"A circuit of {circuit.n_edges} edges, draws={draws}, sets={sets}: expected at least "
            "one of each."
        )
    graph = circuit.graph
    size = circuit.n_edges if of == "edges" else len(circuit.nodes)
    drawn = _grown if of == "edges" and strategy == "greedy" else random_circuit
    circuits = [circuit, *(drawn(graph, size, seed + i, of=of) for i in range(draws))]
    found = [_alone(model, each, pairs, sets, seed, options) for each in circuits]
    if importance is not None:
        random = (random_ranking(graph, seed + i, of=of) for i in range(draws))
        for measures, ranking in zip(found, (importance, *random), strict=True):
            curve = faithfulness_curve(
                model, graph, ranking, pairs, of=of, strategy=strategy, fractions=fractions,
                seed=seed, **options,
            )  # fmt: skip
            assert curve.cpr is not None and curve.cmd is not None
            measures |= {"cpr": curve.cpr, "cmd": curve.cmd}
    facts = provenance(
        seed=seed, model=model.name, method="against random circuits", of=of, sets=sets, size=size
    )
    return AgainstRandom(ResultTable(_rows(found), facts))


def _rows(found: Sequence[dict[str, Estimate]]) -> list[dict[str, Any]]:
    names = [OWN, *(f"random {i}" for i in range(len(found) - 1))]
    return [
        {
            "metric": measure,
            "value": measures[measure].estimate,
            "unit": UNIT,
            "circuit": name,
            "low": measures[measure].low,
            "high": measures[measure].high,
            "n": measures[measure].n,
        }
        for measure in found[0]
        for name, measures in zip(names, found, strict=True)
    ]


def random_ranking(graph: Graph, seed: int, *, of: Literal["edges", "nodes"] = "edges") -> Tensor:
    """An importance of every edge, or of every node, that means nothing."""
    shape = graph.valid.shape if of == "edges" else (len(graph.senders),)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _grown(graph: Graph, n: int, seed: int, *, of: Literal["edges", "nodes"]) -> Circuit:
    kept = grow(graph, random_ranking(graph, seed, of=of), n)
    return Circuit(graph, kept, None, {"strategy": "random growth", "seed": seed, "n": n})


def _alone(
    model: LVLM,
    circuit: Circuit,
    pairs: Sequence[ContrastPair],
    sets: int,
    seed: int,
    options: dict,
) -> dict[str, Estimate]:
    """Measures of one circuit, by one call for all circuits that they need."""
    whole = Circuit(circuit.graph, circuit.graph.valid)
    rng = np.random.default_rng(seed)
    single = rng.permutation(np.array(circuit.nodes, dtype=object))[:sets].tolist()
    smaller = [without(circuit, [name]) for name in single]
    removed = sets_of_nodes(circuit, sets, seed)
    opened = [without(each, names) for names in removed for each in (circuit, whole)]
    inside, full, empty = circuit_metric(model, [circuit, *smaller, *opened], pairs, **options)
    own, one_less, both = np.split(inside, [1, 1 + len(smaller)])
    groups, gap = groups_of(pairs), full - empty
    apart = np.stack([*(both[::2] - both[1::2]), gap], axis=1)  # pair x (set..., gap)

    def mean_size(rows: np.ndarray) -> float:
        mean = rows.mean(axis=0)
        return float(np.abs(mean[:-1] / mean[-1]).mean())

    return {
        "faithfulness": ratio_of_means(own[0] - empty, gap, groups, seed=seed),
        "completeness": cluster_bootstrap(
            apart, groups, statistic=mean_size, n_resamples=1000, seed=seed
        ),
        "minimality": ratio_of_means(own[0] - one_less.mean(axis=0), gap, groups, seed=seed),
    }
