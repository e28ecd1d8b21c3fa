"""A record that lists files outside the place of its target: a stranger's record may lead anywhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from builders import PONG, run_python

import convert
from convert.agents.agent import RECORD_NAME
from convert.agents.record import to_json
from convert.store.folders import describe_bytes
from convert.store.local import inspect
from runtime_check.check.verification import find_changes

# Opens are told by Python itself, whoever asks for them.
WATCHING = """
import os, sys
import convert, runtime_check
import convert.pipeline, convert.loading
opened = []
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        opened.append(os.path.realpath(arguments[0]))
sys.addaudithook(note)
try:
    {call}
except convert.AtariConvertError as error:
    print(error, file=sys.stderr)
print(*[path for path in opened if "/outside/" in path])
"""
CALLS = {
    "read_agent": "convert.read_agent({folder!r})",
    "read_agent of a target": "convert.read_agent({folder!r}, 'flax')",
    "load_agent": "convert.load_agent({folder!r}, 'flax')",
    "back": "convert.convert_checkpoint({folder!r}, {out!r}, ['safetensors'])",
    "into": "convert.convert_checkpoint({source!r}, {folder!r}, ['flax'])",
    "check": "runtime_check.check_agent({folder!r}, {source!r}, runtime_check.Options(('flax',), max_steps=1))",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An agent's folder whose record lists, with the right checksum, a file behind a linked folder."""
    folder = tmp_path / "agent"
    convert.convert_checkpoint(PONG, folder, ["flax"])
    secret = tmp_path / "outside/secret"
    secret.parent.mkdir()
    secret.write_bytes(b"what nobody is to learn")
    (folder / "sub").symlink_to(secret.parent)
    _list(folder, "sub/secret", secret.read_bytes())
    return folder


def _list(folder: Path, path: str, content: bytes) -> None:
    """Add a file to those that a record lists of Flax' artefact."""
    record = convert.read_record(folder)
    artifact = record.artifacts["flax"]
    artifact = replace(artifact, files=(*artifact.files, describe_bytes(content, path)))
    (folder / RECORD_NAME).write_text(to_json(replace(record, artifacts={"flax": artifact})), "utf-8")


@pytest.mark.parametrize("name", CALLS)
def test_no_file_behind_a_link_beside_an_artefact_is_opened(name, folder, tmp_path):
    call = CALLS[name].format(folder=str(folder), out=str(tmp_path / "out"), source=str(PONG))
    assert run_python(WATCHING.format(call=call)).strip() == ""


def test_a_misplaced_file_is_told(folder):
    (change,) = find_changes(folder, "flax", convert.read_record(folder).artifacts["flax"])
    assert change == "sub/secret is no part of flax, whose place is params.msgpack"


def test_what_a_stranger_staged_replaces_no_file_but_a_targets(tmp_path):
    folder = tmp_path / "agent"
    convert.convert_checkpoint(PONG, folder, ["flax"])
    for place, content in ((folder, "mine"), (folder / ".atari-convert-new", "planted")):
        (place / ".git").mkdir(parents=True)
        (place / ".git/config").write_text(content)
    _list(folder, ".git/config", b"planted")
    (folder / RECORD_NAME).rename(folder / ".atari-convert-new" / RECORD_NAME)
    assert convert.convert_checkpoint(PONG, folder, ["flax"]).written == ("flax",)
    assert (folder / ".git/config").read_text() == "mine"
    assert not (folder / ".atari-convert-new").exists()


@pytest.mark.parametrize("place", ["path", "url"])
def test_an_artefact_with_a_misplaced_file_is_written_again_even_if_another_is_asked_for(place, tmp_path):
    folder = tmp_path / "agent"
    convert.convert_checkpoint(PONG, folder, ["flax", "safetensors"])
    shutil.copytree(folder, tmp_path / "expected")
    record = json.loads((folder / RECORD_NAME).read_text("utf-8"))
    (folder / "notes").write_bytes(b"mine")
    file = describe_bytes(b"mine", "notes")
    record["artifacts"]["flax"]["files"].append({"path": file.path, "size": file.size, "sha256": file.sha256})
    (folder / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    where = folder if place == "path" else f"local://{folder}"
    assert convert.convert_checkpoint(PONG, where, ["safetensors"]).written == ("flax",)
    assert inspect(folder).record == inspect(tmp_path / "expected").record
    assert (folder / "notes").read_bytes() == b"mine"
