"""PatchResult: one row per pair and component, and recovery with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from lvlm_interp.errors import UsageError
from lvlm_interp.results import Result
from lvlm_interp.stats import mean_of_ratios, ratio_of_means

NO_GAP = 1e-6
"""Gaps below this (in units of the metric) are rounding, and a ratio over them means nothing."""

RatioMethod = Literal["ratio_of_means", "mean_of_ratios"]

COMPONENT = ("tower", "layer", "site", "head", "neuron", "position")
"""Columns that tell components apart."""


@dataclass(frozen=True, repr=False)
class PatchResult(Result):
    """Outcome of patching.

    The table has one row per pair and component: `value` is the recovery of that pair (NaN where
    clean and corrupt do not differ), with `m_clean`, `m_corrupt`, `m_patched` (in the unit of the
    metric `of`), `direction`, `kind`, `level`, `corruption`, `group`, and `path`: the engine.

    Attributes:
        no_gap: Ids of the pairs whose clean and corrupt metric do not differ; left out of ratios.
        n_forwards: Cost, in full forwards over one pair; partial ones count by their share, and a
            backward as two.
        signed: Whether values have a direction; scores without one rank, and are no recovery.
    """

    no_gap: tuple[str, ...] = ()
    n_forwards: float = 0.0
    signed: bool = True

    @property
    def n_no_gap(self) -> int:
        """How many pairs are left out of ratios."""
        return len(self.no_gap)

    def recovery(
        self,
        by: str | Sequence[str] = COMPONENT,
        *,
        method: RatioMethod = "ratio_of_means",
        cluster: str = "group",
        n_resamples: int = 2000,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Recovery per component (or any other grouping) with 95% intervals.

        Args:
            by: Columns that make a group.
            method: `ratio_of_means`, sum of effects over sum of gaps, steady when some gaps are
                small; or `mean_of_ratios`, every pair weighs alike.
            cluster: Column whose rows are resampled together.
            n_resamples: Of the bootstrap.
            seed: Of the bootstrap.

        Returns:
            The `by` columns, then `estimate, low, high, n`; largest estimate first.

        Raises:
            UsageError: Unknown method or column, or scores without sign.
        """
        if not self.signed:
            raise UsageError("These scores have no sign: they rank components and are no recovery.")
        columns = [by] if isinstance(by, str) else list(by)
        frame = self.table.frame
        unknown = [name for name in (*columns, cluster) if name not in frame]
        if unknown:
            raise UsageError(
                f"No column {unknown[0]!r}; it has {', '.join(map(str, frame.columns))}."
            )
        if method not in ("ratio_of_means", "mean_of_ratios"):
            raise UsageError(
                f"Unknown method {method!r}: expected 'ratio_of_means' or 'mean_of_ratios'."
            )
        ratio = ratio_of_means if method == "ratio_of_means" else mean_of_ratios
        kept = frame[(frame["m_clean"] - frame["m_corrupt"]).abs() >= NO_GAP]
        rows = []
        for key, group in kept.groupby(columns, dropna=False, sort=False, observed=True):
            effect, gap = effect_and_gap(group)
            found = ratio(
                effect.to_numpy(),
                gap.to_numpy(),
                group[cluster].to_numpy(),
                n_resamples=n_resamples,
                seed=seed,
            )
            values = key if isinstance(key, tuple) else (key,)
            rows.append(
                dict(zip(columns, values, strict=True))
                | {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
            )
        table = pd.DataFrame(rows, columns=[*columns, "estimate", "low", "high", "n"])
        table = table.astype({name: frame[name].dtype for name in columns})
        return table.sort_values("estimate", ascending=False, kind="stable", ignore_index=True)


def effect_and_gap(frame: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Numerator and denominator of recovery, row by row, for either direction.

    Denoising: (m_patched - m_corrupt) / (m_clean - m_corrupt). Noising, its mirror:
    (m_patched - m_clean) / (m_corrupt - m_clean).
    """
    denoise = frame["direction"] == "denoise"
    base = frame["m_corrupt"].where(denoise, frame["m_clean"])
    other = frame["m_clean"].where(denoise, frame["m_corrupt"])
    return frame["m_patched"] - base, other - base
