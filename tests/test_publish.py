"""Publishing file by file and folder by folder: a kill between any two renames is made good by the next run."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from builders import make_architecture

from convert.agents.agent import Agent, Artifact, File, Record, Tensor
from convert.agents.identity import Identity
from convert.agents.record import read_record
from convert.errors import OutputExists, RoundTripError
from convert.store.folders import describe_bytes
from convert.store.local import inspect, open_folder, publish


def write_agent(folder: Path, content: str, *names: str) -> None:
    """Publish an agent whose artefacts are small text files: ``name`` or ``name/inner``."""
    with open_folder(inspect(folder)) as staging:
        for name in names:
            (staging.path / name).parent.mkdir(exist_ok=True)
            (staging.path / name).write_text(content)
        digest = hashlib.sha256(content.encode()).hexdigest()
        files = tuple(File(name, len(content), digest) for name in names)
        source = File("m.gz", 0, digest)
        tensors = (Tensor("observation", "uint8", (None,), ("batch",)),)
        record = Record(
            Agent(Identity(), make_architecture(6), source), {"all": Artifact(1, files, tensors, tensors)}, {}
        )
        publish(staging, record)


NAMES = ("model.onnx", "params.msgpack", "saved_model/graph", "saved_model/variables")

DYING = """
import os, sys
from pathlib import Path
from test_publish import NAMES, write_agent

rename, left = os.replace, int(sys.argv[2])

def dying_replace(*arguments):
    global left
    left -= 1
    if left < 0:
        os._exit(9)
    rename(*arguments)

os.replace = dying_replace
write_agent(Path(sys.argv[1]), "new", *NAMES)
"""


@pytest.mark.parametrize("before", [(), NAMES], ids=["first", "replacing"])
def test_a_kill_before_any_rename_leaves_the_old_or_ends_with_the_new(tmp_path, before):
    codes = []
    for kill in range(12):
        folder = tmp_path / str(kill)
        if before:
            write_agent(folder, "old", *before)
        command = [sys.executable, "-c", DYING, str(folder), str(kill)]
        codes.append(subprocess.run(command, cwd=Path(__file__).parent, check=False, timeout=60).returncode)
        with open_folder(inspect(folder)):
            pass
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        if kill == 0:  # killed before the decision: as if nothing had been tried
            assert names == (sorted([*NAMES, "agent.json"]) if before else [])
        if names:
            assert names == sorted([*NAMES, "agent.json"])
            files = read_record(folder).artifacts["all"].files
            assert {file.path: file for file in files} == {
                name: describe_bytes((folder / name).read_bytes(), name) for name in NAMES
            }
            assert {(folder / name).read_text() for name in NAMES} == {"old" if kill == 0 else "new"}
        if codes[-1] == 0:
            break
    assert codes[:-1] == [9] * (len(codes) - 1)
    assert codes[-1] == 0
    assert len(codes) > 4


def test_a_failure_while_staging_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), open_folder(inspect(tmp_path / "a/b")) as staging:
        (staging.path / "model.onnx").write_text("half")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_belongs_is_replaced(tmp_path):
    write_agent(tmp_path / "agent", "first", "model.onnx")
    (tmp_path / "agent/saved_model").write_text("not ours")
    write_agent(tmp_path / "agent", "second", *NAMES)
    assert {(tmp_path / "agent" / name).read_text() for name in NAMES} == {"second"}


PLACES = (
    *(".atari-convert-new", ".atari-convert-old", ".atari-convert-new/model.onnx", ".atari-convert-new/saved_model/x"),
    *("agent.json", "model.onnx", "saved_model", "saved_model/variables", "saved_model/deeper/variables"),
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["folder", "file", "dangling", "pipe"])
@pytest.mark.parametrize("decided", [True, False], ids=["decided", "undecided"])
def test_a_link_or_pipe_in_the_place_of_ours_is_refused(place, kind, decided, tmp_path):
    folder, mine, path = tmp_path / "agent", tmp_path / "mine", tmp_path / "agent" / place
    write_agent(folder, "old", *NAMES)
    mine.mkdir()
    (mine / "model.onnx").write_text("mine")
    (mine / "agent.json").write_text((folder / "agent.json").read_text())
    if path.exists():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    if decided and place.startswith(".atari-convert-new/"):
        shutil.copy(folder / "agent.json", folder / ".atari-convert-new")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"folder": mine, "file": mine / "model.onnx", "dangling": tmp_path / "gone"}[kind])
    before = _list(tmp_path)
    with pytest.raises(OutputExists, match=f"{place}: is a?.*, which atari-convert never makes: nothing was touched"):
        write_agent(folder, "new", *NAMES)
    assert _list(tmp_path) == before


def _list(folder: Path) -> dict[str, object]:
    """Return everything below a folder: what a link leads to, what a file holds, or the kind of any other."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else path.read_text()
        if path.is_file()
        else stat.S_IFMT(path.lstat().st_mode)
        for path in folder.rglob("*")
    }


def test_what_is_staged_beside_the_record_is_not_published(tmp_path):
    folder = tmp_path / "agent"
    write_agent(folder, "old", "model.onnx")
    (folder / "notes").write_text("mine")
    staging = folder / ".atari-convert-new"
    staging.mkdir()
    shutil.copy(folder / "agent.json", staging)
    (staging / "notes").write_text("another's")
    with open_folder(inspect(folder)):
        pass
    assert (folder / "notes").read_text() == "mine"
    assert not staging.exists()


def test_a_record_that_could_not_be_read_again_is_not_published(tmp_path):
    with pytest.raises(RoundTripError, match=r"agent.json: path .* has control characters.*a bug of atari-convert"):
        write_agent(tmp_path / "agent", "new", "a\nb")
    assert not (tmp_path / "agent").exists()


def test_a_waiting_run_survives_that_the_folder_it_waits_for_is_removed(tmp_path):
    """The first run fails and removes the folder that it made; the second had it open and must begin anew."""
    code = """
import sys
from pathlib import Path
from test_publish import write_agent
write_agent(Path(sys.argv[1]), "second", "model.onnx")
"""
    folder = tmp_path / "agent"
    with pytest.raises(RuntimeError, match="stop"), open_folder(inspect(folder)):
        second = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=Path(__file__).parent)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(2)
        raise RuntimeError("stop")
    assert second.wait(60) == 0
    assert (folder / "model.onnx").read_text() == "second"
