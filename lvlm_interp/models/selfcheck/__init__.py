"""The self-check: every declared site reads what it says, and writing there has an effect.

It costs three forwards: one of five rows made of the same input (`rows`), in which every site is
noised and every identity between sites is looked at (`blocks` inside of blocks, `stations` between
them); a bare one of one row, to whose logits the clean row's are compared; and a recorded one,
which says whether the fast path of patching may be taken.
"""

from lvlm_interp.models.selfcheck.check import inspect, self_check
from lvlm_interp.models.selfcheck.report import CheckReport, SiteCheck

__all__ = ["CheckReport", "SiteCheck", "inspect", "self_check"]
