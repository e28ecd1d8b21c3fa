"""Statistics over runs and gameas Agarwal et al. (2021), "Deep RL at the Edge of the Statistical Precipice", has them.

Pure NumPy. Scores come by game, one for each run; games may have different numbers of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A statistic with its 95 % bootstrap interval. runs: how many there are of all games together."""

    value: float
    low: float
    high: float
    games: int
    runs: int


def compute_iqm(scores: ArrayLike) -> float:
    """Return the interquartile mean: that of the middle half, without the lowest and highest ``n // 4`` values.

    Args:
        scores: of any shape, at least one.
    """
    values = np.sort(np.asarray(scores, np.float64), axis=None)
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean())


def estimate_iqm(by_game: Sequence[ArrayLike], repetitions: int = 2000, seed: int = 0) -> Interval:
    """Return the interquartile mean over all runs of all games, with a stratified bootstrap interval.

    Stratified: each repetition draws the runs of each game anew, with replacement, and keeps the games.

    Args:
        by_game: the scores of each game's runs, at least one.
        repetitions: of the bootstrap.
        seed: of its random numbers.
    """
    rng = np.random.default_rng(seed)
    games = [np.asarray(scores, np.float64) for scores in by_game]
    drawn = np.concatenate([_draw(scores, repetitions, rng) for scores in games], axis=1)
    drawn.sort(axis=1)
    cut = drawn.shape[1] // 4
    low, high = np.percentile(drawn[:, cut : drawn.shape[1] - cut].mean(axis=1), (2.5, 97.5))
    return Interval(compute_iqm(np.concatenate(games)), float(low), float(high), len(games), drawn.shape[1])


def compute_profile(by_game: Sequence[ArrayLike], thresholds: ArrayLike) -> Float64:
    """Return the performance profile: the share of runs, of all games, that score above each threshold.

    Args:
        by_game: the scores of each game's runs, at least one.
        thresholds: float64[T].

    Returns:
        float64[T], 0–1.
    """
    scores = np.concatenate([np.asarray(scores, np.float64) for scores in by_game])
    above: Float64 = (scores[:, None] > np.asarray(thresholds, np.float64)).mean(axis=0)
    return above


def _draw(scores: Float64, repetitions: int, rng: np.random.Generator) -> Float64:
    drawn: Float64 = scores[rng.integers(len(scores), size=(repetitions, len(scores)))]
    return drawn
