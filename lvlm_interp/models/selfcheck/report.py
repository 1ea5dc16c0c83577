"""What a self-check found: one line per site."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""Largest error of a read, in units of `identities.off`: what was added at the same position."""

BARE = {torch.float32: 1e-3, torch.float64: 1e-7, torch.bfloat16: 0.2, torch.float16: 0.05}
"""Largest difference of logits from a bare run, relative to the largest logit of a position: the
attention function rounds in another order than the model's own, in every layer."""


@dataclass(frozen=True)
class SiteCheck:
    """What was found at one site.

    Attributes:
        site: The site.
        read_error: Largest difference from what it should be by its neighbours, in units of what
            was added there; None where only the write says something.
        write_effect: Largest change at the next site by noise of half a standard deviation; that of
            the next site itself, where nothing goes on from there.
        floor: The same change in the control row without noise.
    """

    site: str
    read_error: float | None
    write_effect: float
    floor: float

    def ok(self, tolerance: float) -> bool:
        """Whether it reads right and writes with an effect."""
        reads = self.read_error is None or self.read_error <= tolerance
        return reads and self.written

    @property
    def written(self) -> bool:
        """Whether writing has an effect."""
        return self.write_effect > 0 and self.write_effect > 3 * self.floor


@dataclass
class CheckReport:
    """The outcome of a self-check.

    Attributes:
        model: Its name.
        tolerance: Largest error of a read.
        rows: Of the batch that was run.
        forwards: How many were run.
        checks: One per site.
        bare_error: How far reading all sites moves the logits of a run without hooks, relative to
            the largest logit of a position.
        bare_tolerance: How far it may.
    """

    model: str
    tolerance: float
    rows: int
    forwards: int = 3
    checks: list[SiteCheck] = field(default_factory=list)
    bare_error: float = 0.0
    bare_tolerance: float = float("inf")

    @property
    def failed(self) -> list[SiteCheck]:
        """Sites that did not pass; `logits` for the comparison with a bare run."""
        failed = [check for check in self.checks if not check.ok(self.tolerance)]
        if not self.bare_error <= self.bare_tolerance:
            failed.append(SiteCheck("logits", self.bare_error, 1.0, 0.0))
        return failed

    def complaint(self, check: SiteCheck) -> str:
        """What is wrong with a site that did not pass."""
        if check.site == "logits":
            return (
                f"reading every site moves the logits by {check.read_error:.1e} of their size "
                f"(allowed {self.bare_tolerance:.0e})"
            )
        if check.read_error is not None and not check.read_error <= self.tolerance:
            return f"{check.site} reads {check.read_error:.1e} off (allowed {self.tolerance:.0e})"
        return f"{check.site} has no effect when written"

    def __str__(self) -> str:
        lines = [f"{'site':<28}{'read error':>12}{'write effect':>14}"]
        for check in self.checks:
            read = "" if check.read_error is None else f"{check.read_error:.1e}"
            mark = "" if check.ok(self.tolerance) else "   FAILED"
            lines.append(f"{check.site:<28}{read:>12}{check.write_effect:>14.1e}{mark}")
        passed = sum(check.ok(self.tolerance) for check in self.checks)
        lines.append(f"{passed} of {len(self.checks)} sites read and write what they say.")
        mark = "" if self.bare_error <= self.bare_tolerance else "   FAILED"
        lines.append(f"reading them all moves the logits by {self.bare_error:.1e}{mark}")
        return "\n".join(lines)
