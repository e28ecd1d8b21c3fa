"""Episodes side by side: observe, ask, act. And their logs, from which anyone can replay them.

An episode is a seed and the actions that were taken: a few KB. The emulator is deterministic in them, so a
replayed log shows the same observations, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import CheckError
from runtime_check.protocols import STANDARD, Episode, Frame, Protocol, Variation, find_protocol

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Plan:
    """What to play.

    game: its name in the release's paths. actions: the size of the agent's head. seed: of the first episode;
    the next has the next seed. max_steps: in each episode; None is no bound but the protocol's. epsilon: the
    probability of a uniformly random action in place of the agent's own. variation: the game's mode and difficulty.
    """

    game: str
    protocol: Protocol
    actions: int
    seed: int = 0
    episodes: int = 1
    max_steps: int | None = None
    epsilon: float = 0.0
    variation: Variation = STANDARD


@dataclass(frozen=True)
class EpisodeLog:
    """A played episode: where it started, every action that was taken, and what came of it.

    head_actions: the size of the agent's head. actions: as indices into the head. choices: the agent's own, which
    exploration may have overruled. episode_return: the sum of the unclipped rewards. game_over: False where the episode
    was cut off by a bound on its steps. ale: the version of ale-py that played; None where that is not known.
    """

    game: str
    protocol: str
    seed: int
    noops: int
    head_actions: int
    actions: tuple[int, ...]
    choices: tuple[int, ...]
    episode_return: float
    game_over: bool
    ale: str | None = None


@dataclass(frozen=True, eq=False)
class Batch:
    """What the episodes that are under way show at this moment.

    obs_nchw: uint8[N, 4, 84, 84], oldest frame first, 0–255. episodes: int64[N], their indices in the plan.
    steps: int64[N], how many actions each has taken.
    """

    obs_nchw: NDArray[np.uint8]
    episodes: NDArray[np.int64]
    steps: NDArray[np.int64]


class Lane:
    """An episode of a plan under way: its emulator, its own random numbers, what it did so far.

    Attributes:
        episode: in its emulator.
        seed: of the episode.
        steps: how many actions were taken.
        episode_return: the sum of the unclipped rewards so far.
    """

    def __init__(self, plan: Plan, index: int, on_frame: Callable[[Frame], None] | None = None) -> None:
        """Start an episode.

        Args:
            plan: what to play.
            index: which of its episodes, from 0.
            on_frame: is called with every emulator frame, see `Episode`.

        Raises:
            CheckError: the head does not fit the game, or there is no such game or ROM.
        """
        self._plan = plan
        self.index = index
        self.seed = plan.seed + index
        self.episode = Episode(
            plan.game, plan.protocol, self.seed, plan.actions, variation=plan.variation, on_frame=on_frame
        )
        # A seed sequence of two numbers, so that exploration shares no stream with anything else of the seed.
        self._exploration = np.random.default_rng((self.seed, 1))
        self._actions = bytearray()
        self._choices = bytearray()
        self.episode_return = 0.0

    @property
    def steps(self) -> int:
        return len(self._actions)

    @property
    def is_over(self) -> bool:
        """Whether the game is over, or the plan's bound is reached."""
        return self.episode.game_over or self.steps == self._plan.max_steps

    def explore(self, choice: int) -> int:
        """Return the action to take: the agent's choice, or with the plan's probability a random one."""
        if self._plan.epsilon and self._exploration.random() < self._plan.epsilon:
            return int(self._exploration.integers(self._plan.actions))
        return choice

    def act(self, choice: int, action: int) -> None:
        """Take an action.

        Args:
            choice: what the agent would do.
            action: what is done.
        """
        self._choices.append(choice)
        self.episode_return += self.episode.step(action)
        self._actions.append(action)

    def to_log(self) -> EpisodeLog:
        """Return what was played so far."""
        return EpisodeLog(
            self._plan.game,
            self._plan.protocol.name,
            self.seed,
            self.episode.noops,
            self._plan.actions,
            tuple(self._actions),
            tuple(self._choices),
            self.episode_return,
            self.episode.game_over,
            version("ale-py"),
        )


