"""What a rule is: a benchmark, a name that says whose it is and of when, and a way to score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvlm_interp.errors import UsageError
from lvlm_interp.evaluation.pairing import Paired
from lvlm_interp.stats import Estimate

__all__ = ["Outcome", "Rule", "Settings", "named"]


@dataclass(frozen=True)
class Settings:
    """What a rule may need beside answers and truth.

    Attributes:
        n_resamples: Draws of the bootstrap; 0 leaves the intervals out.
        seed: Of the draws.
        vectors: Word vectors, for `amber-reference`.
    """

    n_resamples: int = 1000
    seed: int = 0
    vectors: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What a rule gives.

    Attributes:
        scores: By name.
        read: What the rule makes of each answer, to be compared with what another rule makes of it.
        unparsed: Answers that the rule could not read.
        controls: Scores of constant answers and the like, by name.
        notes: What a reader of the scores must know.
        extra: Anything else, JSON.
    """

    scores: Mapping[str, Estimate]
    read: Sequence[Any] = ()
    unparsed: int = 0
    controls: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """How answers to one benchmark become scores.

    Attributes:
        name: `bench-vintage`.
        bench: Of `lvlm_interp.data.benchmarks`.
        about: Whose rule it is, in one line.
        score: The rule.
        own: Whether it is ours rather than a published one.
    """

    name: str
    bench: str
    about: str
    score: Callable[[Paired, Settings], Outcome]
    own: bool = False


def named(rules: Sequence[Rule], bench: str, name: str | None) -> Rule:
    """A rule by name; the first of the benchmark where none is given.

    Raises:
        UsageError: No such benchmark, or no such rule of it.
    """
    of_it = [rule for rule in rules if rule.bench == bench]
    if not of_it:
        benches = ", ".join(dict.fromkeys(rule.bench for rule in rules))
        raise UsageError(f"no benchmark {bench!r} to score; there are {benches}")
    if name is None:
        return of_it[0]
    found = next((rule for rule in of_it if rule.name == name), None)
    if found is None:
        names = ", ".join(rule.name for rule in of_it)
        raise UsageError(f"{bench} has no rule {name!r}; it has {names}")
    return found
