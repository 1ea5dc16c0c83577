"""The game of three sources against worked numbers, brute force, and its own axioms."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_interp.attribution import answer_set, dividends, four_runs, owen, shapley
from lvlm_interp.attribution.game import subsets
from lvlm_interp.errors import UsageError

NUMBERS = st.floats(-5, 5)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ((0.2, 0.2, 3.1, 3.1), (2.9, 0.0, 0.2, 0.0)),
        ((0.1, 3.3, -1.9, 2.8), (-1.25, 3.95, 0.1, 1.5)),
        ((0.0, 0.3, 0.4, 3.0), (1.55, 1.45, 0.0, 2.3)),
    ],
)
def test_worked_games_of_log_odds(runs, expected):
    game = four_runs(*runs)
    found = (game.image, game.prompt, game.prior, game.interaction)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert game.total == pytest.approx(runs[-1], abs=1e-9)


def test_a_worked_game_over_an_answer_set():
    runs = np.log([(0.7, 0.2, 0.1), (0.6, 0.3, 0.1), (0.3, 0.6, 0.1), (0.2, 0.75, 0.05)])
    game = answer_set(*runs, said=1)
    found = (game.image, game.prompt, game.prior)
    np.testing.assert_allclose(found, (0.82748, 0.27283, -0.28938), atol=5e-6)
    assert game.total == pytest.approx(np.log(0.75) - np.log(1 / 3), abs=1e-9)


def test_a_constant_prior_has_no_say_over_an_answer_set():
    even = np.log(np.full(4, 0.25))
    told = np.log(np.array([0.7, 0.1, 0.1, 0.1]))
    game = answer_set(even, even, told, told, said=0)
    np.testing.assert_allclose((game.prior, game.prompt), (0, 0), atol=1e-9)
    assert game.image == pytest.approx(np.log(0.7 * 4), abs=1e-9)


def test_a_twin_without_the_prior_gives_all_eight():
    i, p, prior = "image", "prompt", "prior"
    value = {frozenset(): 0.0, frozenset({i}): -3.0, frozenset({prior}): 2.0}
    value[frozenset({i, prior})] = 1.4
    values = value | {s | {p}: v + 0.5 for s, v in value.items()}
    phi = shapley(values, (i, p, prior))
    np.testing.assert_allclose([phi[i], phi[p], phi[prior]], [-1.8, 0.5, 3.2], atol=1e-9)
    found = dividends(values, (i, p, prior))
    assert found[frozenset({i, prior})] == pytest.approx(2.4, abs=1e-9)
    assert sum(found.values()) == pytest.approx(values[frozenset({i, p, prior})], abs=1e-9)
    assert len(found) == 7


@given(st.lists(NUMBERS, min_size=16, max_size=16))
def test_values_are_the_means_over_orders(numbers):
    players = ("a", "b", "c", "d")
    values = dict(zip(subsets(players), numbers, strict=True))
    values[frozenset()] = 0.0
    unions = {"x": ("a", "b"), "y": ("c",), "z": ("d",)}
    together = [
        order for order in permutations(players) if abs(order.index("a") - order.index("b")) == 1
    ]
    for found, orders in (
        (shapley(values, players), list(permutations(players))),
        (owen(values, unions), together),
    ):
        for player in players:
            gains = [
                values[frozenset(order[: order.index(player) + 1])]
                - values[frozenset(order[: order.index(player)])]
                for order in orders
            ]
            assert found[player] == pytest.approx(np.mean(gains), abs=1e-9)


def test_the_four_runs_are_the_shapley_values_of_their_game():
    rng = np.random.default_rng(0)
    l, lp, li, lip = rng.normal(size=(4, 7))  # noqa: E741
    i, p, prior = "image", "prompt", "prior"
    off = {frozenset(): 0 * l, frozenset({p}): lp - l, frozenset({i}): li - l}
    off[frozenset({i, p})] = lip - l
    values = off | {s | {prior}: v + l for s, v in off.items()}
    phi, game = shapley(values, (i, p, prior)), four_runs(l, lp, li, lip)
    np.testing.assert_allclose(phi[i], game.image, atol=1e-9)
    np.testing.assert_allclose(phi[p], game.prompt, atol=1e-9)
    np.testing.assert_allclose(phi[prior], game.prior, atol=1e-9)


def test_exchanging_reply_and_foil_turns_every_sign():
    runs = np.random.default_rng(1).normal(size=(4, 5))
    game, mirrored = four_runs(*runs), four_runs(*-runs)
    for name in ("image", "prompt", "prior", "interaction"):
        np.testing.assert_allclose(getattr(game, name), -getattr(mirrored, name), atol=1e-12)


def test_a_game_with_a_hole_is_refused():
    with pytest.raises(UsageError, match="needs a value for each of its 4 coalitions"):
        shapley({frozenset(): 0.0}, ("a", "b"))
