"""The Gymnasium environments, and the recipes of docs/environment.md exactly as printed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from builders import PONG
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import convert
from convert.agents.games import load_games
from convert.agents.network import find_differences
from runtime_check.environment import ReleaseEnvironment
from runtime_check.protocols import PROTOCOLS, Episode
from runtime_check.replay import EpisodeLog, Plan, Replay, replay_log

TEXT = (Path(__file__).parents[1] / "docs/environment.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


def test_there_is_an_environment_for_each_game_and_protocol():
    names = {name for name in gymnasium.registry if name.startswith("atari-convert/")}
    assert names == {f"atari-convert/{game}-{protocol}-v0" for game in load_games() for protocol in PROTOCOLS}


@pytest.mark.parametrize("name", ["Pong-modern", "Breakout-classic", "Skiing-modern"])
def test_gymnasiums_own_checker_is_content(name):
    """Warnings are errors here."""
    env = gymnasium.make(f"atari-convert/{name}-v0", render_mode="rgb_array")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize(("game", "protocol"), [("Pong", "modern"), ("Breakout", "classic"), ("MsPacman", "classic")])
def test_observations_are_those_of_an_episode_pixel_for_pixel(game, protocol):
    env = gymnasium.make(f"atari-convert/{game}-{protocol}-v0")
    actions = env.action_space.n
    for seed in (0, 7, 2**31 - 1):
        episode = Episode(game, PROTOCOLS[protocol], seed, actions)
        observation, info = env.reset(seed=seed)
        assert info == {"seed": seed, "noops": episode.noops}
        for action in np.random.default_rng(seed).integers(actions, size=150):
            np.testing.assert_array_equal(observation, episode.observation)
            expected = episode.step(int(action))
            observation, reward, terminated, truncated, _ = env.step(action)
            assert (reward, terminated or truncated) == (expected, episode.game_over)
            if episode.game_over:
                break


def test_a_seed_is_the_episode_that_a_check_replays():
    env = gymnasium.make("atari-convert/Breakout-classic-v0")
    replay = Replay(Plan("Breakout", PROTOCOLS["classic"], 4, seed=5, episodes=2, max_steps=20), 1)
    for seed in (5, 6):
        observation, _ = env.reset(seed=seed)
        for step in range(20):
            np.testing.assert_array_equal(replay.observe().obs_nchw[0], observation)
            replay.act([step % 4])
            observation, *_ = env.step(step % 4)


def test_episodes_without_a_seed_follow_from_the_last_one_and_replay_by_their_info():
    env = ReleaseEnvironment("Breakout", "classic")
    runs = []
    for _ in range(2):
        env.reset(seed=3)
        runs.append([env.reset()[1]["seed"] for _ in range(3)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 3
    observation, info = env.reset()
    log = EpisodeLog("Breakout", "classic", info["seed"], info["noops"], 4, (1, 1), (1, 1), 0.0, False)
    for expected in replay_log(log):
        np.testing.assert_array_equal(observation, expected)
        observation, *_ = env.step(1)
    assert env.reset(seed=2**32 - 1)[1]["seed"] == 2**31 - 1


def test_an_episode_ends_terminated_at_game_over_and_truncated_at_the_bound(monkeypatch):
    env = ReleaseEnvironment("Breakout", "classic")
    env.reset(seed=0)
    ends = (False, False)
    while not any(ends):
        *_, terminated, truncated, _ = env.step(1)  # FIRE alone loses every life
        ends = terminated, truncated
    assert ends == (True, False)
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(0)
    monkeypatch.setitem(PROTOCOLS, "classic", replace(PROTOCOLS["classic"], max_frames=80))
    env = ReleaseEnvironment("Breakout", "classic")
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(20 - env.reset(seed=0)[1]["noops"] // 4)]
    assert ends[-1] == (False, True)
    assert set(ends[:-1]) == {(False, False)}


def test_an_action_that_is_none_is_refused():
    env = ReleaseEnvironment("Pong", "modern")
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(0)
    env.reset(seed=0)
    for action in (-1, 6, 1.5):
        with pytest.raises(ValueError, match="expected an integer from 0 to 5"):
            env.step(action)


def test_the_screen_is_rendered():
    env = gymnasium.make("atari-convert/Pong-modern-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (210, 160, 3)
    assert env.render().dtype == np.uint8
    assert ReleaseEnvironment("Pong", "modern").render() is None


def test_environments_are_made_without_an_import_and_in_vectors(tmp_path):
    code = """
import gymnasium
env = gymnasium.make("runtime_check.environment:atari-convert/Pong-modern-v0")
print(env.reset(seed=0)[0].shape)
if __name__ == "__main__":
    vector = gymnasium.make_vec(env.spec, num_envs=2, vectorization_mode="async")
    print(vector.reset(seed=0)[0].shape)
    vector.close()
"""
    (tmp_path / "script.py").write_text(code)
    command = [sys.executable, tmp_path / "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split("\n")[:2] == ["(4, 84, 84)", "(2, 4, 84, 84)"]


@pytest.mark.slow
def test_the_recipes_run_as_printed(converted, tmp_path):
    """All blocks in their order, in one folder: agents are converted already, and commands are the installed ones."""
    shutil.copytree(converted, tmp_path / "converted")
    for language, text in BLOCKS:
        if language == "python":
            command = [sys.executable, "-W", "error::UserWarning", "-c", text]
            subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
        elif language == "sh":
            for line in text.splitlines():
                name, *arguments = shlex.split(line, comments=True)
                if name.startswith("atari-"):
                    program = Path(sys.executable).with_name(name)
                    subprocess.run([program, *arguments], cwd=tmp_path, check=True, timeout=120)
    (tuned,) = re.findall(r"^(trained/.*\.gz)$", TEXT, re.MULTILINE)
    network = convert.read_checkpoint(tmp_path / tuned)
    assert find_differences(network, convert.read_agent(tmp_path / "tuned", "flax")) == []
    moved = [
        np.abs(one - other).max()
        for one, other in zip(network.arrays.values(), convert.read_checkpoint(PONG).arrays.values(), strict=True)
    ]
    assert all(0 < distance < 0.01 for distance in moved)
