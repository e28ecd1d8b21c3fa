"""One agent's folder: what is current, outdated, foreign, interrupted; and that it is whole at every instant."""

from __future__ import annotations

import functools
import http.server
import json
import multiprocessing
import pickle
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import AGENTS, PONG, make_state, save_checkpoint

import convert
from convert.agents.identity import Identity
from convert.agents.record import to_json
from convert.errors import (
    ArtefactMissing,
    CheckpointError,
    InvalidArgument,
    OutputExists,
    RecordError,
    SelectionError,
    TargetError,
    TargetsFailed,
    UnknownTarget,
    UnsuitableTarget,
    UnwritableOutput,
)
from convert.formats.atari_agents import make_identity
from convert.sources.atari_agents import parse_identity
from convert.store.local import describe_files
from convert.targets import find_target

TARGETS = ["flax", "onnx"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "agent"
    convert.convert_checkpoint(PONG, folder, [*TARGETS, "tensorflow"])
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "agent"))


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_current_is_left_alone(folder):
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert convert.convert_checkpoint(PONG, folder, TARGETS).written == ()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times


def test_overwriting_gives_the_same_bytes(folder):
    before = _snapshot(folder)
    written = convert.convert_checkpoint(PONG, folder, [*TARGETS, "tensorflow"], overwrite=True).written
    assert written == (*TARGETS, "tensorflow")
    assert _snapshot(folder) == before


def test_a_further_target_is_merged_into_the_record(pristine, tmp_path):
    for target in ("tensorflow", *TARGETS):
        assert convert.convert_checkpoint(PONG, tmp_path / "agent", [target]).written == (target,)
    assert _snapshot(tmp_path / "agent") == _snapshot(pristine)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("model.onnx", "onnx"),
        ("params.msgpack", "flax"),
        ("saved_model/saved_model.pb", "tensorflow"),
        ("saved_model/variables/variables.data-00000-of-00001", "tensorflow"),
    ],
)
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_what_differs_from_the_record_is_written_again(folder, pristine, name, target, damage):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "flipped" else data[:-1])
    if damage == "gone":
        path.unlink()
    assert convert.convert_checkpoint(PONG, folder, [*TARGETS, "tensorflow"]).written == (target,)
    assert _snapshot(folder) == _snapshot(pristine)


def test_another_source_replaces_every_recorded_target(folder, tmp_path):
    other = save_checkpoint(tmp_path / "DQN_modern/Pong/0/model_328492.gz", make_state())
    conversion = convert.convert_checkpoint(other, folder, ["onnx"])
    assert set(conversion.written) == {"onnx", "flax", "tensorflow"}
    assert convert.read_record(folder).agent.source.size == other.stat().st_size


@pytest.mark.parametrize("change", ["tool", "format", "inputs", "files", "others", "record", "layout", "agent"])
def test_what_another_version_wrote_is_replaced(folder, pristine, change):
    document = json.loads((folder / "agent.json").read_text())
    if change == "tool":
        document["artifacts"]["onnx"]["versions"]["atari-convert"] = "0.0.1"
    elif change == "format":
        document["artifacts"]["onnx"]["format_version"] = 99
    elif change == "inputs":
        document["artifacts"]["onnx"]["inputs"][0]["shape"] = [None, 84, 84, 4]
    elif change == "others":  # nobody asks for it below, and yet it would mislead whoever loads it
        document["artifacts"]["flax"]["outputs"].pop()
        document["artifacts"]["flax"]["outputs"] += document["artifacts"]["onnx"]["inputs"]
    elif change == "files":
        document["artifacts"]["onnx"]["files"].append(document["artifacts"]["flax"]["files"][0] | {"path": "more"})
        shutil.copy(folder / "params.msgpack", folder / "more")
    elif change == "record":
        document["format_version"] = 99
    elif change == "agent":
        document["action_meanings"].reverse()
    indent = 4 if change == "layout" else 2
    (folder / "agent.json").write_text(json.dumps(document, indent=indent) + "\n")
    written = convert.convert_checkpoint(PONG, folder, ["onnx", "tensorflow"]).written
    assert set(written) == {
        "record": {"onnx", "tensorflow"},
        "layout": {"onnx", "tensorflow"},
        "others": {"flax"},
        "agent": {"onnx", "tensorflow", "flax"},
    }.get(change, {"onnx"})
    if change == "record":
        assert convert.convert_checkpoint(PONG, folder, ["flax"]).written == ("flax",)
    (folder / "more").unlink(missing_ok=True)
    assert _snapshot(folder) == _snapshot(pristine)


