"""CONTRIBUTING's promise: a target is one file, and so is a runtime. Its examples are finished here."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from builders import AGENTS, PONG, make_observations

import convert
from convert import runtimes, targets
from convert.agents.network import find_differences
from runtime_check.check.options import Options
from runtime_check.check.pipeline import check_agent
from runtime_check.oracle import compute_q_values
from runtime_check.originals import read_oracle

CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")

TARGET = """
import numpy as np

from convert.agents.network import from_arrays


def write(network, agent, path):
    np.savez(path, **network.arrays)


def read(path, agent):
    with np.load(path) as stored:
        return from_arrays(dict(stored), agent.architecture)


prepare = read
"""

RUNTIME = """
import numpy as np

from convert.runtimes import Description, Runtime, choose_gpu
from runtime_check.oracle import Conv, Dense, Head, Observation, Oracle, compute_q_values


def choose_device(settings):
    choose_gpu(settings, "numpy", has_gpu=False)
    return "cpu"


def run(artefact, device, settings):
    def dense(layer):
        return Dense(arrays[f"{layer}.kernel"], arrays[f"{layer}.bias"])

    arrays = {name: array.astype(float) for name, array in artefact.arrays.items()}
    architecture = artefact.architecture
    convs = tuple(
        Conv(arrays[f"convs.{index}.kernel"], arrays[f"convs.{index}.bias"], conv.stride, conv.padding)
        for index, conv in enumerate(architecture.convs)
    )
    oracle = Oracle(Observation(), convs, (dense("hidden"),), Head("q", architecture.head.actions, dense("head")))

    def answer(observation):
        return {"q_values": compute_q_values(oracle, observation).astype(np.float32)}

    return Runtime(answer, Description("numpy", np.__version__, device, "float64", "none", None, settings.batch))
"""


@pytest.fixture
def npz(tmp_path, monkeypatch):
    examples = re.findall(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)
    for package, name, first, rest in (
        (targets, "npz", "PATH = ", TARGET),
        (runtimes, "numpy", '"""NumPy, for networks', RUNTIME),
    ):
        (constants,) = (code for code in examples if first in code)
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(constants + rest)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    targets._names.cache_clear()
    yield
    targets._names.cache_clear()


@pytest.mark.usefixtures("npz")
def test_a_target_is_one_file_and_so_is_a_runtime(tmp_path):
    assert targets.find_target("npz").summary == "NumPy: every array of the network in one npz file."
    conversion = convert.convert_checkpoint(PONG, tmp_path / "agent", ["npz"])
    assert conversion.written == ("npz",)
    assert [file.path for file in conversion.record.artifacts["npz"].files] == ["network.npz"]
    agent = convert.load_agent(tmp_path / "agent", "npz")
    assert agent.device == "cpu"
    observations = make_observations(2)
    assert np.array_equal(agent(observations), compute_q_values(read_oracle(PONG), observations).astype(np.float32))
    network = targets.import_target("npz").read(tmp_path / "agent/network.npz", agent.agent)
    assert find_differences(network, convert.read_checkpoint(PONG)) == []

    result = check_agent(tmp_path / "agent", AGENTS, Options(("npz",), max_steps=3))
    assert result.agrees
    assert result.backends["npz"].description.library == "numpy"
