"""Cost of a probe sweep beside the bare scikit-learn fits of the same problems, and over cores.

The baseline fits the same standardised rows with the same settings: 5 folds, 3 settings on the
inner split, one refit, and one fit per label control. The sweep adds folds, validation,
predictions, intervals and tables to it.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from harness import Row, interleaved, row, run

N_GROUPS, WIDTH, SITES = 300, 128, 4
MANY = 16
"""Sites of the sweep that is spread over cores: there must be something to spread."""


def rows() -> list[Row]:
    """Seconds of a sweep against bare fits, and against itself on more cores."""
    from lvlm_interp.probing import sweep

    data = activations()
    design: Any = sweep(data, label="present", progress=False).design
    functions = {
        "bare": lambda: bare(data, design),
        "sweep": lambda: sweep(data, label="present", progress=False),
    }
    seconds = interleaved(functions, repeats=3)
    size = f"{SITES} sites, {2 * N_GROUPS} rows x {WIDTH}"
    found = [
        row(
            f"sweep, {size}",
            "seconds",
            seconds["sweep"],
            baseline=seconds["bare"],
            baseline_name="bare scikit-learn fits",
            bound=1.2,
        )
    ]
    return found + scaling()


def scaling() -> list[Row]:
    """Seconds of a larger sweep on one core and on all that this process may use.

    `bound` is what the bare fits gain from the same pool of processes on this machine, whose cores
    may share more than their name says.
    """
    import joblib

    from lvlm_interp.probing import sweep

    cores = len(os.sched_getaffinity(0))
    if cores == 1:
        return []
    data = activations(MANY)
    design: Any = sweep(data, label="present", progress=False).design
    halves = [data.sites[start::cores] for start in range(cores)]
    seconds = interleaved(
        {
            "bare, one": lambda: bare(data, design),
            "bare, all": lambda: joblib.Parallel(n_jobs=cores)(
                joblib.delayed(bare)(data, design, some) for some in halves
            ),
            "one": lambda: sweep(data, label="present", progress=False),
            "all": lambda: sweep(data, label="present", n_jobs=cores, progress=False),
        },
        repeats=3,
    )
    return [
        row(
            f"sweep on {cores} cores, {MANY} sites, {2 * N_GROUPS} rows x {WIDTH}",
            "seconds",
            seconds["all"],
            baseline=seconds["one"],
            baseline_name="the same on one core",
            bound=seconds["bare, all"] / seconds["bare, one"],
        )
    ]


def activations(sites: int = SITES) -> Any:
    """Two rows per group, one of each label; a weak signal at every site."""
    from lvlm_interp.activations.forward import Chunk
    from lvlm_interp.activations.memory import Collected
    from lvlm_interp.activations.roles import parse_roles
    from lvlm_interp.sites import Site

    rng = np.random.default_rng(0)
    present = np.tile([True, False], N_GROUPS)
    pooled = {}
    for layer in range(sites):
        X = rng.standard_normal((2 * N_GROUPS, 1, WIDTH)).astype(np.float32)
        X[:, 0, :4] += present[:, None] * 0.5
        pooled[Site("text", layer, "resid_post")] = X
    rows_ = [
        {"example": str(i), "group": f"s{i // 2}", "present": bool(p), "type": f"t{i % 97}"}
        for i, p in enumerate(present)
    ]
    chunk = Chunk(pooled, {}, {}, rows_, [])
    return Collected(list(pooled), parse_roles("last"), {}, [chunk])


def bare(data: Any, design: Any, sites: Any = None) -> None:
    """The fits alone, at some sites, as one would write them with scikit-learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    def fit(X: np.ndarray, y: np.ndarray, C: float) -> None:
        model = LogisticRegression(C=C, class_weight="balanced", max_iter=1000, tol=1e-3)
        model.fit(StandardScaler().fit_transform(X), y)

    codes = design.codes
    for site in sites or data.sites:
        X = data[site][:, "last"]
        for fold in range(design.n_folds):
            fitting, _, held = design.training(fold, design.fold)
            for C in (0.001, 0.01, 0.1):
                fit(X[fitting], codes["none"][fitting], C)
            for name in codes:
                fit(X[~held], codes[name][~held], 0.01)


if __name__ == "__main__":
    run(rows)
