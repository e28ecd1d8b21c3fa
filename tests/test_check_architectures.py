"""Agents of any architecture, and of a source of their own: converted, loaded and judged as those of the release."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_oracle import ARCHITECTURES, make_oracle

import runtime_check
from convert.agents.network import Network, from_arrays
from convert.errors import CheckError
from convert.formats.atari_agents import make_identity
from convert.pipeline import describe_agent, write_agent
from convert.store.folders import describe_bytes
from convert.targets import import_target, list_targets
from runtime_check import Options, originals
from runtime_check.check.verification import list_arrays, to_architecture
from runtime_check.oracle import Dense, Oracle
from runtime_check.protocols import PROTOCOLS

# A source whose files name a network that the tests know: the judge reads what they hold by this alone.
ORIGINAL = """
import io

import numpy as np
import torch

from test_oracle import ARCHITECTURES, run_in_torch
from test_check_architectures import rebuild


def recognise(head, name):
    return head.startswith(b"PK")


def read(path):
    return rebuild(path)


def read_eager(path):
    oracle = rebuild(path)

    class Eager(torch.nn.Module):
        def forward(self, obs_nchw):
            outputs = run_in_torch(oracle, obs_nchw.cpu().numpy())
            return {name: torch.from_numpy(array).float() for name, array in outputs.items()}

    return Eager()
"""
PLAYED = [name for name in ARCHITECTURES if name not in ("no hidden layer", "other frames")]
QUICK = ("onnx", "flax", "torch")


def _round(oracle: Oracle) -> Oracle:
    """Return the network with weights that float32 holds, as every file has them."""

    def rounded(layer):
        kernel, bias = (array.astype(np.float32).astype(np.float64) for array in (layer.kernel, layer.bias))
        return replace(layer, kernel=kernel, bias=bias)

    head = replace(oracle.head, dense=rounded(oracle.head.dense))
    if head.value is not None:
        head = replace(head, value=rounded(head.value))
    if head.support is not None:
        head = replace(head, support=head.support.astype(np.float32).astype(np.float64))
    return replace(
        oracle, convs=tuple(map(rounded, oracle.convs)), hidden=tuple(map(rounded, oracle.hidden)), head=head
    )


def rebuild(path: Path) -> Oracle:
    """Return the network of a file of the made-up source."""
    with np.load(path) as stored:
        return _round(make_oracle(**ARCHITECTURES[str(stored["architecture"])]))


def _to_network(oracle: Oracle) -> Network:
    arrays = {name: array.astype(np.float32) for name, array in list_arrays(oracle).items()}
    return from_arrays(arrays, to_architecture(oracle))


def _list_targets(oracle: Oracle, names: tuple[str, ...] | None = None) -> list[str]:
    """Return the targets of float32 weights whose format can hold the network."""
    found = []
    for target in list_targets():
        find_obstacle = getattr(import_target(target.name), "find_obstacle", None)
        if not target.is_quantized and (names is None or target.name in names):
            found += [] if find_obstacle and find_obstacle(to_architecture(oracle)) else [target.name]
    return found


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes an agent with a source of its own, and returns its folder and that source."""
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals" / "made_up.py").write_text(ORIGINAL)
    monkeypatch.setattr(originals, "__path__", [*originals.__path__, str(tmp_path / "originals")])

    def write_one(architecture: str, targets: tuple[str, ...] | None) -> tuple[Path, Path]:
        buffer = io.BytesIO()
        np.savez(buffer, architecture=architecture)
        source = tmp_path / "agent.npz"
        source.write_bytes(buffer.getvalue())
        oracle = rebuild(source)
        identity = make_identity("C51_classic" if oracle.head.kind == "categorical" else "DQN_modern", "Pong", 0, 7)
        network = _to_network(oracle)
        agent = describe_agent(network, identity, describe_bytes(buffer.getvalue(), "agent.npz"))
        conversion = write_agent(network, agent, tmp_path / "agent", _list_targets(oracle, targets))
        assert conversion.failures == {}
        return tmp_path / "agent", source

    return write_one


def _assert_agrees(folder: Path, source: Path, options: Options) -> Mapping[str, runtime_check.BackendResult]:
    result = runtime_check.check_agent(folder, source, options)
    assert result.faults == ()
    assert {name: backend.reasons for name, backend in result.backends.items() if backend.reasons} == {}
    return result.backends


@pytest.mark.parametrize("architecture", ["SAME padding", "dueling categorical, split", "200 quantiles"])
def test_an_agent_of_another_architecture_is_judged(architecture, write):
    folder, source = write(architecture, QUICK)
    backends = _assert_agrees(folder, source, Options(max_steps=15, solo=True))
    assert len(backends) == 1 + len(QUICK)
    assert all(backend.tally.steps == 15 for backend in backends.values())
    assert all(backend.solo.identical == 1 for backend in backends.values())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PLAYED)
def test_every_architecture_is_judged_in_every_target_that_can_hold_it(architecture, write):
    folder, source = write(architecture, None)
    assert len(_assert_agrees(folder, source, Options(max_steps=10))) > 8


def test_other_weights_of_a_stream_are_named(write):
    folder, source = write("dueling categorical, split", ("onnx",))
    planted = rebuild(source)
    head = planted.head
    value = Dense(head.value.kernel, head.value.bias + 0.125)
    network = _to_network(replace(planted, head=replace(head, value=value)))
    data = source.read_bytes()
    (folder / "agent.json").unlink()
    (folder / "model.onnx").unlink()
    agent = describe_agent(network, make_identity("C51_classic", "Pong", 0, 7), describe_bytes(data, "agent.npz"))
    write_agent(network, agent, folder, ["onnx"])
    reasons = runtime_check.check_agent(folder, source, Options(max_steps=3)).backends["onnxruntime"].reasons
    assert "other weights than the checkpoint's: bias of the value stream" in reasons


def test_a_network_that_does_not_see_what_the_protocol_shows_is_not_played(write, monkeypatch):
    folder, source = write("nature", ("onnx",))
    monkeypatch.setitem(PROTOCOLS, "modern", replace(PROTOCOLS["modern"], stack=3))
    message = (
        r"the network sees 4 frames of 84 × 84, the protocol 'modern' shows 3 of 84 × 84; protocols that fit: classic"
    )
    with pytest.raises(CheckError, match=message):
        runtime_check.check_agent(folder, source)
