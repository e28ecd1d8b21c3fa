"""The protocols as an environment for Dopamine's Runner, those whose stacks Dopamine's agents can make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gin
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from convert.errors import CheckError
from runtime_check.protocols import Episode, Protocol, find_protocol


class ReleaseEnvironment:
    """An Atari game with the preprocessing of a protocol, as Dopamine's Runner calls it.

    The agent stacks the frames, as with Dopamine's own environment. Each episode has an emulator of its own, seeded
    by ``seed`` and the number of episodes before it.

    Attributes:
        action_space: ``n`` actions, in the order of the agent's head.
        observation_space: of one frame.
        game_over: whether the episode has ended, which the loss of a life does not do.
    """

    def __init__(self, game: str, protocol: Protocol, num_actions: int, seed: int) -> None:
        self.action_space = Discrete(num_actions)
        self.observation_space = Box(0, 255, (protocol.height, protocol.width, 1), np.uint8)
        self.game_over = False
        self._game, self._protocol, self._seed = game, protocol, seed
        self._episodes = 0
        self._episode: Episode | None = None

    def reset(self) -> NDArray[np.uint8]:
        """Start the next episode and return its first frame: uint8[84, 84, 1], 0–255."""
        self._episode = Episode(self._game, self._protocol, self._seed + self._episodes, self.action_space.n)
        self._episodes += 1
        self.game_over = False
        return self._frame(self._episode)

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, Mapping[str, Any]]:
        """Hold an action for 4 frames.

        Returns:
            frame: uint8[84, 84, 1], 0–255.
            reward: unclipped.
            is_terminal: whether the episode has ended.
            info: nothing.

        Raises:
            RuntimeError: no episode has begun.
        """
        if self._episode is None:
            raise RuntimeError("reset() comes before the first step()")
        reward = self._episode.step(int(action))
        self.game_over = self._episode.game_over
        return self._frame(self._episode), reward, self.game_over, {}

    @staticmethod
    def _frame(episode: Episode) -> NDArray[np.uint8]:
        frame: NDArray[np.uint8] = episode.observation[-1, :, :, None]
        return frame.copy()


@gin.configurable(module="runtime_check.dopamine_env")  # type: ignore[untyped-decorator]
def create_environment(
    game: str = gin.REQUIRED, protocol: str = gin.REQUIRED, num_actions: int = gin.REQUIRED, seed: int = 0
) -> ReleaseEnvironment:
    """Return the environment that ``agent.gin`` binds.

    Args:
        game: its name in the release's paths, such as ``SpaceInvaders``.
        protocol: the name of one that begins a stack with zeros, and only at reset, such as ``modern``.
        num_actions: those of the agent's head: the game's minimal set, or all 18.
        seed: of the first episode; each further one takes the next.

    Raises:
        CheckError: there is no such protocol, Dopamine cannot stack its frames, or the head does not fit the game.
        RomUnavailable: there is no such game or ROM.
    """
    shown = find_protocol(protocol)
    if shown.stack_start != "zeros" or shown.life_loss != "nothing":
        raise CheckError(
            f"protocol {protocol!r} begins stacks in another way than Dopamine's agents, which stack the frames: "
            "evaluate the agent with runtime_check.environment"
        )
    return ReleaseEnvironment(game, shown, num_actions, seed)
