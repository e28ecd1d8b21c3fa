"""Agent folders and their checkpoints: what is found, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from builders import AGENTS, PONG, make_state, save_checkpoint

import convert
from convert.agents.record import read_record
from convert.errors import CheckError, CheckpointError
from convert.store.local import is_intact
from convert.targets import find_target
from runtime_check.check.folders import find_agent_folders
from runtime_check.check.sources import Sources
from runtime_check.check.verification import find_artefact, find_changes

FOLDER = "DQN_modern/Pong/0/model_328492"


@pytest.fixture
def record(converted):
    return read_record(converted / FOLDER)


def test_agent_folders_are_found_in_order_and_not_in_what_is_hidden(converted, tmp_path):
    for name in ("b/2", "b/1", "a", "b/1/.atari-convert-new"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(converted / FOLDER / "agent.json", tmp_path / name)
    found = [str(Path(path).relative_to(tmp_path)) for path in find_agent_folders([str(tmp_path)])]
    assert found == ["a", "b/1", "b/2"]
    assert find_agent_folders([str(tmp_path / "a")]) == [str(tmp_path / "a")]


def test_links_are_followed_where_they_are_named_and_each_agent_is_found_once(converted, tmp_path):
    tree, elsewhere = tmp_path / "tree", tmp_path / "elsewhere"
    for folder in (tree / "b", elsewhere):
        folder.mkdir(parents=True)
        shutil.copy(converted / FOLDER / "agent.json", folder)
    (tree / "a").symlink_to(elsewhere)
    (tree / "c").symlink_to(tree / "b")
    (tree / "loop").symlink_to(tree)

    def find(*places: Path) -> list[str]:
        return find_agent_folders([str(place) for place in places])

    assert find(tree) == [str(tree / "b")]
    assert find(tree / "a") == [str(tree / "a")]
    assert find(tree / "c", tree, tree / "b/../b") == [str(tree / "c")]


def test_a_folder_without_agents_is_refused(tmp_path):
    with pytest.raises(CheckError, match=r"no agent\.json in it or below"):
        find_agent_folders([str(tmp_path)])


def test_a_source_is_found_at_its_place_in_the_release(record):
    assert Sources(AGENTS).find(record.agent) == AGENTS / f"{FOLDER}.gz"


def test_a_source_is_found_elsewhere_by_its_sha256(record, tmp_path):
    moved = tmp_path / "somewhere/model_7.gz"
    moved.parent.mkdir()
    shutil.copy(PONG, moved)
    (tmp_path / "model_8.gz").write_bytes(bytes(PONG.stat().st_size))
    assert Sources(tmp_path).find(record.agent) == moved
    assert Sources(moved).find(record.agent) == moved


@pytest.mark.parametrize("place", ["model_7.gz", "checkpoint/below/model_7.gz", f"{FOLDER}.gz"])
def test_a_checkpoint_that_an_agent_brings_itself_is_not_what_it_is_compared_with(place, record, tmp_path, monkeypatch):
    agent = tmp_path / "downloaded"
    (agent / place).parent.mkdir(parents=True)
    shutil.copy(PONG, agent / place)
    (agent / "agent.json").write_text("{}")
    monkeypatch.chdir(agent)
    for root in (tmp_path, agent, Path(), Path("..")):
        with pytest.raises(CheckpointError, match=r"no checkpoint of .* below; name the root of the checkpoints with"):
            Sources(root).find(record.agent)
    assert Sources(agent / place).find(record.agent) == agent / place  # which a user has named
    shutil.copy(PONG, tmp_path / "model_9.gz")
    assert Sources(tmp_path).find(record.agent) == tmp_path / "model_9.gz"


def test_another_checkpoint_at_its_place_is_not_taken(record, tmp_path):
    save_checkpoint(tmp_path / f"{FOLDER}.gz", make_state(6))
    with pytest.raises(CheckpointError, match=f"no checkpoint of {FOLDER}.gz"):
        Sources(tmp_path).find(record.agent)


def test_another_file_is_refused_with_both_sizes_or_checksums(record, tmp_path):
    other = save_checkpoint(tmp_path / "model_1.gz", make_state(6))
    sizes = f"has {other.stat().st_size} bytes, .* says {PONG.stat().st_size} bytes: another checkpoint"
    with pytest.raises(CheckpointError, match=sizes):
        Sources(other).find(record.agent)
    data = bytearray(PONG.read_bytes())
    data[-1] ^= 1
    other.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=f"has sha256 [0-9a-f]{{64}}, .* says sha256 {record.agent.source.sha256}"
    ):
        Sources(other).find(record.agent)


def test_changes_of_an_artefact_are_found(converted, record, tmp_path):
    folder = tmp_path / "agent"
    shutil.copytree(converted / FOLDER, folder)
    artifact = record.artifacts["tensorflow"]
    assert find_artefact(folder, "tensorflow") == folder / "saved_model"
    assert find_changes(folder, "tensorflow", artifact) == []
    (folder / "saved_model/variables/variables.index").unlink()
    (folder / "saved_model/saved_model.pb").write_bytes(b"")
    (folder / "saved_model/more").write_bytes(b"")
    changes = "; ".join(find_changes(folder, "tensorflow", artifact))
    assert "saved_model/variables/variables.index is missing" in changes
    size = next(file.size for file in artifact.files if file.path.endswith(".pb"))
    assert f"size: saved_model/saved_model.pb has 0 bytes, agent.json says {size} bytes" in changes
    assert "saved_model/more is not in agent.json" in changes


def test_an_artefact_is_where_its_users_load_it(converted, record, tmp_path):
    folder = tmp_path / "agent"
    shutil.copytree(converted / FOLDER, folder)
    (folder / "model.onnx").rename(folder / "decoy.onnx")
    (file,) = record.artifacts["onnx"].files
    artifact = replace(record.artifacts["onnx"], files=(replace(file, path="decoy.onnx"),))
    assert find_changes(folder, "onnx", artifact) == ["decoy.onnx is no part of onnx, whose place is model.onnx"]


def test_a_symbolic_link_is_no_part_of_an_artefact(converted, record, tmp_path):
    folder = tmp_path / "agent"
    shutil.copytree(converted / FOLDER, folder)
    (folder / "saved_model/variables").rename(tmp_path / "variables")
    (folder / "saved_model/variables").symlink_to(tmp_path / "variables")
    (change,) = find_changes(folder, "tensorflow", record.artifacts["tensorflow"])
    assert change == "saved_model/variables is a symbolic link, which atari-convert never writes"
    (folder / "model.onnx").rename(tmp_path / "model.onnx")
    (folder / "model.onnx").symlink_to(tmp_path / "model.onnx")
    (change,) = find_changes(folder, "onnx", record.artifacts["onnx"])
    assert change == "model.onnx is a symbolic link, which atari-convert never writes"


def test_links_and_pipes_are_told_and_never_opened(converted, record, tmp_path):
    folder = tmp_path / "agent"
    shutil.copytree(converted / FOLDER, folder)
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")
    os.mkfifo(folder / "saved_model/more")
    (change,) = find_changes(folder, "onnx", record.artifacts["onnx"])
    assert change == "model.onnx is not a regular file, which atari-convert never writes"
    (change,) = find_changes(folder, "tensorflow", record.artifacts["tensorflow"])
    assert change == "saved_model/more is not a regular file, which atari-convert never writes"


def test_a_link_above_a_recorded_file_is_never_followed(converted, tmp_path, monkeypatch):
    """A record that lists a file of onnx below a folder, and that folder is a link to somewhere else."""
    folder, secret = tmp_path / "agent", tmp_path / "elsewhere"
    shutil.copytree(converted / FOLDER, folder)
    secret.mkdir()
    (secret / "secret").write_bytes(b"secret")
    (folder / "sub").symlink_to(secret)
    document = json.loads((folder / "agent.json").read_text("utf-8"))
    document["artifacts"] = {"onnx": document["artifacts"]["onnx"]}
    document["artifacts"]["onnx"]["files"] = [
        {"path": "sub/secret", "size": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    ]
    (folder / "agent.json").write_text(json.dumps(document), "utf-8")
    opened, really_open = [], os.open

    def watch(path: object, *rest: int, **more: int) -> int:
        opened.append(path)
        return really_open(path, *rest, **more)

    monkeypatch.setattr(os, "open", watch)
    artifact = convert.read_record(folder).artifacts["onnx"]
    assert not is_intact(folder, find_target("onnx"), artifact)
    with suppress(convert.AtariConvertError):
        convert.read_agent(folder)
    with suppress(convert.AtariConvertError):
        convert.load_agent(folder, "onnx")
    assert find_changes(folder, "onnx", artifact)[0] == "sub/secret is no part of onnx, whose place is model.onnx"
    assert not [path for path in opened if "secret" in str(path)]
