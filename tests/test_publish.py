"""Publishing file by file and folder by folder: a kill between any two renames is made good by the next run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from convert.agent import Agent, Artifact, File, HeadSpec, Identity, Record, Tensor, read_record
from convert.publish import is_intact, open_folder, publish


def write_agent(folder: Path, content: str, *names: str) -> None:
    """Publish an agent whose artefacts are small text files: ``name`` or ``name/inner``."""
    with open_folder(folder) as staging:
        for name in names:
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text(content)
        digest = hashlib.sha256(content.encode()).hexdigest()
        files = tuple(File(name, len(content), digest) for name in names)
        source = File("m.gz", 0, digest)
        tensors = (Tensor("observation", "uint8", (None,), ("batch",)),)
        record = Record(Agent(Identity(), HeadSpec("q", 6), source), {"all": Artifact(1, files, tensors, tensors)}, {})
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
        with open_folder(folder):
            pass
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        if kill == 0:  # killed before the decision: as if nothing had been tried
            assert names == (sorted([*NAMES, "agent.json"]) if before else [])
        if names:
            assert names == sorted([*NAMES, "agent.json"])
            assert is_intact(folder, read_record(folder).artifacts["all"])
            assert {(folder / name).read_text() for name in NAMES} == {"old" if kill == 0 else "new"}
        if codes[-1] == 0:
            break
    assert codes[:-1] == [9] * (len(codes) - 1)
    assert codes[-1] == 0
    assert len(codes) > 4


def test_a_failure_while_staging_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), open_folder(tmp_path / "a/b") as staging:
        (staging / "model.onnx").write_text("half")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_belongs_is_replaced(tmp_path):
    write_agent(tmp_path / "agent", "first", "model.onnx")
    (tmp_path / "agent/saved_model").write_text("not ours")
    write_agent(tmp_path / "agent", "second", *NAMES)
    assert {(tmp_path / "agent" / name).read_text() for name in NAMES} == {"second"}


def test_a_waiting_run_survives_that_the_folder_it_waits_for_is_removed(tmp_path):
    """The first run fails and removes the folder that it made; the second had it open and must begin anew."""
    code = """
import sys
from pathlib import Path
from test_publish import write_agent
write_agent(Path(sys.argv[1]), "second", "model.onnx")
"""
    folder = tmp_path / "agent"
    with pytest.raises(RuntimeError, match="stop"), open_folder(folder):
        second = subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=Path(__file__).parent)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(2)
        raise RuntimeError("stop")
    assert second.wait(60) == 0
    assert (folder / "model.onnx").read_text() == "second"
