"""Faults planted in the artefacts of the further targets, each caught for its reason; and good ones that pass."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from builders import AGENTS, BREAKOUT, PONG
from test_check_faults import ERROR, FAULTS, _assert_caught, _copy, _replant, _write_record

import convert
from convert import sources
from convert.agents.network import from_arrays
from convert.errors import CheckError
from convert.targets import find_target, import_target
from runtime_check.backends import find_backend, list_backends
from runtime_check.check.options import Options
from runtime_check.check.pipeline import check_agent

pytestmark = pytest.mark.slow

FURTHER = [backend for backend in list_backends() if backend.target not in (None, "flax", "onnx", "tensorflow")]
EXACT = tuple(backend.name for backend in FURTHER if backend.bound is None)
ROUNDED = tuple(backend.name for backend in FURTHER if backend.bound)
# Each fault twice and each backend three times or more: their arithmetic is that of the backends whose faults are
# all tried elsewhere, what differs is the way from the file to it.
PAIRS = sorted(set(zip(itertools.cycle(EXACT), [*FAULTS] * 2, strict=False)))


@pytest.mark.parametrize("agent", [PONG, BREAKOUT], ids=["pong", "breakout"])
def test_good_artefacts_pass(further, agent):
    folder = further.joinpath(*agent.parts[-4:]).with_suffix("")
    held = convert.read_record(folder).artifacts
    exact = [name for name in EXACT if find_backend(name).target in held]
    result = check_agent(folder, AGENTS, Options((*exact, *ROUNDED), max_steps=40, solo=True))
    assert {name: backend.reasons for name, backend in result.backends.items() if backend.reasons} == {}
    assert result.unchecked == ()
    for name in exact:
        assert result.backends[name].tally.agreement == 1
        assert result.backends[name].solo.identical == 1
    assert result.backends["litert-int8"].tally.agreement > find_backend("litert-int8").bound.agreement


@pytest.mark.parametrize("runtime", ["jax", "tensorflow", "torch"])
def test_keras_answers_alike_on_each_of_its_backends(further, runtime):
    folder = further.joinpath(*BREAKOUT.parts[-4:]).with_suffix("")
    command = [sys.executable, "-m", "runtime_check", folder, "--source", AGENTS, "--backend", "keras", "--json"]
    done = subprocess.run(
        [*command, "--max-steps", "5"], env=os.environ | {"KERAS_BACKEND": runtime}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    (agent,) = json.loads(done.stdout)["agents"]
    assert f", {runtime} " in agent["backends"]["keras"]["runtime"]["version"]


def _check(folder, backend):
    return check_agent(folder, AGENTS, Options((backend,), max_steps=20))


@pytest.mark.parametrize(("backend", "fault"), PAIRS)
def test_a_planted_fault_is_caught(further, tmp_path, backend, fault):
    change, reason = FAULTS[fault]
    target = find_backend(backend).target
    folder = _copy(further, "DQN_modern/Pong/0/model_328492", target, tmp_path)
    _replant(folder, target, change)
    # Some runtimes refuse another number of actions when they load, in words of their own.
    reason = rf"{reason}|does not load" if fault == "another number of actions" else reason
    _assert_caught(_check(folder, backend), backend, reason)


@pytest.mark.parametrize("backend", ROUNDED)
def test_a_fault_is_more_than_rounding(further, tmp_path, backend):
    folder = _copy(further, "DQN_modern/Pong/0/model_328492", backend, tmp_path)
    other = further / "DQN_modern/Pong/0/model_328492"

    record = convert.read_record(other)
    (path,) = (folder / file.path for file in convert.read_record(folder).artifacts[backend].files)
    path.unlink()
    network = FAULTS["actions swapped"][0](convert.read_checkpoint(PONG))
    import_target(backend).write(network, record.agent, path)
    _write_record(folder, convert.read_record(folder))
    _assert_caught(_check(folder, backend), backend, rf"% of the actions are the oracle's, fewer than|{ERROR}")


@pytest.mark.parametrize("backend", [*EXACT, *ROUNDED])
def test_a_changed_byte_is_caught_by_its_checksum(further, tmp_path, backend):
    folder = _copy(further, "DQN_modern/Pong/0/model_328492", find_backend(backend).target, tmp_path)
    artifact = convert.read_record(folder).artifacts[find_backend(backend).target]
    path = folder / max(artifact.files, key=lambda file: file.size).path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    _assert_caught(_check(folder, backend), backend, "checksum: ")


def _check_folder(folder, *backends):
    return check_agent(folder, AGENTS, Options(backends, max_steps=3))


@pytest.mark.parametrize("target", ["litert-float16", "litert-int8"])
def test_rounded_weights_that_are_further_off_than_rounding_are_caught(further, tmp_path, target):
    """No frame of the replay needs to show what they do."""
    folder = _copy(further, "DQN_modern/Pong/0/model_328492", target, tmp_path)
    agent, path = convert.read_record(folder).agent, folder / find_target(target).path
    network = convert.read_checkpoint(PONG)
    kernel = network.arrays["hidden.kernel"].copy()
    kernel[3, 5] += 4 * np.abs(kernel).max()
    path.unlink()
    changed = from_arrays({**network.arrays, "hidden.kernel": kernel}, network.architecture)
    import_target(target).write(changed, agent, path)
    _write_record(folder, convert.read_record(folder))
    (reason,) = _check_folder(folder, target).backends[target].reasons[:1]
    assert re.search("other weights than the checkpoint's, beyond rounding: hidden.kernel is off by", reason)


def test_infinite_weights_in_float16_are_caught(further, tmp_path):
    """Which are as far from the checkpoint's as their own rounding."""
    folder = _copy(further, "DQN_modern/Pong/0/model_328492", "litert-float16", tmp_path)
    agent, path = convert.read_record(folder).agent, folder / "model_float16.tflite"
    network = convert.read_checkpoint(PONG)
    bias = network.arrays["hidden.bias"].copy()
    bias[7] = -np.inf
    path.unlink()
    changed = from_arrays({**network.arrays, "hidden.bias": bias}, network.architecture)
    import_target("litert-float16").write(changed, agent, path)  # which stops at the largest float16
    around = [np.float16([bias[6], value, bias[8]]).tobytes() for value in (-65504, -np.inf)]
    assert path.read_bytes().count(around[0]) == 1
    path.write_bytes(path.read_bytes().replace(*around))
    _write_record(folder, convert.read_record(folder))
    reasons = _check_folder(folder, "litert-float16").backends["litert-float16"].reasons
    assert "other weights than the checkpoint's, beyond rounding: hidden.bias is off by inf" in reasons


