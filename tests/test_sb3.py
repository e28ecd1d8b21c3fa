"""Agents of Stable-Baselines3 and sb3-contrib: what is read, what is refused, and what the judge makes of them."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import BREAKOUT, PONG, change_zip, make_observations, save_sample

import convert
from convert.agents.identity import Identity
from convert.agents.network import find_differences
from convert.bulk.selection import find_jobs
from convert.errors import (
    CheckpointError,
    SelectionError,
    TargetError,
    UnreadableArtefact,
    UnreadableCheckpoint,
    UnsupportedArchitecture,
)
from convert.sources import parse_identity, recognise_file
from runtime_check import Options, check_agent
from runtime_check.oracle import compute_outputs
from runtime_check.originals import find_original, read_oracle

ZIPS = {
    "sb3_dqn_v1.6.2_small.zip": ("DQN", 64),
    "sb3_dqn_v2.9.2.zip": ("DQN", 512),
    "sb3_qrdqn_v1.6.2_small.zip": ("QR-DQN", 64),
    "sb3_qrdqn_v2.9.2.zip": ("QR-DQN", 512),
}


@pytest.fixture
def dqn(tmp_path: Path) -> Path:
    return save_sample("sb3_dqn_v2.9.2.zip", tmp_path / "zips")


@pytest.fixture
def qrdqn(tmp_path: Path) -> Path:
    return save_sample("sb3_qrdqn_v1.6.2_small.zip", tmp_path / "zips")


def _read_policy(path: Path) -> dict[str, torch.Tensor]:
    """Return the policy's state dict, as SB3 loads it."""
    with zipfile.ZipFile(path) as archive:
        state: dict[str, torch.Tensor] = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    return state


def _change_data(path: Path, **values: object) -> Path:
    def change(entries: dict[str, bytes]) -> None:
        entries["data"] = json.dumps(json.loads(entries["data"]) | values).encode()

    return change_zip(path, path.with_name("changed.zip"), change)


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_tells_its_network_its_algorithm_its_seed_and_its_step(name, tmp_path):
    path = save_sample(name, tmp_path)
    algorithm, hidden = ZIPS[name]
    conversion = convert.convert_checkpoint(path, tmp_path / "out", ["safetensors"], identity="sb3/Pong")
    agent = conversion.record.agent
    assert agent.identity == Identity("sb3", algorithm, "Pong", "sb3", 1, 0)
    assert agent.architecture.hidden == (hidden,)
    assert (agent.head.kind, agent.head.quantiles) == (("q", None) if algorithm == "DQN" else ("quantile", 200))
    assert agent.action_meanings == ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")


@pytest.mark.parametrize("name", ZIPS)
def test_the_judge_reads_the_same_network_by_itself(name, tmp_path):
    path, observations = save_sample(name, tmp_path), make_observations(3)
    oracle = compute_outputs(read_oracle(path), observations)
    eager = find_original(path).read_eager(path)(torch.from_numpy(observations))
    convert.convert_checkpoint(path, tmp_path / "out", ["onnx"])
    onnx = convert.load_agent(tmp_path / "out", "onnx").run(observations)
    assert oracle.keys() == eager.keys() == onnx.keys()
    for output, values in oracle.items():
        assert values.std() > 1e-3
        np.testing.assert_allclose(eager[output].detach(), values, atol=1e-5)
        np.testing.assert_allclose(onnx[output], values, atol=1e-5)


def test_the_rows_of_a_quantile_head_are_those_of_one_quantile_after_the_other(qrdqn):
    state, network = _read_policy(qrdqn), convert.read_checkpoint(qrdqn)
    rows = state["quantile_net.quantile_net.0.weight"]
    for action, quantile in ((0, 0), (1, 0), (0, 1), (5, 199)):
        ours = network.arrays["head.kernel"][action * 200 + quantile]
        np.testing.assert_array_equal(ours, rows[quantile * 6 + action])


