"""An episode as a person sees it: frame by frame, of one player or of several that play the same episode."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.runtimes import Answer
from runtime_check.protocols import Frame
from runtime_check.replay import EpisodeLog, Lane, Plan

AGENT, CHANCE, PERSON = "agent", "chance", "person"
Steer = Callable[[int], int | None]


@dataclass(frozen=True, eq=False)
class Step:
    """What a player saw at a step, and what it did.

    number: from 0. obs: uint8[frames, size, size], oldest frame first, 0–255. outputs: the network's, of this
    observation, by name; empty where no network plays. action: what was taken, as an index into the head. by: who
    chose it: ``agent``, ``chance`` or ``person``.
    """

    number: int
    obs: NDArray[np.uint8]
    outputs: Mapping[str, NDArray[Any]]
    action: int
    by: str


@dataclass(frozen=True, eq=False)
class Scene:
    """One emulator frame of every player.

    number: of the frame, from 0. frames, steps, returns: of each player; the return is that after the step. parted:
    the first frame on which any two of them saw different screens; None as long as there is none.
    """

    number: int
    frames: tuple[Frame, ...]
    steps: tuple[Step, ...]
    returns: tuple[float, ...]
    parted: int | None


class _Player:
    """Plays an episode, and keeps the frames of its last step."""

    def __init__(self, answer: Answer | None, plan: Plan, index: int) -> None:
        self._answer = answer
        self.frames: list[Frame] = []
        self.lane = Lane(plan, index, self.frames.append)
        self.step: Step | None = None

    def act(self, steer: Steer | None) -> None:
        """Take a step, unless the episode is over; then its last frame stays, in silence."""
        if self.lane.is_over:
            self.frames[:] = [_silence(self.frames[-1])]
            return
        self.frames.clear()
        obs = self.lane.episode.observation.copy()
        outputs = {} if self._answer is None else {name: rows[0] for name, rows in self._answer(obs[None]).items()}
        choice = int(outputs["q_values"].argmax()) if outputs else 0
        steered = steer(self.lane.steps) if steer else None
        if steered is None:
            action = self.lane.explore(choice)
            by = AGENT if action == choice else CHANCE
        else:
            action, by = steered, PERSON
        self.step = Step(self.lane.steps, obs, outputs, action, by)
        self.lane.act(choice if outputs else action, action)


def play_episode(
    answers: Sequence[Answer | None], plan: Plan, index: int, steer: Steer | None = None
) -> Generator[Scene, None, tuple[EpisodeLog, ...]]:
    """Play an episode and yield it frame by frame; return the log of each player, in the end.

    Args:
        answers: what each player's network answers; None where there is none. Each has an emulator of its own.
        plan: what to play.
        index: which of its episodes.
        steer: returns the action that a person takes at a step; None leaves it to the network.

    Raises:
        CheckError: the head does not fit the game, or there is no such game or ROM.
    """
    players = [_Player(answer, plan, index) for answer in answers]
    number, parted = 0, None
    while not all(player.lane.is_over for player in players):
        for player in players:
            player.act(steer)
        last = [player.frames[-1] for player in players]
        for frames in zip_longest(*(player.frames for player in players)):
            seen = tuple(frame or _silence(before) for frame, before in zip(frames, last, strict=True))
            if parted is None and any(not np.array_equal(seen[0].screen, frame.screen) for frame in seen[1:]):
                parted = number
            steps = tuple(player.step for player in players if player.step is not None)
            yield Scene(number, seen, steps, tuple(player.lane.episode_return for player in players), parted)
            number += 1
    return tuple(player.lane.to_log() for player in players)


def _silence(frame: Frame) -> Frame:
    return replace(frame, sound=np.full_like(frame.sound, 128))
