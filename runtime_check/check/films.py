"""The first steps of episodes, to be looked at step by step: screens, and what every backend answered."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runtime_check.compare import TIE, WRONG, Comparison, Float64, Outputs
from runtime_check.protocols import Episode
from runtime_check.replay import Batch, EpisodeLog, Lane

STEPS_PER_REEL = 100
KINDS = ("", TIE, WRONG)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a backend answered at each step: of S steps and A actions.

    differences: float32[S, A], its Q-values minus the oracle's. errors: float32[S], the largest of each step.
    kinds: uint8[S], the place in `KINDS` of its action, if it is not the oracle's. NaN from the step on at which it
    failed.
    """

    differences: NDArray[np.float32]
    errors: NDArray[np.float32]
    kinds: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Film:
    """The first S steps of an episode of a shadow replay.

    height, width: of the screen. palette: uint8[256, 3], the RGB of its indices. reels: the screens on which the
    reference acted, `STEPS_PER_REEL` in each, deflated: indices, each exclusive-ored with the one before in the reel.
    actions: uint8[S], what was taken. returns: float64[S + 1], before each step, and after the last. q_values:
    float32[S, A], the oracle's. gaps: float32[S], between its two best actions. allowed: float32[S], the error that is
    allowed to float32. answers: by backend.
    """

    episode: int
    seed: int
    height: int
    width: int
    palette: NDArray[np.uint8]
    reels: tuple[bytes, ...]
    actions: NDArray[np.uint8]
    returns: Float64
    q_values: NDArray[np.float32]
    gaps: NDArray[np.float32]
    allowed: NDArray[np.float32]
    answers: Mapping[str, Answers]


@dataclass(eq=False)
class _Take:
    """What is filmed of an episode so far."""

    seed: int
    palette: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((256, 3), np.uint8))
    known: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(256, np.bool_))
    size: tuple[int, int] = (0, 0)
    reels: list[bytes] = field(default_factory=list)
    screens: list[NDArray[np.uint8]] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    log: EpisodeLog | None = None
    q_values: list[Float64] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    allowed: list[float] = field(default_factory=list)
    answers: dict[str, list[tuple[Float64, float, int]]] = field(default_factory=dict)

    def add_screen(self, episode: Episode) -> None:
        screen = episode.read_indices()
        new = ~self.known[screen]
        if new.any():
            self.palette[screen[new]] = episode.read_screen()[new]
            self.known[screen[new]] = True
        self.size = (screen.shape[0], screen.shape[1])
        self.screens.append(screen)
        if len(self.screens) == STEPS_PER_REEL:
            self.end_reel()

    def end_reel(self) -> None:
        if self.screens:
            indices = np.stack(self.screens)
            indices[1:] ^= indices[:-1].copy()
            self.reels.append(zlib.compress(indices.tobytes(), 9))
            self.screens.clear()


class FilmMaker:
    """Films the first steps of each episode of a shadow replay."""

    def __init__(self, steps: int) -> None:
        """Take how many steps are kept, of all episodes together; 0 films nothing."""
        self._steps = steps
        self._takes: dict[int, _Take] = {}

    def see(self, batch: Batch, lanes: Sequence[Lane]) -> None:
        """Film what the episodes show, before the reference acts."""
        for episode, step, lane in zip(batch.episodes.tolist(), batch.steps.tolist(), lanes, strict=True):
            if step < self._steps:
                take = self._takes.setdefault(episode, _Take(lane.seed))
                take.add_screen(lane.episode)
            if step <= self._steps and episode in self._takes:
                self._takes[episode].returns.append(lane.episode_return)

    def end(self, log: EpisodeLog) -> None:
        """Take the log of an episode that is over."""
        for take in self._takes.values():
            if take.seed == log.seed:
                take.log = log

    def judge(
        self,
        batch: Batch,
        answers: Mapping[str, Outputs],
        comparisons: Mapping[str, Comparison],
        expected: Mapping[str, Float64],
        allowed: Float64,
    ) -> None:
        """Add what backends answered to what was filmed.

        Args:
            batch: what they saw.
            answers: of each backend.
            comparisons: of each backend with the oracle.
            expected: the oracle's answers.
            allowed: float64[N], the error that is allowed to float32.
        """
        q_values = expected["q_values"]
        kinds = {name: comparison.kinds for name, comparison in comparisons.items()}
        for place, (episode, step) in enumerate(zip(batch.episodes.tolist(), batch.steps.tolist(), strict=True)):
            if step >= self._steps:
                continue
            take = self._takes[episode]
            take.q_values.append(q_values[place])
            take.allowed.append(allowed[place])
            take.gaps.append(next(iter(comparisons.values())).gap[place])
            for name, comparison in comparisons.items():
                difference = answers[name]["q_values"][place] - q_values[place]
                kind = KINDS.index(kinds[name].get(place, ""))
                take.answers.setdefault(name, []).append((difference, float(comparison.error[place]), kind))

    def develop(self) -> tuple[Film, ...]:
        """Return the films of the first episodes, as many steps in all as are kept."""
        left, films = self._steps, []
        for episode, take in sorted(self._takes.items()):
            if take.log is not None and left > 0:
                film = _develop(episode, take, take.log, left)
                left -= len(film.actions)
                films.append(film)
        return tuple(films)


def _develop(episode: int, take: _Take, log: EpisodeLog, most: int) -> Film:
    take.end_reel()
    steps = min(len(take.q_values), most)
    returns = [*take.returns, log.episode_return][: steps + 1]
    return Film(
        episode,
        take.seed,
        *take.size,
        take.palette,
        tuple(take.reels[: -(-steps // STEPS_PER_REEL)]),
        np.array(log.actions[:steps], np.uint8),
        np.array(returns, np.float64),
        np.array(take.q_values[:steps], np.float32),
        np.array(take.gaps[:steps], np.float32),
        np.array(take.allowed[:steps], np.float32),
        {name: _to_answers(rows[:steps], steps, log.head_actions) for name, rows in take.answers.items()},
    )


def _to_answers(rows: Sequence[tuple[Float64, float, int]], steps: int, actions: int) -> Answers:
    differences = np.full((steps, actions), np.nan, np.float32)
    errors, kinds = np.full(steps, np.nan, np.float32), np.zeros(steps, np.uint8)
    for step, (difference, error, kind) in enumerate(rows):
        differences[step], errors[step], kinds[step] = difference, error, kind
    return Answers(differences, errors, kinds)
