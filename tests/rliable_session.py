"""The statistics of scores against those of rliable: ``nox -s rliable``, in an environment of its own."""

from __future__ import annotations

import numpy as np
import pytest
from rliable import library, metrics

from runtime_check.scores.statistics import compute_iqm, compute_profile, estimate_iqm

RUNS_AND_GAMES = [(3, 55), (5, 26), (10, 6), (3, 1)]  # the first are the release's with references, and Atari 100k's
# Of the interval's width. The Monte Carlo error of the difference of two 2.5 % quantiles, of 2,000 and of 5,000 draws
# from a normal distribution, is sqrt(0.025 · 0.975 · (1 / 2000 + 1 / 5000)) / 0.0584 = 0.07 of a standard deviation,
# which is 0.018 of the width; this is five times as much.
TOLERANCE = 0.09


def make_scores(runs: int, games: int) -> np.ndarray:
    """Return float64[runs, games], as skewed as human-normalised returns: games differ more than the runs of a game."""
    rng = np.random.default_rng([runs, games])
    return rng.lognormal(0, 1.5, games) * rng.normal(1, 0.2, (runs, games))


def estimate_with_rliable(scores: np.ndarray) -> tuple[float, float, float]:
    np.random.seed(0)
    values, intervals = library.get_interval_estimates(
        {"all": scores}, lambda drawn: np.array([metrics.aggregate_iqm(drawn)]), reps=5000
    )
    return float(values["all"][0]), *map(float, intervals["all"][:, 0])


@pytest.mark.parametrize(("runs", "games"), [*RUNS_AND_GAMES, (1, 1), (1, 2), (1, 3), (7, 9)])
def test_the_interquartile_mean_is_rliables(runs, games):
    scores = make_scores(runs, games)
    assert compute_iqm(scores) == pytest.approx(metrics.aggregate_iqm(scores), rel=1e-12)


@pytest.mark.parametrize(("runs", "games"), RUNS_AND_GAMES)
def test_the_bootstrap_interval_is_rliables(runs, games):
    scores = make_scores(runs, games)
    value, low, high = estimate_with_rliable(scores)
    found = estimate_iqm(scores.T)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=TOLERANCE * (high - low))


@pytest.mark.parametrize(("runs", "games"), [each for each in RUNS_AND_GAMES if each[1] > 1])
def test_a_bootstrap_that_is_not_stratified_by_game_is_found(runs, games):
    """The comparison above can tell: all games as one, and runs for games, give other intervals."""
    scores = make_scores(runs, games)
    _, low, high = estimate_with_rliable(scores)
    for wrong in (estimate_iqm([scores.ravel()]), estimate_iqm(scores)):
        assert (wrong.low, wrong.high) != pytest.approx((low, high), abs=TOLERANCE * (high - low))


@pytest.mark.parametrize(("runs", "games"), RUNS_AND_GAMES)
def test_the_performance_profile_is_rliables(runs, games):
    scores, thresholds = make_scores(runs, games), np.linspace(0, 8, 101)
    profiles, _ = library.create_performance_profile({"all": scores}, thresholds, reps=2)
    assert compute_profile(scores.T, thresholds) == pytest.approx(profiles["all"], abs=1e-15)
