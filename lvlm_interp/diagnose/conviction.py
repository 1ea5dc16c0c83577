"""Is there a flaw at a level? Yes, no, or not tested, by one exact test.

A verdict has three states. "No" is a finding as well: it needs data on which a flaw could have
shown. Without trigger pairs, with too few scenes, or where the model errs whatever is in sight,
nothing was tested, and the verdict says what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from lvlm_interp.data.examples import LEVELS
from lvlm_interp.stats import Estimate, paired_permutation_test, paired_rate_difference, rate

FLAW_GAP = 0.05
"""A flaw is found where the difference of errors is shown and estimated above this."""
ALPHA = 0.025
"""Chance to convict a model without a flaw, one-sided, at all levels together."""
LEAST_GROUPS = 8
"""Scenes below which nothing is tested: seven that all flip are the fewest that could convict."""
FEW_GROUPS = 20
"""Scenes below which intervals are wide and rest on few; the words say so."""
ERRS_THROUGHOUT = 0.5
"""Errors without the trigger whose lower bound is above this leave it nothing to add."""


@dataclass(frozen=True)
class Conviction:
    """What trigger pairs say of a level.

    Attributes:
        found: True, False, or None where it was not tested.
        pvalue: Of the exact sign-flip test, one-sided; None where it was not tested.
        groups: Scenes with trigger pairs.
        gap: Errors with the trigger minus those without, over the same pairs; None without them.
        missing: What there is to add before it can be tested; None where it was.
    """

    found: bool | None
    pvalue: float | None
    groups: int
    gap: Estimate | None
    missing: str | None


def convict(control: pd.DataFrame, triggered: pd.DataFrame) -> Conviction:
    """The exact test of one level.

    All rows of a scene change sides together (`stats.paired_permutation_test`; with one pair a
    scene it is McNemar's exact test). A flaw is found at p <= ALPHA / 3, so that a model without
    one is convicted at any of the three levels in ALPHA of the cases at most (Bonferroni).

    Args:
        control: Errors (`value`) and scenes (`group`) of the sides without the trigger.
        triggered: The same of the sides with it, pair by pair in the same order.
    """
    if control.empty or triggered.empty:
        return Conviction(None, None, 0, None, "there are no trigger pairs")
    first, second = triggered["value"].to_numpy(), control["value"].to_numpy()
    groups = control["group"].to_numpy()
    n = len(set(groups))
    gap = paired_rate_difference(first, second, groups)
    if n < LEAST_GROUPS:
        missing = f"trigger pairs are of {n} scene{'s' * (n > 1)}, and {LEAST_GROUPS} are needed"
        return Conviction(None, None, n, gap, missing)
    test = paired_permutation_test(first, second, groups, alternative="greater")
    if test.pvalue <= ALPHA / len(LEVELS) and gap.estimate > FLAW_GAP:
        return Conviction(True, test.pvalue, n, gap, None)
    if rate(second, groups).above(ERRS_THROUGHOUT):
        missing = (
            "it errs throughout, so that a trigger has nothing to add: questions are needed that "
            "it answers right without the trigger"
        )
        return Conviction(None, test.pvalue, n, gap, missing)
    return Conviction(False, test.pvalue, n, gap, None)