def test_what_is_not_in_the_record_is_named(further, tmp_path):
    folder = _copy(further, "DQN_modern/Pong/0/model_328492", "torch", tmp_path)
    shutil.copy(further / "C51_classic/Breakout/0/model_187420/model.keras", folder)
    (folder / "dopamine/checkpoints").mkdir(parents=True)
    faults = _check_folder(folder, "torch").faults
    assert faults == (
        "dopamine is not in agent.json: remove it, or convert the agent to dopamine again",
        "model.keras is not in agent.json: remove it, or convert the agent to keras again",
    )


def test_an_identity_that_is_not_that_of_the_checkpoints_path_is_caught(tmp_path):
    source = tmp_path / "alone/model.gz"
    source.parent.mkdir()
    shutil.copy(PONG, source)
    identity = sources.parse_identity("DQN_modern/Pong/7/1000")
    convert.convert_checkpoint(source, tmp_path / "agent", ["onnx"], identity=identity)
    result = _check_folder(tmp_path / "agent", "onnxruntime")
    assert result.faults == (f"agent.json: seed is 7, but the path of its checkpoint says 0: {PONG}",)
    assert check_agent(tmp_path / "agent", source, Options(("onnxruntime",), max_steps=3)).agrees


def test_a_folder_whose_conversion_has_not_finished_is_not_checked(further, tmp_path):
    folder = _copy(further, "DQN_modern/Pong/0/model_328492", "torch", tmp_path)
    (folder / ".atari-convert-new").mkdir()
    with pytest.raises(CheckError, match="a conversion has not finished there: rerun it"):
        _check_folder(folder, "torch")


def test_a_folders_name_forges_no_line_and_sends_nothing_to_the_terminal(further, tmp_path):
    name = "evil\n2 agents agree, 0 disagree\x1b[31m\u202e"
    folder = _copy(further, "DQN_modern/Pong/0/model_328492", "torch", tmp_path / name)
    for argument in (folder, folder.parent):
        done = subprocess.run(
            [sys.executable, "-m", "runtime_check", argument, "--source", AGENTS, "--max-steps", "3"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert not re.search("^2 agents agree|\x1b|\u202e", done.stdout + done.stderr, re.MULTILINE)
        assert "1 agent agrees" in done.stdout
    (folder / "agent.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "runtime_check", folder, "--source", AGENTS], capture_output=True, text=True, check=False
    )
    assert len(done.stderr.splitlines()) == 1
    assert not re.search("\x1b|\u202e", done.stdout + done.stderr)