def test_an_identity_is_recorded_and_another_one_is_a_change(folder):
    identity = parse_identity("MDQN_modern/Pong/1/5")
    with pytest.raises(SelectionError, match="--identity says algorithm M-DQN, but the path says DQN: leave"):
        convert.convert_checkpoint(PONG, folder, ["onnx"], identity=identity)
    mine = Path(shutil.copy(PONG, folder.parent / "mine.gz"))
    conversion = convert.convert_checkpoint(mine, folder, ["onnx"], identity=identity)
    assert set(conversion.written) == {"onnx", "flax", "tensorflow"}
    record = convert.read_record(folder)
    assert record.agent.identity == identity
    assert record.agent.source.path == "MDQN_modern/Pong/1/model_5.gz"


def test_an_agent_outside_the_layout_is_converted_without_identity(tmp_path):
    path = save_checkpoint(tmp_path / "mine.gz", make_state(5))
    convert.convert_checkpoint(path, tmp_path / "agent", ["onnx"])
    agent = convert.load_agent(tmp_path / "agent", "onnx").agent
    assert agent.identity == Identity()
    assert (agent.source.path, agent.action_meanings, agent.head.actions) == ("mine.gz", None, 5)


def test_a_family_with_another_head_is_refused(tmp_path):
    path = save_checkpoint(tmp_path / "C51_classic/Pong/0/model_1.gz", make_state(6))
    with pytest.raises(CheckpointError, match=r"has a q head, expected that of C51_classic \(C51\): check its folder"):
        convert.convert_checkpoint(path, tmp_path / "agent", ["onnx"])
    assert not (tmp_path / "agent").exists()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("onnx", r"^targets is 'onnx', expected a collection of names such as \['onnx'\]$"),
        (None, r"^targets is None, expected a collection of names such as \['onnx'\]$"),
        ((name for name in ["onnx"]), r"^targets is <generator .*>, expected a collection of names"),
        ([], r"^targets is empty, expected at least one of checkpoint, cleanrl, "),
    ],
)
def test_targets_are_names_at_least_one(folder, targets, message, tmp_path):
    for source in (PONG, folder):
        with pytest.raises(InvalidArgument, match=message):
            convert.convert_checkpoint(source, tmp_path / "out", targets)


@pytest.mark.parametrize("name", ["all", "onx", 1])
def test_an_unknown_target_is_told_what_there_is(name, tmp_path):
    with pytest.raises(UnknownTarget, match=rf"^no target {name!r}; .*Known: .*; the option --to also takes all$"):
        convert.convert_checkpoint(PONG, tmp_path / "out", [name])


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        ("Pong", r"^identity: 'Pong' is not FAMILY/Game\[/SEED\[/STEP\]\], such as DQN_modern/Pong/0/50000000$"),
        ("DQN_modern/pong", r"^identity: no game 'pong' in the release; did you mean Pong\?$"),
        (Identity(game="pong"), r"^identity: no game 'pong' in the release; did you mean Pong\?$"),
        (Identity(game=3), r"^identity: game is 3, expected a name such as Pong$"),
        (Identity(seed="0"), r"^identity: seed is '0', expected 0 to \d+$"),
        (Identity(step=True), r"^identity: step is True, expected 0 to \d+$"),
        (Identity(step=1.0), r"^identity: step is 1.0, expected 0 to \d+$"),
        (Identity(zoo=b"zoo"), r"^identity: zoo is b'zoo', expected "),
        ({"game": "Pong"}, r"^identity is \{'game': 'Pong'\}, expected a convert.Identity or FAMILY/Game"),
    ],
)
def test_an_identity_that_is_none_is_refused(identity, message, folder, tmp_path):
    mine = shutil.copy(PONG, tmp_path / "mine.gz")
    for source in (mine, folder):
        with pytest.raises(InvalidArgument, match=message):
            convert.convert_checkpoint(source, tmp_path / "out", ["onnx"], identity=identity)
    assert not (tmp_path / "out").exists()


def test_an_identity_is_taken_as_the_command_takes_it(tmp_path):
    mine = shutil.copy(PONG, tmp_path / "mine.gz")
    done = convert.convert_checkpoint(mine, tmp_path / "out", ["onnx"], identity="DQN_modern/Pong/7/9")
    assert done.record.agent.identity == make_identity("DQN_modern", "Pong", 7, 9)


