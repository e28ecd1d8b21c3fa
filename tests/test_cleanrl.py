"""Agents of CleanRL, of its scripts for PyTorch and JAX: what is read, written and refused, and the judge's view."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from builders import BREAKOUT, PONG, make_observations, save_sample
from flax import serialization

import convert
from convert.agents.identity import Identity
from convert.agents.network import find_differences
from convert.bulk.selection import find_jobs
from convert.errors import (
    CheckpointError,
    TargetError,
    UnreadableArtefact,
    UnreadableCheckpoint,
    UnsupportedArchitecture,
    WeightMismatch,
)
from convert.sources import identify
from runtime_check import Options, check_agent
from runtime_check.oracle import compute_outputs
from runtime_check.originals import find_original, read_oracle

C51, C51_JAX = "cleanrl_c51_atari.cleanrl_model", "cleanrl_c51_atari_jax.cleanrl_model"
IMPALA = "cleanrl_qdagger_dqn_atari_impalacnn.cleanrl_model"


def _make_dqn(path: Path) -> Path:
    """Write a model as ``dqn_atari.py`` does: of its class, which is ``nn.Sequential``."""
    torch.manual_seed(0)
    nn = torch.nn
    convs = (nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU())
    network = nn.Sequential(*convs, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 6))
    torch.save({f"network.{name}": tensor for name, tensor in network.state_dict().items()}, path)
    return path


def _make_dqn_jax(path: Path) -> Path:
    """Write a model as ``dqn_atari_jax.py`` does: the parameters of its network, by ``to_bytes``."""
    rng, layers = np.random.default_rng(0), {}
    shapes = {"Conv_0": (8, 8, 4, 32), "Conv_1": (4, 4, 32, 64), "Conv_2": (3, 3, 64, 64)}
    for layer, shape in (shapes | {"Dense_0": (3136, 512), "Dense_1": (512, 6)}).items():
        kernel = rng.standard_normal(shape, np.float32) * np.float32(2 / np.prod(shape[:-1])) ** 0.5
        layers[layer] = {"bias": rng.standard_normal(shape[-1:], np.float32) * np.float32(0.1), "kernel": kernel}
    path.write_bytes(serialization.to_bytes({"params": layers}))
    return path


MODELS = {
    "dqn": lambda folder: _make_dqn(folder / "dqn_atari.cleanrl_model"),
    "dqn-jax": lambda folder: _make_dqn_jax(folder / "dqn_atari_jax.cleanrl_model"),
    "c51": lambda folder: save_sample(C51, folder),
    "c51-jax": lambda folder: save_sample(C51_JAX, folder),
}


@pytest.mark.parametrize("model", MODELS)
def test_the_judge_reads_the_same_network_by_itself(model, tmp_path):
    path, observations = MODELS[model](tmp_path), make_observations(3)
    oracle = compute_outputs(read_oracle(path), observations)
    eager = find_original(path).read_eager(path)(torch.from_numpy(observations))
    convert.convert_checkpoint(path, tmp_path / "out", ["onnx"])
    onnx = convert.load_agent(tmp_path / "out", "onnx").run(observations)
    assert oracle.keys() == eager.keys() == onnx.keys()
    for output, values in oracle.items():
        assert values.std() > 1e-3
        np.testing.assert_allclose(eager[output].detach(), values, atol=1e-4)
        np.testing.assert_allclose(onnx[output], values, atol=1e-4)


@pytest.mark.parametrize("name", [C51, C51_JAX])
def test_the_arguments_of_c51_tell_its_support_and_who_it_is(name, tmp_path):
    record = convert.convert_checkpoint(save_sample(name, tmp_path), tmp_path / "out", ["safetensors"]).record
    head, step = record.agent.head, 10_000_000 if name == C51 else None  # which the sample for JAX does not say
    assert record.agent.identity == Identity("cleanrl", "C51", "Pong", "cleanrl", 1, step)
    assert (head.actions, head.atoms, head.support[0], head.support[-1]) == (6, 51, -10.0, 10.0)


@pytest.mark.parametrize("model", ["dqn", "dqn-jax"])
def test_a_model_of_dqn_tells_its_game_by_its_path_or_by_what_is_said(model, tmp_path):
    path = MODELS[model](tmp_path)
    agent = convert.convert_checkpoint(path, tmp_path / "out", ["safetensors"], identity="cleanrl/Pong").record.agent
    assert agent.identity == Identity("cleanrl", "DQN", "Pong", "cleanrl")
    folder = tmp_path / "PongNoFrameskip-v4-dqn_atari-seed3"
    folder.mkdir()
    named = path.rename(folder / path.name)
    agent = convert.convert_checkpoint(named, tmp_path / "named", ["safetensors"]).record.agent
    assert agent.identity == Identity("cleanrl", "DQN", "Pong", "cleanrl", 3)


def test_paths_of_the_hub_and_of_local_runs_tell_who_an_agent_is():
    hub = "cleanrl/BeamRiderNoFrameskip-v4-c51_atari_jax-seed2/c51_atari_jax.cleanrl_model"
    assert identify(hub) == Identity("cleanrl", "C51", "BeamRider", "cleanrl", 2)
    run = "/x/runs/BreakoutNoFrameskip-v4__dqn_atari__7__1670000000/dqn_atari.cleanrl_model"
    assert identify(run) == Identity("cleanrl", "DQN", "Breakout", "cleanrl", 7)
    assert identify("runs/Ant-v4__dqn__7__1670000000/dqn.cleanrl_model") == Identity()


def test_a_path_that_says_another_game_than_the_model_is_refused(tmp_path):
    path = save_sample(C51, tmp_path / "BreakoutNoFrameskip-v4-c51_atari-seed1")
    with pytest.raises(CheckpointError, match="holds an agent of game Pong, expected Breakout"):
        convert.convert_checkpoint(path, tmp_path / "out", ["safetensors"])


def test_models_of_other_scripts_are_refused_by_name(tmp_path):
    impala = save_sample(IMPALA, tmp_path)
    with pytest.raises(UnreadableCheckpoint, match=r"an IMPALA network of CleanRL's qdagger_dqn_atari_impalacnn"):
        convert.read_checkpoint(impala)
    with pytest.raises(ValueError, match=r"network\.0\.weight is missing"):
        read_oracle(impala)
    layers = {f"ConvSequence_{index}": {} for index in range(3)}
    impala.write_bytes(serialization.msgpack_serialize({"params": layers}))
    with pytest.raises(UnreadableCheckpoint, match="an IMPALA network of CleanRL's qdagger_dqn_atari_jax_impalacnn"):
        convert.read_checkpoint(impala)
    with pytest.raises(ValueError, match="its parameters are ConvSequence_0"):
        read_oracle(impala)
    torch.save({"advantage_head.0.weight_mu": torch.zeros(1)}, impala)
    with pytest.raises(UnreadableCheckpoint, match="a noisy dueling network of CleanRL's rainbow_atari"):
        convert.read_checkpoint(impala)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda state: state.pop("network.7.bias"), WeightMismatch, r"no network\.7\.bias"),
        (lambda state: state.update({"network.11.bias": torch.zeros(1)}), WeightMismatch, r"unexpected network\.11"),
        (lambda state: state.update({"network.0.weight": torch.zeros(32, 3, 8, 8)}), UnsupportedArchitecture, "conv"),
        (lambda state: state["network.9.bias"].fill_(torch.nan), WeightMismatch, "not finite"),
        (lambda state: state.update({"atoms": torch.zeros(0)}), UnsupportedArchitecture, "its support 0 atoms"),
        (lambda state: state.update({"atoms": torch.zeros(2**20)}), UnsupportedArchitecture, "its support 1048576"),
    ],
)
def test_a_damaged_model_is_refused_by_both(change, error, message, tmp_path):
    path = _make_dqn(tmp_path / "x.cleanrl_model")
    state = torch.load(path)
    change(state)
    torch.save(state, path)
    with pytest.raises(error, match=rf"x\.cleanrl_model: .*{message}"):
        convert.read_checkpoint(path)
    with pytest.raises(ValueError, match=r"x\.cleanrl_model: "):
        read_oracle(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["args"].pop("v_min"), "its args tell no support"),
        (lambda tree: tree["args"].update(n_atoms=10**9), "its args tell no support"),
        (lambda tree: tree["args"].update(v_max=float("nan")), "its args tell no support"),
        (lambda tree: tree["args"].update(n_atoms=50), "its head has 306 rows and its support 50 atoms"),
        (lambda tree: tree["model_weights"]["params"].pop("Conv_1"), "no params/Conv_1"),
        (lambda tree: tree.update(args=1), "its args are a int"),
    ],
)
def test_a_damaged_model_of_jax_is_refused_by_both(change, message, tmp_path):
    path = save_sample(C51_JAX, tmp_path)
    tree = serialization.msgpack_restore(path.read_bytes())
    change(tree)
    path.write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(CheckpointError, match=message):
        convert.read_checkpoint(path)
    with pytest.raises(ValueError, match=r"jax\.cleanrl_model: "):
        read_oracle(path)


def test_a_truncated_model_and_one_of_other_content_are_refused_by_both(tmp_path):
    path = save_sample(C51_JAX, tmp_path)
    whole = path.read_bytes()
    ext = msgpack.packb({"model_weights": msgpack.ExtType(2, b"x"), "args": {}})
    for data in (whole[:-1], whole + b"x", ext, b"\x82\xadmodel_weights" + b"\x91" * 5000):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="not a model of CleanRL"):
            convert.read_checkpoint(path)
        with pytest.raises(ValueError, match="not parameters in msgpack"):
            read_oracle(path)


TARGETS = {"dqn": "cleanrl", "c51": "cleanrl", "dqn-jax": "cleanrl-jax", "c51-jax": "cleanrl-jax"}


@pytest.mark.parametrize(("model", "target"), TARGETS.items())
def test_a_target_writes_a_model_that_reads_back_as_it_was(model, target, tmp_path):
    source = MODELS[model](tmp_path)
    agent = convert.convert_checkpoint(source, tmp_path / "out", [target], identity="cleanrl/Pong").record.agent
    (written,) = (tmp_path / "out").glob("*.cleanrl_model")
    assert find_differences(convert.read_checkpoint(written), convert.read_checkpoint(source)) == []
    again = convert.convert_checkpoint(written, tmp_path / "again", [target], identity="cleanrl/Pong").record.agent
    assert (again.identity, again.architecture) == (agent.identity, agent.architecture)


@pytest.mark.parametrize("source", [PONG, BREAKOUT], ids=["pong", "breakout"])
def test_an_agent_of_the_release_becomes_a_model_that_the_check_proves(source, tmp_path):
    convert.convert_checkpoint(source, tmp_path / "out", ["cleanrl", "cleanrl-jax"])
    result = check_agent(tmp_path / "out", source, Options(("cleanrl", "cleanrl-jax"), max_steps=20))
    assert result.agrees
    if source == BREAKOUT:
        args = torch.load(tmp_path / "out/agent.cleanrl_model")["args"]
        expected = {"n_atoms": 51, "v_min": -10.0, "v_max": 10.0, "env_id": "BreakoutNoFrameskip-v4", "seed": 0}
        assert args == expected | {"total_timesteps": 187420}
        tree = serialization.msgpack_restore((tmp_path / "out/agent_jax.cleanrl_model").read_bytes())
        assert tree["args"] == args


@pytest.mark.parametrize("target", ["cleanrl", "cleanrl-jax"])
def test_a_model_with_other_arguments_is_not_opened(target, tmp_path):
    convert.convert_checkpoint(BREAKOUT, tmp_path / "out", [target])
    (path,) = (tmp_path / "out").glob("*.cleanrl_model")
    if target == "cleanrl":
        document = torch.load(path)
        document["args"]["env_id"] = "PongNoFrameskip-v4"
        buffer = io.BytesIO()
        torch.save(document, buffer)
        path.write_bytes(buffer.getvalue())
    else:
        path.write_bytes(path.read_bytes().replace(b"BreakoutNo", b"BreakoutYe"))
    with pytest.raises(UnreadableArtefact, match="not what atari-convert writes for it"):
        convert.load_agent(tmp_path / "out", target)


def test_a_quantile_head_has_no_place_in_cleanrl(tmp_path):
    source = save_sample("sb3_qrdqn_v1.6.2_small.zip", tmp_path)
    for target in ("cleanrl", "cleanrl-jax"):
        with pytest.raises(TargetError, match=f"{target} holds the Nature-CNN of dqn_atari and c51_atari"):
            convert.convert_checkpoint(source, tmp_path / "out", [target])
    assert json.dumps([path.name for path in (tmp_path / "out").glob("*.cleanrl_model")]) == "[]"


def test_a_search_and_a_url_find_a_model_whose_folder_has_no_suffix(tmp_path):
    save_sample(C51, tmp_path / "zoo")
    for source in (tmp_path / "zoo", f"local://{tmp_path}/zoo", f"local://{tmp_path}/zoo/{C51}"):
        (job,) = find_jobs([source], tmp_path / "out")
        assert job.folder == str(tmp_path / "out/cleanrl_c51_atari")