class Replay:
    """The episodes of a plan, several of them side by side, so that networks see batches.

    Use it as ``while batch := replay.observe(): … replay.act(actions)``. An observation after game over is never
    shown. Memory depends on the width alone, whatever the number of episodes.
    """

    def __init__(self, plan: Plan, width: int) -> None:
        """Start the first episodes.

        Args:
            plan: what to play.
            width: how many episodes run at once, at most.

        Raises:
            CheckError: the head does not fit the game, or there is no such game or ROM.
        """
        self._plan = plan
        self._next = min(width, plan.episodes)
        self._lanes = [Lane(plan, index) for index in range(self._next)]

    @property
    def lanes(self) -> Sequence[Lane]:
        """The episodes under way, in the order of the batch that `observe` returns."""
        return self._lanes

    def observe(self) -> Batch | None:
        """Return what the episodes under way show, or None when all are over."""
        if not self._lanes:
            return None
        return Batch(
            np.stack([lane.episode.observation for lane in self._lanes]),
            np.array([lane.index for lane in self._lanes]),
            np.array([lane.steps for lane in self._lanes]),
        )

    def act(self, actions: Sequence[int] | NDArray[np.integer[Any]]) -> list[EpisodeLog]:
        """Take one action in each episode of the last batch and return the logs of those that ended.

        Args:
            actions: the agent's own; exploration is added here.
        """
        for lane, action in zip(self._lanes, actions, strict=True):
            lane.act(int(action), lane.explore(int(action)))
        finished = []
        for place, lane in reversed(list(enumerate(self._lanes))):
            if lane.is_over:
                finished.append(lane.to_log())
                self._replace(place)
        return finished[::-1]

    def _replace(self, place: int) -> None:
        if self._next == self._plan.episodes:
            del self._lanes[place]
        else:
            self._lanes[place] = Lane(self._plan, self._next)
            self._next += 1


def replay_log(log: EpisodeLog) -> Iterator[NDArray[np.uint8]]:
    """Yield each observation on which the logged episode acted, in order, as uint8[4, 84, 84].

    Raises:
        CheckError: the log is not of a game that can be played here.
    """
    episode = Episode(log.game, find_protocol(log.protocol), log.seed, log.head_actions, log.noops)
    for action in log.actions:
        yield episode.observation.copy()
        episode.step(action)


def to_json_line(log: EpisodeLog) -> str:
    """Return a log as one line of JSON; an action is one digit in base 36."""
    document = {
        "game": log.game,
        "protocol": log.protocol,
        "seed": log.seed,
        "noops": log.noops,
        "head_actions": log.head_actions,
        "return": log.episode_return,
        "game_over": log.game_over,
        "actions": "".join(_DIGITS[action] for action in log.actions),
        "choices": "".join(_DIGITS[choice] for choice in log.choices),
        "ale": log.ale,
    }
    return json.dumps(document)


def from_json_line(line: str) -> EpisodeLog:
    """Return the log that a line of JSON holds; members that are not a log's are ignored.

    Raises:
        CheckError: it is not such a log.
    """
    try:
        document = json.loads(line)
        log = EpisodeLog(
            str(document["game"]),
            str(document["protocol"]),
            int(document["seed"]),
            int(document["noops"]),
            int(document["head_actions"]),
            tuple(_DIGITS.index(digit) for digit in document["actions"]),
            tuple(_DIGITS.index(digit) for digit in document["choices"]),
            float(document["return"]),
            bool(document["game_over"]),
            document.get("ale") and str(document["ale"]),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckError(f"not a line of an episode log ({error!r}): {line[:80]!r}") from None
    find_protocol(log.protocol)
    if not (0 <= log.seed < 2**31 and 0 <= log.noops < 10**4 and all(a < log.head_actions for a in log.actions)):
        raise CheckError(f"episode log of {log.game}, seed {log.seed}: seed, no-ops or actions out of range")
    return log