def test_the_online_network_is_read_and_not_the_target(dqn):
    def change(entries: dict[str, bytes]) -> None:
        state = _read_policy(dqn)
        for name, tensor in state.items():
            if name.startswith("q_net_target."):
                tensor.fill_(1.0)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        entries["policy.pth"] = buffer.getvalue()

    changed = change_zip(dqn, dqn.with_name("changed.zip"), change)
    expected = convert.read_checkpoint(dqn)
    assert find_differences(convert.read_checkpoint(changed), expected) == []
    observations = make_observations(1)
    one, other = (compute_outputs(read_oracle(path), observations)["q_values"] for path in (dqn, changed))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"observation_space": {"_shape": [84, 84, 4], "dtype": "uint8"}}, r"observations .*\[84, 84, 4\]"),
        ({"observation_space": {"_shape": [1, 84, 84], "dtype": "uint8"}}, r"observations .*\[1, 84, 84\]"),
        ({"action_space": {"n": "9"}}, "head has 6 rows, its data says 9 actions"),
        ({"policy_kwargs": {"normalize_images": False}}, "policy option normalize_images = False"),
        ({"policy_kwargs": {"net_arch": [64]}}, r"policy option net_arch = \[64\]"),
        ({"policy_kwargs": {"features_extractor_class": "<class 'Mine'>"}}, "policy option features_extractor_class"),
    ],
)
def test_another_environment_or_network_is_refused_by_name(dqn, values, message):
    with pytest.raises(UnsupportedArchitecture, match=rf"changed\.zip: .*{message}"):
        convert.read_checkpoint(_change_data(dqn, **values))


def test_another_algorithm_is_refused_by_name(tmp_path):
    path = save_sample("sb3_ppo_v2.9.2.zip", tmp_path)
    assert recognise_file(path.read_bytes()[: 2**16], "ppo.zip") == "sb3"
    expected = r"a Stable-Baselines3 agent of PPO or A2C \(policy_class .*\); supported: DQN, QR-DQN"
    with pytest.raises(UnreadableCheckpoint, match=expected):
        convert.read_checkpoint(path)
    unnamed = _change_data(path, policy_class={})
    with pytest.raises(UnreadableCheckpoint, match=r"PPO or A2C \(action_net, .*\); supported: DQN, QR-DQN"):
        convert.read_checkpoint(unnamed)
    with pytest.raises(ValueError, match=r"holds action_net, .*, expected q_net or quantile_net"):
        read_oracle(path)


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_no_pickle_in_the_data_is_read(dqn, tmp_path):
    ran = tmp_path / "ran"
    pickled = base64.b64encode(pickle.dumps(_Runs(ran))).decode()
    about = {"_shape": [4, 84, 84], "dtype": "uint8", ":type:": "x", ":serialized:": pickled}
    changed = _change_data(dqn, observation_space=about, lr_schedule={":serialized:": pickled})
    convert.convert_checkpoint(changed, tmp_path / "out", ["safetensors"])
    find_original(changed).read_eager(changed)
    assert not ran.exists()


