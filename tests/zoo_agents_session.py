"""Agents of other zoos against the libraries that make them: run by ``nox -s zoos``, where these are installed."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from builders import PONG, make_observations

import convert
from runtime_check.oracle import compute_outputs
from runtime_check.originals import find_original, read_oracle


class Spaces(gymnasium.Env):
    """An environment of spaces alone: what its agents see is random."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gymnasium.spaces.Discrete(6)

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        return self.observation_space.sample(), {}

    def step(self, action):  # noqa: ARG002
        return self.observation_space.sample(), 1.0, False, False, {}


def find_class(name):
    from sb3_contrib import QRDQN
    from stable_baselines3 import DQN

    return {"DQN": DQN, "QR-DQN": QRDQN}[name]


def answer(model, observations):
    """Return the Q-values by the library's own forward pass."""
    seen = torch.from_numpy(observations)
    with torch.no_grad():
        if hasattr(model.policy, "q_net"):
            return model.policy.q_net(seen).numpy()
        return model.policy.quantile_net(seen).mean(dim=1).numpy()


@pytest.mark.parametrize("name", ["DQN", "QR-DQN"])
def test_a_zip_of_sb3_answers_as_in_sb3(name, tmp_path):
    model = find_class(name)("CnnPolicy", Spaces(), buffer_size=100, learning_starts=10, train_freq=1, seed=3)
    model.learn(40)
    model.save(tmp_path / "agent.zip")
    observations = make_observations(8)
    expected = answer(model, observations)
    judged = compute_outputs(read_oracle(tmp_path / "agent.zip"), observations)["q_values"]
    np.testing.assert_allclose(judged, expected, atol=1e-5)
    eager = find_original(tmp_path / "agent.zip").read_eager(tmp_path / "agent.zip")(torch.from_numpy(observations))
    np.testing.assert_array_equal(eager["q_values"].detach().numpy(), expected)
    agent = convert.convert_checkpoint(tmp_path / "agent.zip", tmp_path / "out", ["sb3", "torch"]).record.agent
    assert (agent.identity.algorithm, agent.identity.seed, agent.identity.step) == (name, 3, 40)
    for target in ("sb3", "torch"):
        np.testing.assert_allclose(convert.load_agent(tmp_path / "out", target)(observations), expected, atol=1e-5)


def test_an_agent_of_the_release_plays_and_trains_on_in_sb3_and_comes_back(tmp_path):
    convert.convert_checkpoint(PONG, tmp_path / "out", ["sb3"])
    written, observations = tmp_path / "out/sb3.zip", make_observations(8)
    model = find_class("DQN").load(written, env=Spaces(), buffer_size=100, learning_starts=10)
    expected = convert.load_agent(tmp_path / "out", "sb3")(observations)
    np.testing.assert_allclose(answer(model, observations), expected, atol=1e-5)
    actions, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(actions, expected.argmax(axis=1))
    assert model.num_timesteps == 328492
    model.learn(40, reset_num_timesteps=False)
    model.save(written)
    trained = convert.convert_checkpoint(tmp_path / "out", tmp_path / "back", ["checkpoint", "torch"])
    assert trained.record.agent.identity.step == 328492 + 40
    answers = convert.load_agent(tmp_path / "back", "torch")(observations)
    np.testing.assert_allclose(answers, answer(model, observations), atol=1e-5)
    assert np.abs(answers - expected).max() > 1e-4


def test_a_quantile_agent_is_written_for_sb3_contrib(tmp_path):
    find_class("QR-DQN")("CnnPolicy", Spaces(), buffer_size=10).save(tmp_path / "agent.zip")
    convert.convert_checkpoint(tmp_path / "agent.zip", tmp_path / "out", ["sb3"])
    observations = make_observations(4)
    model = find_class("QR-DQN").load(tmp_path / "out/sb3.zip", env=Spaces(), buffer_size=100, learning_starts=10)
    np.testing.assert_allclose(
        answer(model, observations), convert.load_agent(tmp_path / "out", "sb3")(observations), atol=1e-5
    )
    model.learn(40)
