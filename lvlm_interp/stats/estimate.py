"""A number with its interval."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Attributes:
        estimate: The point estimate; NaN where there is no data.
        low: Lower end of the interval; NaN where the data cannot give one (a single cluster), and
            infinite where they leave any value possible (a ratio over a gap that may be zero).
        high: Upper end of the interval; likewise.
        n: Number of observations behind it (rows, not clusters).
    """

    estimate: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        """The four fields, with None for what is not finite so that the result is valid JSON."""
        return {
            name: value if math.isfinite(value) else None for name, value in asdict(self).items()
        }

    def above(self, value: float) -> bool:
        """Whether the whole interval lies above `value`; False without an interval."""
        return bool(self.low > value)

    def below(self, value: float) -> bool:
        """Whether the whole interval lies below `value`; False without an interval."""
        return bool(self.high < value)

    def __str__(self) -> str:
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}] (n={self.n})"
