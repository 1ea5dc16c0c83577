"""The game of three sources: how an answer's score is shared among image, prompt and prior.

Players are the image I, what the prompt says beyond the bare question P, and the language model's
prior for that question L. Four runs give the score m of an answer with L alone, with L and P, with
L and I, and with all three. Without L a run cannot be had; the prior is switched off by
subtracting m_L (in log-odds; over an answer set by dividing by p_L and renormalising), so that

    v() = 0, v(P) = m_LP - m_L, v(I) = m_LI - m_L, v(IP) = m_LIP - m_L, and m_L more with L.

The Shapley values of that game are

    phi_L = m_L
    phi_I = (m_LI + m_LIP - m_LP - m_L) / 2
    phi_P = (m_LP + m_LIP - m_LI - m_L) / 2,

their sum is m_LIP exactly, and the interaction of image and prompt is m_LIP - m_LI - m_LP + m_L.
L cannot interact by construction; with a twin model that lacks the prior all eight coalitions can
be run (`shapley` and `dividends` take any game).

Shapley 1953; Harsanyi 1963 (dividends); Owen 1977 (values with unions of players).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
from jaxtyping import Float

from lvlm_interp.errors import UsageError

Coalition = frozenset[str]
Values = Mapping[Coalition, Any]
"""Value of each coalition; numbers or arrays of one shape."""

IMAGE, PROMPT, PRIOR = "image", "prompt", "prior"
SOURCES = (IMAGE, PROMPT, PRIOR)


@dataclass(frozen=True)
class Shares:
    """What each source gives, in the unit of the score.

    Attributes:
        image, prompt, prior: Shapley values.
        interaction: Of image and prompt: what both say beyond the sum of what each says.
    """

    image: Float[np.ndarray, ...]
    prompt: Float[np.ndarray, ...]
    prior: Float[np.ndarray, ...]
    interaction: Float[np.ndarray, ...]

    @property
    def total(self) -> Float[np.ndarray, ...]:
        """The sum of the three, which is the score of the whole run."""
        return self.image + self.prompt + self.prior


def four_runs(prior: Any, with_prompt: Any, with_image: Any, whole: Any) -> Shares:
    """The game from its four runs (log-odds, or log-probabilities of tokens: the game is linear).

    Args:
        prior: m_L, the bare question without the image.
        with_prompt: m_LP, the whole prompt without the image.
        with_image: m_LI, the bare question with the image.
        whole: m_LIP, the run as it was.
    """
    l, lp, li, lip = (np.asarray(each, float) for each in (prior, with_prompt, with_image, whole))  # noqa: E741
    return Shares(
        image=(li + lip - lp - l) / 2,
        prompt=(lp + lip - li - l) / 2,
        prior=l.copy(),
        interaction=lip - li - lp + l,
    )


def answer_set(
    prior: Float[np.ndarray, "... answer"],
    with_prompt: Float[np.ndarray, "... answer"],
    with_image: Float[np.ndarray, "... answer"],
    whole: Float[np.ndarray, "... answer"],
    said: int,
) -> Shares:
    """The game on log-probability over an answer set, counted from a uniform choice.

    The prior is switched off by dividing by p_L and renormalising over the set, so that it is not
    linear and L takes part as any player.

    Args:
        prior: Log-probabilities of the answers, which need not be normalised: the bare question
            without the image.
        with_prompt: The whole prompt without the image.
        with_image: The bare question with the image.
        whole: The run as it was.
        said: Index of the answer that was said.
    """
    runs = [_normalised(np.asarray(e, float)) for e in (prior, with_prompt, with_image, whole)]
    n = runs[0].shape[-1]
    names = ((), (PROMPT,), (IMAGE,), (IMAGE, PROMPT))
    values: dict[Coalition, Any] = {}
    for players, run in zip(names, runs, strict=True):
        with_prior = run[..., said] + np.log(n)
        values[frozenset((*players, PRIOR))] = with_prior
        values[frozenset(players)] = _normalised(run - runs[0])[..., said] + np.log(n)
    phi = shapley(values, SOURCES)
    dividend = dividends(values, SOURCES)
    both = dividend[frozenset((IMAGE, PROMPT))]
    return Shares(phi[IMAGE], phi[PROMPT], phi[PRIOR], both)


def _normalised(logp: np.ndarray) -> np.ndarray:
    top = logp.max(-1, keepdims=True)
    return logp - top - np.log(np.exp(logp - top).sum(-1, keepdims=True))


def subsets(players: Sequence[str]) -> list[Coalition]:
    """Every coalition, smaller ones first."""
    return [
        frozenset(each) for size in range(len(players) + 1) for each in combinations(players, size)
    ]


def shapley(values: Values, players: Sequence[str]) -> dict[str, Any]:
    """Shapley value of each player: its mean marginal contribution over all orders.

    Raises:
        UsageError: A coalition has no value.
    """
    _check(values, players)
    n = len(players)
    found: dict[str, Any] = {}
    for player in players:
        rest = [other for other in players if other != player]
        found[player] = sum(
            factorial(len(s))
            * factorial(n - len(s) - 1)
            / factorial(n)
            * (np.asarray(values[s | {player}], float) - np.asarray(values[s], float))
            for s in subsets(rest)
        )
    return found


def dividends(values: Values, players: Sequence[str]) -> dict[Coalition, Any]:
    """Harsanyi dividends (Moebius transform): what each coalition has beyond its parts.

    Their sum over all non-empty coalitions is the value of everybody together.

    Raises:
        UsageError: A coalition has no value.
    """
    _check(values, players)
    return {
        s: sum((-1) ** (len(s) - len(t)) * np.asarray(values[t], float) for t in subsets(sorted(s)))
        for s in subsets(players)
        if s
    }


def owen(values: Values, unions: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Owen value of each player of a game whose players come in unions.

    Orders keep the members of a union together, so that the values of a union's members add up to
    its Shapley value in the game among unions.

    Args:
        values: Of every coalition of players.
        unions: Union to its players.

    Raises:
        UsageError: A coalition has no value.
    """
    everybody = [player for members in unions.values() for player in members]
    _check(values, everybody)
    n = len(unions)
    found: dict[str, Any] = {}
    for name, members in unions.items():
        others = [union for union in unions if union != name]
        for player in members:
            rest = [each for each in members if each != player]
            total: Any = 0.0
            for outer in subsets(others):
                base = frozenset(p for union in outer for p in unions[union])
                outside = factorial(len(outer)) * factorial(n - len(outer) - 1) / factorial(n)
                for inner in subsets(rest):
                    k = len(members)
                    inside = factorial(len(inner)) * factorial(k - len(inner) - 1) / factorial(k)
                    before = base | inner
                    gain = np.asarray(values[before | {player}], float) - np.asarray(
                        values[before], float
                    )
                    total = total + outside * inside * gain
            found[player] = total
    return found


def _check(values: Values, players: Sequence[str]) -> None:
    missing = [s for s in subsets(players) if s not in values]
    if missing:
        raise UsageError(
            f"The game of {', '.join(players)} needs a value for each of its {2 ** len(players)} "
            f"coalitions; {len(missing)} are missing, such as {sorted(missing[0]) or 'nobody'}."
        )
