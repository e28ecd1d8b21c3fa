"""The protocols as Gymnasium environments: importing this module registers them.

``atari-convert/GAME-PROTOCOL-v0`` for the 60 games and every protocol, such as ``atari-convert/Pong-modern-v0``.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from convert.agents.games import load_games
from runtime_check.protocols import PROTOCOLS, Episode

_SEEDS = 2**31  # what the emulator takes


class ReleaseEnvironment(gymnasium.Env):  # type: ignore[misc]
    """An Atari game as the agents of a zoo see it: the observations are those of `Episode`, and an episode is a game.

    Observations are uint8[4, 84, 84], oldest frame first, 0–255; rewards are those of the game, unclipped; actions are
    the game's minimal set, in the order of an agent's head. ``info`` has the episode's ``seed`` and ``noops``.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, game: str, protocol: str, render_mode: str | None = None) -> None:
        """Prepare an environment.

        Args:
            game: its name in the release's paths, such as ``SpaceInvaders``.
            protocol: the name of one of `PROTOCOLS`, such as ``modern``.
            render_mode: ``rgb_array``, or None.
        """
        self.render_mode = render_mode
        self._game, self._protocol = game, PROTOCOLS[protocol]
        shape = (self._protocol.stack, self._protocol.height, self._protocol.width)
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(load_games()[game].actions))
        self.metadata = {**self.metadata, "render_fps": 60 // self._protocol.frame_skip}
        self._episode: Episode | None = None

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,  # noqa: ARG002 - Gymnasium passes it
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of this episode, modulo 2**31: the same as the seed of a replay of ``atari-check``. Without one, it is
                drawn from the environment's random numbers, which the last seed given began.
            options: ignored.

        Returns:
            observation: uint8[4, 84, 84].
            info: the episode's ``seed`` and its number of ``noops``.
        """
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(_SEEDS)) if seed is None else seed % _SEEDS
        self._episode = Episode(self._game, self._protocol, drawn, int(self.action_space.n))
        return self._episode.observation.copy(), {"seed": drawn, "noops": self._episode.noops}

    def step(self, action: int) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Hold an action for 4 frames.

        Returns:
            observation: uint8[4, 84, 84].
            reward: as the game gives it.
            terminated: game over.
            truncated: the episode has reached 108,000 frames.
            info: ``restarted``, whether a life was lost and, as the protocol has it, a new stack begins.

        Raises:
            ResetNeeded: no episode has begun, or it has ended.
            ValueError: there is no such action.
        """
        if self._episode is None or self._episode.game_over:
            raise ResetNeeded("no episode is under way: call reset() first")
        if not self.action_space.contains(action):
            raise ValueError(f"no action {action!r}: expected an integer from 0 to {self.action_space.n - 1}")
        reward = self._episode.step(int(action))
        truncated = self._episode.truncated
        terminated, info = self._episode.game_over and not truncated, {"restarted": self._episode.restarted}
        return self._episode.observation.copy(), reward, terminated, truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """Return the screen as uint8[height, width, 3], RGB; None without the render mode ``rgb_array``.

        Raises:
            ResetNeeded: no episode has begun.
        """
        if self.render_mode is None:
            return None
        if self._episode is None:
            raise ResetNeeded("no episode has begun: call reset() first")
        return self._episode.read_screen()


for _game in load_games():
    for _protocol in PROTOCOLS:
        gymnasium.register(
            f"atari-convert/{_game}-{_protocol}-v0",
            entry_point="runtime_check.environment:ReleaseEnvironment",
            kwargs={"game": _game, "protocol": _protocol},
        )