def test_a_policy_that_wants_to_run_code_is_refused_by_both(dqn, tmp_path):
    def change(entries: dict[str, bytes]) -> None:
        buffer = io.BytesIO()
        torch.save({"q_net.x": _Runs(tmp_path / "ran")}, buffer)
        entries["policy.pth"] = buffer.getvalue()

    changed = change_zip(dqn, tmp_path / "changed.zip", change)
    with pytest.raises(UnreadableCheckpoint, match=r"policy\.pth: refused: its pickle wants to run"):
        convert.read_checkpoint(changed)
    with pytest.raises(ValueError, match="not a checkpoint that torch can read safely"):
        read_oracle(changed)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_zip_is_refused_by_both_with_its_path(dqn, tmp_path):
    whole = dqn.read_bytes()
    compressed = io.BytesIO()
    with zipfile.ZipFile(dqn) as old, zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    for data in (whole[: len(whole) // 2], whole[:-1], whole.replace(b"policy.pth", b"polisy.pth")):
        path = tmp_path / "damaged.zip"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"damaged\.zip: "):
            convert.read_checkpoint(path)
        with pytest.raises(ValueError, match=r"damaged\.zip: not a zip of Stable-Baselines3"):
            read_oracle(path)
    path.write_bytes(compressed.getvalue())
    with pytest.raises(CheckpointError, match="compressed"):
        convert.read_checkpoint(path)


def test_the_name_tells_the_game_as_the_zoo_writes_it_and_the_head_has_to_fit(dqn, tmp_path):
    named = dqn.rename(dqn.with_name("dqn-SpaceInvadersNoFrameskip-v4.zip"))
    agent = convert.convert_checkpoint(named, tmp_path / "out", ["safetensors"]).record.agent
    assert agent.identity == Identity("sb3", "DQN", "SpaceInvaders", "sb3", 1, 0)
    wrong = named.rename(named.with_name("dqn-BreakoutNoFrameskip-v4.zip"))
    with pytest.raises(CheckpointError, match="has 6 actions, expected 4 or all 18 for Breakout"):
        convert.convert_checkpoint(wrong, tmp_path / "other", ["safetensors"])
    other = wrong.rename(wrong.with_name("qrdqn-PongNoFrameskip-v4.zip"))
    with pytest.raises(CheckpointError, match="holds an agent of algorithm DQN, expected QR-DQN"):
        convert.convert_checkpoint(other, tmp_path / "other", ["safetensors"])


def test_an_identity_names_a_zoo_and_a_game():
    assert parse_identity("sb3/Pong") == Identity("sb3", None, "Pong", "sb3")
    assert parse_identity("sb3/Pong/3/1000") == Identity("sb3", None, "Pong", "sb3", 3, 1000)
    with pytest.raises(ValueError, match="no game 'Pongg' in the release; did you mean Pong"):
        parse_identity("sb3/Pongg")


def test_a_search_picks_up_the_zips_of_agents_alone(tmp_path):
    agent = save_sample("sb3_dqn_v1.6.2_small.zip", tmp_path / "zoo")
    with zipfile.ZipFile(tmp_path / "zoo/notes.zip", "w") as archive:
        archive.writestr("notes.txt", "nothing")
    (tmp_path / "zoo/damaged.zip").write_bytes(b"PK")
    for source in (tmp_path / "zoo", f"{tmp_path}/zoo/*", f"local://{tmp_path}/zoo", f"local://{tmp_path}/zoo/*"):
        (job,) = find_jobs([source], tmp_path / "out")
        assert job.source.endswith(agent.name)
        assert job.folder == str(tmp_path / "out" / agent.stem)
    agent.unlink()
    with pytest.raises(SelectionError, match=r"2 files \(2 \.zip\)"):
        find_jobs([tmp_path / "zoo"], tmp_path / "out")


def _unpack(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder


def test_an_unpacked_zip_is_an_agent_too(dqn, tmp_path):
    folder = _unpack(dqn, tmp_path / "hub/dqn-PongNoFrameskip-v4")
    (folder.parent / "args.yml").touch()
    (job,) = find_jobs([folder.parent], tmp_path / "out")
    assert (job.kind, Path(job.source)) == ("sb3-folder", folder)
    record = convert.convert_checkpoint(folder, tmp_path / "out", ["safetensors"]).record
    assert record.agent.identity == Identity("sb3", "DQN", "Pong", "sb3", 1, 0)
    assert record.agent.source.path == "dqn-PongNoFrameskip-v4/policy.pth"
    ours, theirs = convert.read_agent(tmp_path / "out"), convert.read_checkpoint(dqn)
    assert find_differences(ours, theirs) == []
    observations = make_observations(1)
    judged = compute_outputs(read_oracle(folder / "policy.pth"), observations)["q_values"]
    np.testing.assert_array_equal(judged, compute_outputs(read_oracle(dqn), observations)["q_values"])


def test_an_identity_leaves_the_algorithm_and_the_step_to_an_unpacked_zip(qrdqn, tmp_path):
    folder = _unpack(qrdqn, tmp_path / "agent")
    record = convert.convert_checkpoint(folder, tmp_path / "out", ["safetensors"], identity="sb3/Pong").record
    assert record.agent.identity == Identity("sb3", "QR-DQN", "Pong", "sb3", 1, 0)


def test_where_a_zip_and_its_unpacked_folder_lie_beside_each_other_the_zip_is_read(dqn, tmp_path):
    _unpack(dqn, dqn.with_suffix(""))
    (job,) = find_jobs([dqn.parent], tmp_path / "out")
    assert job.source == str(dqn)


def test_an_unpacked_zip_of_another_algorithm_is_refused_by_name(tmp_path):
    folder = _unpack(save_sample("sb3_ppo_v2.9.2.zip", tmp_path), tmp_path / "agent")
    with pytest.raises(UnreadableCheckpoint, match="agent: a Stable-Baselines3 agent of PPO or A2C"):
        convert.convert_checkpoint(folder, tmp_path / "out", ["safetensors"])


@pytest.mark.parametrize("name", ["sb3_dqn_v2.9.2.zip", "sb3_qrdqn_v1.6.2_small.zip"])
def test_the_target_writes_a_zip_that_is_read_back_bit_for_bit(name, tmp_path):
    path = save_sample(name, tmp_path)
    convert.convert_checkpoint(path, tmp_path / "out", ["sb3"], identity="sb3/Pong/1/0")
    expected = convert.read_checkpoint(path)
    assert find_differences(convert.read_checkpoint(tmp_path / "out/sb3.zip"), expected) == []
    assert find_differences(convert.read_agent(tmp_path / "out"), expected) == []
    ours, theirs = _read_policy(tmp_path / "out/sb3.zip"), _read_policy(path)
    assert list(ours) == [
        *(key for key in theirs if "_target." not in key),
        *(key for key in theirs if "_target." in key),
    ]
    net = next(iter(ours)).partition(".")[0]
    for key, tensor in ours.items():  # the sample's target network has weights of its own
        torch.testing.assert_close(tensor, theirs[key.replace(f"{net}_target", net)], rtol=0, atol=0)


def test_an_agent_of_the_release_becomes_a_zip_that_the_check_proves(tmp_path):
    convert.convert_checkpoint(PONG, tmp_path / "out", ["sb3"])
    result = check_agent(tmp_path / "out", PONG, Options(("sb3",), max_steps=20))
    assert result.agrees
    about = json.loads(zipfile.ZipFile(tmp_path / "out/sb3.zip").read("data"))
    assert about["num_timesteps"] == 328492


@pytest.mark.parametrize("entry", ["data", "policy.optimizer.pth", "_stable_baselines3_version", "more.pth"])
def test_a_zip_with_anything_else_in_it_is_neither_current_nor_opened(tmp_path, entry):
    convert.convert_checkpoint(PONG, tmp_path / "out", ["sb3"])
    path = tmp_path / "out/sb3.zip"

    def change(entries: dict[str, bytes]) -> None:
        if entry == "data":
            entries[entry] = json.dumps(json.loads(entries[entry]) | {"lr_schedule": {":serialized:": "gAQu"}}).encode()
        else:
            entries[entry] = entries.get("policy.pth", b"")

    change_zip(path, tmp_path / "changed.zip", change).replace(path)
    with pytest.raises(UnreadableArtefact, match=rf"sb3\.zip: {entry} is not what atari-convert writes for it"):
        convert.load_agent(tmp_path / "out", "sb3")


def test_a_zip_that_was_trained_on_is_read_back_with_its_step(dqn, tmp_path):
    convert.convert_checkpoint(dqn, tmp_path / "out", ["sb3"], identity="sb3/Pong")
    other = save_sample("sb3_dqn_v2.9.2.zip", tmp_path)

    def change(entries: dict[str, bytes]) -> None:
        state = _read_policy(other)
        state["q_net.q_net.0.bias"] += 1
        buffer = io.BytesIO()
        torch.save(state, buffer)
        entries["policy.pth"] = buffer.getvalue()
        entries["data"] = json.dumps(json.loads(entries["data"]) | {"num_timesteps": 5000}).encode()

    change_zip(other, tmp_path / "trained.zip", change).replace(tmp_path / "out/sb3.zip")
    record = convert.convert_checkpoint(tmp_path / "out", tmp_path / "back", ["onnx"]).record
    assert record.agent.identity == Identity("sb3", "DQN", "Pong", "sb3", 1, 5000)
    assert record.agent.derived_from.path == dqn.name


def test_a_network_that_sb3_does_not_have_is_refused_by_name_before_anything_is_written(tmp_path):
    with pytest.raises(TargetError, match=r"sb3 holds DQN's Q head .*: Stable-Baselines3 has no C51"):
        convert.convert_checkpoint(BREAKOUT, tmp_path / "out", ["sb3"])
    assert not list((tmp_path / "out").glob("**/*.zip"))
