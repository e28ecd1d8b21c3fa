"""The options of a check, and the listeners that are told of its progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from convert.runtimes import DEVICES
from runtime_check.compare import DEFAULT_ATOL, DEFAULT_RTOL
from runtime_check.replay import EpisodeLog

SIDE_BY_SIDE = 16
BLOCK = 32  # observations
_SEEDS = 2**31  # what an emulator takes


@dataclass(frozen=True)
class Options:
    """How to check, the same for every agent.

    backends: their names; empty for every artefact of the agent.
    episodes: how many, each with the next seed after ``seed``.
    max_steps: where an episode is cut off; None for the protocol's own limit.
    epsilon: the probability of a random action, drawn by the seed.
    shadow: whether the reference acts and every backend answers. solo: whether each backend plays on its own.
    device: ``auto``, ``cpu`` or ``gpu``. tf32: whether GPUs may use TF32 instead of float32.
    atol, rtol: the allowed error, absolute and relative to the largest Q-value of an observation.
    protocol: the name of the one that is played; None for each agent's own.
    frames: how many steps of an agent are kept for the report to show; those of the first episodes.

    Raises:
        ValueError: a value is out of range.
    """

    backends: tuple[str, ...] = ()
    episodes: int = 1
    max_steps: int | None = None
    seed: int = 0
    epsilon: float = 0.0
    shadow: bool = True
    solo: bool = False
    device: str = "auto"
    tf32: bool = False
    atol: float = DEFAULT_ATOL
    rtol: float = DEFAULT_RTOL
    protocol: str | None = None
    frames: int = 0

    def __post_init__(self) -> None:
        """Refuse what would check nothing, or something else than was meant."""
        expectations = (
            ("backends", not isinstance(self.backends, str), "a tuple of names"),
            ("episodes", self.episodes >= 1, "at least 1"),
            ("max_steps", self.max_steps is None or self.max_steps >= 1, "at least 1, or None"),
            ("seed", 0 <= self.seed <= _SEEDS - self.episodes, "0 or more, and every seed below 2**31"),
            ("epsilon", 0 <= self.epsilon <= 1, "from 0 to 1"),
            ("shadow", self.shadow or self.solo, "shadow or solo, or both"),
            ("device", self.device in DEVICES, ", ".join(map(repr, DEVICES))),
            ("atol", 0 <= self.atol < math.inf, "a finite number, 0 or more"),
            (
                "frames",
                self.frames == 0 or (self.frames > 0 and self.shadow),
                "0 or more, and 0 without a shadow replay",
            ),
            ("rtol", 0 <= self.rtol < math.inf, "a finite number, 0 or more"),
        )
        for name, is_good, expected in expectations:
            if not is_good:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {expected}")

    @property
    def width(self) -> int:
        """How many episodes run side by side."""
        return min(self.episodes, SIDE_BY_SIDE)

    @property
    def batch(self) -> int:
        """How many observations a backend is asked at once, at most. In solo play, it is asked step by step."""
        return BLOCK if self.shadow else self.width


@dataclass(frozen=True)
class Listeners:
    """Who follows a check.

    start: called with the number of episodes to be played. steps: with the number of steps that were just taken.
    episode: with a backend's name, the mode and the log of an episode that ended.
    """

    start: Callable[[int], None] = lambda _: None
    steps: Callable[[int], None] = lambda _: None
    episode: Callable[[str, str, EpisodeLog], None] = lambda *_: None