def test_a_source_may_be_a_url(tmp_path):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=AGENTS)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{PONG.relative_to(AGENTS).as_posix()}"
        done = convert.convert_checkpoint(url, tmp_path / "out", ["onnx"])
        server.shutdown()
    assert done.record.agent.source.path == PONG.relative_to(AGENTS).as_posix()
    assert done.record.agent.identity.seed == 0


@pytest.mark.parametrize("content", ["notes", '{"name": "somebody else\'s agent.json"}'])
def test_a_foreign_folder_is_not_touched(tmp_path, content):
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent/agent.json").write_text(content)
    (tmp_path / "agent/notes").write_text("mine")
    with pytest.raises(OutputExists, match=r"holds agent.json, notes; its agent.json is damaged or not ours"):
        convert.convert_checkpoint(PONG, tmp_path / "agent", ["onnx"], overwrite=True)
    assert _snapshot(tmp_path / "agent") == {"agent.json": content.encode(), "notes": b"mine"}


def test_a_file_in_place_of_the_folder_is_not_touched(tmp_path):
    (tmp_path / "agent").write_text("mine")
    with pytest.raises(UnwritableOutput, match=r"agent: cannot be made .*choose another --out"):
        convert.convert_checkpoint(PONG, tmp_path / "agent", ["onnx"])
    assert (tmp_path / "agent").read_text() == "mine"


def test_a_failed_write_leaves_the_folder_as_it_was(folder, monkeypatch):
    from convert.targets import onnx

    def fail(*_):
        raise OSError(28, "No space left on device")

    before = _snapshot(folder)
    monkeypatch.setattr(onnx, "write", fail)
    with pytest.raises(UnwritableOutput, match=r"cannot be written \(No space left on device"):
        convert.convert_checkpoint(PONG, folder, [*TARGETS, "tensorflow"], overwrite=True)
    assert _snapshot(folder) == before
    with pytest.raises(UnwritableOutput):
        convert.convert_checkpoint(PONG, folder.parent / "a/new/one", ["onnx"])
    assert not (folder.parent / "a").exists()


@pytest.fixture
def uneven(tmp_path):
    """A checkpoint whose support Dopamine cannot hold, as anything else can."""
    state = make_state(4, 51)
    state["_AtariNet__support"] = torch.linspace(0, 20, 51)
    return save_checkpoint(tmp_path / "C51_classic/Breakout/0/model_5.gz", state)


def test_a_target_that_fails_takes_no_other_down(uneven, tmp_path):
    folder = tmp_path / "agent"
    for written in (("flax", "onnx"), ()):  # the second run tries again what failed
        with pytest.raises(
            TargetsFailed, match=r"model_5.gz: could not write dopamine, .*: dopamine: .* has no place"
        ) as caught:
            convert.convert_checkpoint(uneven, folder, ["flax", "dopamine", "onnx"])
        conversion = caught.value.conversion
        assert conversion.written == written
        assert {name: type(error) for name, error in conversion.failures.items()} == {"dopamine": UnsuitableTarget}
        assert conversion.record == convert.read_record(folder)
        assert conversion.record.artifacts.keys() == {"flax", "onnx"}
        assert _snapshot(folder).keys() == {"agent.json", "model.onnx", "params.msgpack"}
        assert convert.load_agent(folder, "onnx").agent.head.atoms == 51
    assert pickle.loads(pickle.dumps(caught.value)).conversion.folder == folder  # as it comes from a worker
    with pytest.raises(TargetError, match="has no place in Dopamine's JaxRainbowAgent"):
        convert.convert_checkpoint(uneven, tmp_path / "alone", ["dopamine"])
    assert not (tmp_path / "alone").exists()


def test_what_a_failure_leaves_is_not_published(tmp_path, monkeypatch):
    from convert.targets import flax

    def fail(_network, _agent, path):
        path.write_bytes(b"half")
        (path.parent / "junk").mkdir()
        (path.parent / "junk/more").write_bytes(b"more")
        raise RuntimeError("of the framework")

    monkeypatch.setattr(flax, "write", fail)
    with pytest.raises(TargetsFailed, match=r"flax: .*RuntimeError at .*: of the framework: a bug of atari-convert"):
        convert.convert_checkpoint(PONG, tmp_path / "agent", ["flax", "onnx", "onnx"])
    assert _snapshot(tmp_path / "agent").keys() == {"agent.json", "model.onnx"}
    # The record says what is there; what was there before a failure stays, for it is of the same agent.
    monkeypatch.undo()
    convert.convert_checkpoint(PONG, tmp_path / "agent", ["flax"])
    before = _snapshot(tmp_path / "agent")
    monkeypatch.setattr(flax, "write", fail)
    with pytest.raises(TargetsFailed):
        convert.convert_checkpoint(PONG, tmp_path / "agent", ["flax", "onnx"], overwrite=True)
    assert _snapshot(tmp_path / "agent") == before


