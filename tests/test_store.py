"""An agent's folder on disk and one at a URL: the same calls, the same bytes, the same messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from builders import BREAKOUT, PONG

import convert
from convert.bulk import run as bulk
from convert.bulk.selection import find_jobs
from convert.errors import OutputExists


@pytest.fixture(params=["path", "file://", "local://"])
def place(request, tmp_path):
    """The folder of an agent at ``tmp_path/out/agent``, as users may name it."""
    path = f"{tmp_path}/out/agent"
    return path if request.param == "path" else f"{request.param}{path}"


def _read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_bytes_are_written_and_then_left_alone(place, tmp_path):
    assert convert.convert_checkpoint(PONG, place, ["flax"]).written == ("flax",)
    conversion = convert.convert_checkpoint(PONG, f"{place}/", ["flax", "safetensors"])
    assert conversion.written == ("safetensors",)
    assert str(conversion.folder) == place.removeprefix("file://")
    convert.convert_checkpoint(PONG, tmp_path / "expected", ["flax", "safetensors"])
    written = _read_all(tmp_path / "out/agent")
    assert written == _read_all(tmp_path / "expected")
    assert convert.convert_checkpoint(PONG, place, ["safetensors", "flax"]).written == ()
    assert _read_all(tmp_path / "out/agent") == written


def test_only_what_is_damaged_is_written_again(place, tmp_path):
    convert.convert_checkpoint(PONG, place, ["flax", "safetensors"])
    written = _read_all(tmp_path / "out/agent")
    path = tmp_path / "out/agent/params.msgpack"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert convert.convert_checkpoint(PONG, place, ["flax", "safetensors"]).written == ("flax",)
    path.unlink()
    assert convert.convert_checkpoint(PONG, place, ["flax", "safetensors"]).written == ("flax",)
    assert _read_all(tmp_path / "out/agent") == written


def test_another_agent_replaces_every_artefact(place, tmp_path):
    convert.convert_checkpoint(PONG, place, ["flax", "safetensors"])
    assert set(convert.convert_checkpoint(BREAKOUT, place, ["flax"]).written) == {"flax", "safetensors"}
    convert.convert_checkpoint(BREAKOUT, tmp_path / "expected", ["flax", "safetensors"])
    assert _read_all(tmp_path / "out/agent") == _read_all(tmp_path / "expected")


def test_a_folder_of_somebody_else_is_refused(place, tmp_path):
    mine = tmp_path / "out/agent/notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    named = re.escape(place.removeprefix("file://"))
    with pytest.raises(OutputExists, match=f"^{named}: holds notes.txt and no agent.json: nothing was touched"):
        convert.convert_checkpoint(PONG, place, ["flax"])
    assert _read_all(tmp_path / "out/agent") == {"notes.txt": b"mine"}


def test_a_record_that_is_not_utf_8_is_written_again(place, tmp_path):
    convert.convert_checkpoint(PONG, place, ["flax"], path="ä.gz", identity=convert.Identity())
    record = tmp_path / "out/agent/agent.json"
    written = record.read_bytes()
    record.write_bytes(written.replace("ä".encode(), b"\xff"))
    assert convert.convert_checkpoint(PONG, place, ["flax"], path="\ufffd.gz", identity=convert.Identity()).written == (
        "flax",
    )
    assert "\ufffd" in record.read_text("utf-8")


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_a_plan_reads_local_sources_whatever_the_output(scheme, tmp_path):
    source = tmp_path / "model_1.gz"
    source.write_bytes(PONG.read_bytes())
    jobs = find_jobs([source], f"{scheme}{tmp_path}/out")
    work = bulk.Work(("flax",))
    assert [outcome.written for outcome in bulk.rehearse(jobs, work)] == [("flax",)]
    assert [outcome.status for outcome in bulk.run(jobs, work)] == ["converted"]
    assert [outcome.status for outcome in bulk.rehearse(jobs, work)] == ["current"]
    data = source.read_bytes()
    source.write_bytes(BREAKOUT.read_bytes().ljust(len(data), b"?")[: len(data)])  # of the same size, and damaged
    assert [outcome.status for outcome in bulk.rehearse(jobs, work)] == ["failed"]
    source.unlink()
    assert [outcome.status for outcome in bulk.rehearse(jobs, work)] == ["failed"]


def test_a_plan_tells_that_what_a_killed_run_was_sending_is_sent_again(tmp_path):
    jobs = find_jobs([PONG], f"local://{tmp_path}/out")
    work = bulk.Work(("flax", "safetensors"))
    assert [outcome.status for outcome in bulk.run(jobs, work)] == ["converted"]
    (agent,) = (tmp_path / "out").rglob("agent.json")
    (agent.parent / ".atari-convert-new").touch()
    (planned,) = bulk.rehearse(jobs, bulk.Work(("flax",)))
    (done,) = bulk.run(jobs, bulk.Work(("flax",)))
    assert planned.written == done.written == ("flax", "safetensors")
    assert not (agent.parent / ".atari-convert-new").exists()
