"""CONTRIBUTING's promise: a target is one file. The one that its example begins is finished here and dropped in."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from builders import PONG, make_observations

import convert
from convert import targets
from convert.network import find_differences
from runtime_check.oracle import compute_q_values, read_oracle

CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")

FUNCTIONS = """
import numpy as np

from convert.network import arrays, from_arrays
from runtime_check.oracle import Oracle, compute_q_values


def write(network, agent, path):
    np.savez(path, **arrays(network))


def read(path, agent):
    with np.load(path) as stored:
        return from_arrays(dict(stored))


def load(path, agent):
    network = read(path, agent)
    convs = network.convs
    oracle = Oracle(
        tuple(conv.kernel.astype(float) for conv in convs),
        tuple(conv.bias.astype(float) for conv in convs),
        network.hidden.kernel.astype(float),
        network.hidden.bias.astype(float),
        network.head.dense.kernel.astype(float),
        network.head.dense.bias.astype(float),
        None,
    )
    return lambda observation: {"q_values": compute_q_values(oracle, observation).astype(np.float32)}
"""


@pytest.fixture
def npz(tmp_path, monkeypatch):
    constants = next(code for code in re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL) if "PATH" in code)
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/npz.py").write_text(constants + FUNCTIONS)
    monkeypatch.setattr(targets, "__path__", [*targets.__path__, str(tmp_path / "targets")])
    targets._names.cache_clear()
    yield
    targets._names.cache_clear()


@pytest.mark.usefixtures("npz")
def test_a_target_is_one_file(tmp_path):
    assert targets.find_target("npz").summary == "NumPy: every array of the network in one npz file."
    conversion = convert.convert_checkpoint(PONG, tmp_path / "agent", ["npz"])
    assert conversion.written == ("npz",)
    assert [file.path for file in conversion.record.artifacts["npz"].files] == ["network.npz"]
    agent = convert.load_agent(tmp_path / "agent", "npz")
    observations = make_observations(2)
    assert np.array_equal(agent(observations), compute_q_values(read_oracle(PONG), observations).astype(np.float32))
    network = targets.import_target("npz").read(tmp_path / "agent/network.npz", agent.agent)
    assert find_differences(network, convert.read_checkpoint(PONG)) == []