def test_an_artefact_of_another_agent_does_not_outlive_it(uneven, tmp_path):
    folder = tmp_path / "agent"
    even = save_checkpoint(tmp_path / "even.gz", make_state(4, 51))
    convert.convert_checkpoint(even, folder, ["dopamine", "flax"])
    (folder / "notes").write_text("mine")
    with pytest.raises(TargetsFailed, match="could not write dopamine, but published onnx, flax"):
        convert.convert_checkpoint(uneven, folder, ["onnx"])
    assert _snapshot(folder).keys() == {"agent.json", "model.onnx", "params.msgpack", "notes"}
    assert convert.convert_checkpoint(uneven, folder, ["onnx", "flax"]).written == ()


@pytest.mark.parametrize("path", ["DQN_modern/Pong/1/model_328492.gz", "DQN_modern/Boxing/0/model_328492.gz"])
def test_a_path_that_tells_of_another_agent_is_refused(path, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"the path of its source says DQN_modern/.*: check its folder or --identity"
    ):
        convert.convert_checkpoint(PONG, tmp_path / "agent", ["onnx"], path=path)
    with pytest.raises(CheckpointError, match="has control characters: rename the checkpoint"):
        convert.convert_checkpoint(PONG, tmp_path / "agent", ["onnx"], path="a\nb.gz")
    assert not (tmp_path / "agent").exists()


def test_two_runs_at_one_agent_take_turns(tmp_path, pristine):
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=_convert, args=(tmp_path / "agent",)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(120)
    assert [run.exitcode for run in runs] == [0, 0]
    expected = {name: data for name, data in _snapshot(pristine).items() if not name.startswith("saved_model")}
    found = _snapshot(tmp_path / "agent")
    assert found.keys() == expected.keys()
    assert found["model.onnx"] == expected["model.onnx"]


def _convert(folder: Path) -> None:
    convert.convert_checkpoint(PONG, folder, TARGETS)


def test_loading_what_is_not_there_says_how_to_get_it(folder, tmp_path):
    document = json.loads((folder / "agent.json").read_text())
    del document["artifacts"]["flax"]
    (folder / "agent.json").write_text(json.dumps(document))
    with pytest.raises(ArtefactMissing, match=r"holds onnx, tensorflow, not flax: to write it, run convert\.conv"):
        convert.load_agent(folder, "flax")
    with pytest.raises(RecordError, match=rf"no agent\.json, but below it are agents: choose one of {folder}"):
        convert.load_agent(tmp_path, "onnx")


@pytest.mark.parametrize(
    ("target", "file", "change"),
    [
        ("safetensors", "huggingface/config.json", (b'"divide_by": 255', b'"divide_by": 1')),
        ("safetensors", "huggingface/README.md", (b"oldest frame first", b"newest frame first")),
        ("dopamine", "dopamine/origin.json", (b'"seed": 0', b'"seed": 1')),
        ("dopamine", "dopamine/agent.gin", (b"sticky_actions = True", b"sticky_actions = False")),
        ("onnx", "model.onnx", (b"\x0a\x04game\x12\x04Pong", b"\x0a\x04game\x12\x04Pang")),
    ],
)
def test_what_tells_something_else_of_the_agent_is_not_current(tmp_path, target, file, change):
    """Also where the record agrees with it."""
    folder = tmp_path / "agent"
    convert.convert_checkpoint(PONG, folder, [target])
    assert convert.convert_checkpoint(PONG, folder, [target]).written == ()
    good = (folder / file).read_bytes()
    (folder / file).write_bytes(good.replace(*change))
    assert (folder / file).read_bytes() != good
    record = convert.read_record(folder)
    files = describe_files(folder, find_target(target).path)
    artifacts = {target: replace(record.artifacts[target], files=files)}
    (folder / "agent.json").write_text(to_json(replace(record, artifacts=artifacts)), "utf-8")
    assert convert.convert_checkpoint(PONG, folder, [target]).written == (target,)
    assert (folder / file).read_bytes() == good
