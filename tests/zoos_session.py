"""Each protocol against the wrappers of its zoo: run by ``nox -s zoos``, in environments where these are installed.

A wrapped environment and an `Episode` get the same seed and the same actions, and show the same observations: after the
reset, after every step, and after the loss of a life, where the wrapper starts the agent's next episode.
"""

from __future__ import annotations

import os

import ale_py
import gymnasium
import numpy as np
import pytest

from convert.agents.games import load_games
from runtime_check.protocols import PROTOCOLS, Episode

STEPS = int(os.environ.get("ZOOS_STEPS", "200"))
SEED = 11


def make_plain(game, sticky=0.0, gymnasium_environment=ale_py.AtariEnv):
    """Return what ``gymnasium.make("PongNoFrameskip-v4")`` makes; that knows the older games alone."""
    return gymnasium_environment(
        load_games()[game].rom_id,
        obs_type="rgb",
        frameskip=1,
        repeat_action_probability=sticky,
        full_action_space=False,
        max_num_frames_per_episode=108_000,
    )


class StableBaselines3:
    """``make_atari_env`` with ``VecFrameStack`` and ``VecTransposeImage``, which starts the next episode by itself."""

    def __init__(self, game, seed):
        from stable_baselines3.common.env_util import make_atari_env
        from stable_baselines3.common.vec_env import VecFrameStack, VecTransposeImage

        self._env = VecTransposeImage(VecFrameStack(make_atari_env(lambda **_: make_plain(game), seed=seed), 4))
        self.observation = self._env.reset()[0]

    def step(self, action):
        observations, _, dones, _ = self._env.step([action])
        self.observation = observations[0]
        return bool(dones[0])


class CleanRL:
    """The wrappers of ``dqn_atari.py`` in gymnasium 0.29's vector environment, which starts the next episode."""

    def __init__(self, game, seed):
        from stable_baselines3.common import atari_wrappers

        env = gymnasium.wrappers.RecordEpisodeStatistics(make_plain(game))
        env = atari_wrappers.NoopResetEnv(env, noop_max=30)
        env = atari_wrappers.MaxAndSkipEnv(env, skip=4)
        env = atari_wrappers.EpisodicLifeEnv(env)
        if "FIRE" in env.unwrapped.get_action_meanings():
            env = atari_wrappers.FireResetEnv(env)
        env = atari_wrappers.ClipRewardEnv(env)
        env = gymnasium.wrappers.ResizeObservation(env, (84, 84))
        env = gymnasium.wrappers.GrayScaleObservation(env)
        env = gymnasium.wrappers.FrameStack(env, 4)
        self._envs = gymnasium.vector.SyncVectorEnv([lambda: env])
        self.observation = self._envs.reset(seed=seed)[0][0]

    def step(self, action):
        observations, _, terminated, truncated, _ = self._envs.step([action])
        self.observation = observations[0]
        return bool(terminated[0] or truncated[0])


ZOOS = {"sb3": StableBaselines3, "cleanrl": CleanRL}


@pytest.mark.parametrize("game", load_games())
@pytest.mark.parametrize("name", ZOOS)
def test_an_episode_shows_what_the_wrappers_of_the_zoo_show(name, game):
    count = len(load_games()[game].actions)
    episode, wrapped = Episode(game, PROTOCOLS[name], SEED, count), ZOOS[name](game, SEED)
    np.testing.assert_array_equal(episode.observation, wrapped.observation)
    for action in np.random.default_rng(5).integers(count, size=STEPS):
        episode.step(int(action))
        assert wrapped.step(int(action)) == (episode.restarted or episode.game_over)
        if episode.game_over:
            break
        np.testing.assert_array_equal(episode.observation, wrapped.observation)
